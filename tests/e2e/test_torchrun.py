"""``torchrun --nproc_per_node=2 run.py`` over gloo: one training, one voice, one checkpoint."""

from __future__ import annotations

from tests.e2e.small_runs import SMALL_CARTPOLE

OPTIONS = [
    *SMALL_CARTPOLE,
    "--evaluate",
    "false",
    "--trainer.update-epochs",
    "2",
    "--trainer.checkpoint.checkpoint-interval",
    "2",
]


def test_k24_two_ranks_train_together_and_end_with_one_checkpoint(start_training):
    training = start_training(*OPTIONS, "--total-timesteps", 3 * 512, run="two", ranks=2)
    out, _ = training.wait()

    assert "2 process" in out
    assert out.count("epoch 3 · 1,536 agent steps") == 1, "rank 1 is silent; steps of both ranks are counted (K29)"
    assert [line["agent_step"] for line in training.metrics()] == [512, 1024, 1536]
    assert training.checkpoints() == ["model_0002", "model_0003"]
    files = {path.name for path in (training.run_dir / "checkpoints/model_0003").iterdir()}
    expected = {
        f"{name}.{kind}" for name in ("policy", "trainer", "rank0", "rank1") for kind in ("json", "safetensors")
    }
    assert files == expected | {"manifest.json"}

    # Started again it says that it is done and saves nothing; then on one rank it goes on, with a warning.
    before = (training.run_dir / "checkpoints/model_0003/manifest.json").read_bytes()
    again, _ = start_training(*OPTIONS, "--total-timesteps", 3 * 512, run="two", ranks=2).wait()
    assert "after epoch 3" in again
    assert (training.run_dir / "checkpoints/model_0003/manifest.json").read_bytes() == before
    alone = start_training(*OPTIONS, "--total-timesteps", 3 * 512 + 256, run="two")
    out, err = alone.wait()
    assert "was written by 2 ranks, now there are 1" in err
    assert "epoch 4 · 1,792 agent steps" in out


def test_a_refusal_under_torchrun_ends_all_ranks(start_training):
    _, err = start_training(*OPTIONS, "--trainer.ppo.clip-ceof", "0.1", run="bad", ranks=2).wait(expect=1)

    assert "error: unknown setting" in err
    assert "clip_coef" in err
