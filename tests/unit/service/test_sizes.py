"""Sizes that follow from a configuration and the environment's number of agents."""

from __future__ import annotations

import pytest

from metta_ray.common.errors import ConfigError
from metta_ray.service.run_config import RunConfig, load_run_config
from metta_ray.service.sizes import Sizes, advice, resolved_sizes


def sized(batch: int, horizon: int = 64, minibatch: int | None = None, **words: object) -> RunConfig:
    settings = {"trainer.batch_size": batch, "trainer.bptt_horizon": horizon}
    settings["trainer.minibatch_size"] = minibatch or batch
    settings |= {name.replace("__", "."): value for name, value in words.items()}
    return load_run_config(None, {name: str(value) for name, value in settings.items()})


def test_the_default_run_has_fragments_of_4096_agent_steps():
    assert resolved_sizes(load_run_config(None, {}), agents_per_env=4) == Sizes(
        num_envs=16,
        agents_per_worker=64,
        fragment_steps=4096,
        fragments_per_batch=4,
        batch_steps=16_384,
        minibatch_steps=1024,
        useful_workers=8,
    )


@pytest.mark.parametrize(("preset", "agents"), [("arena", 24), ("smoke", 1), ("tmaze", 1), ("cartpole", 1)])
@pytest.mark.parametrize("replicas", [1, 2])
def test_presets_give_every_replica_at_least_two_fragments(preset: str, agents: int, replicas: int):
    sizes = resolved_sizes(load_run_config(None, {"preset": preset, "learner.replicas": str(replicas)}), agents)

    assert sizes.fragments_per_batch % replicas == 0
    assert sizes.fragments_per_batch // replicas >= 2
    assert sizes.fragment_steps * sizes.fragments_per_batch == sizes.batch_steps


def test_replicas_share_the_minibatch_and_get_whole_fragments():
    sizes = resolved_sizes(sized(16_384, minibatch=1024, learner__replicas=4), agents_per_env=4)

    assert sizes.minibatch_steps == 256
    assert (sizes.fragment_steps, sizes.fragments_per_batch) == (2048, 8)


def test_environment_processes_divide_the_chosen_environments():
    sizes = resolved_sizes(sized(3 * 4096, trainer__num_workers=3), agents_per_env=1)

    assert sizes.num_envs % 3 == 0
    assert sizes.batch_steps % sizes.fragment_steps == 0


def test_sizes_that_are_given_are_used():
    by_envs = resolved_sizes(sized(8192, rollout__num_envs=8), agents_per_env=4)
    by_steps = resolved_sizes(sized(8192, rollout__fragment_steps=2048), agents_per_env=4)

    assert by_envs == by_steps
    assert (by_envs.num_envs, by_envs.fragment_steps, by_envs.fragments_per_batch) == (8, 2048, 4)


def test_one_fragment_may_be_a_whole_batch():
    assert resolved_sizes(sized(64), agents_per_env=1).fragments_per_batch == 1


def test_synchronous_runs_use_one_batch_of_workers():
    sizes = resolved_sizes(sized(16_384, pacing__target_staleness=0), agents_per_env=4)

    assert sizes.useful_workers == sizes.fragments_per_batch


@pytest.mark.parametrize(
    ("config", "agents", "said"),
    [
        (sized(1024), 3, r"batch_size=1024 is not a multiple of 192 \(3 agents per.*64\).*nearest: 960 or 1152"),
        (sized(128, learner__replicas=2), 2, r"multiple of 256 .*2 learner replicas.*nearest: 256"),
        (sized(8192, rollout__num_envs=3), 4, r"batch_size=8192 is not a multiple of 768.*nearest: 7680 or 8448"),
        (sized(8192, rollout__num_envs=64), 4, r"not a multiple of 16384 steps per fragment.*nearest: 16384"),
        (sized(8192, rollout__fragment_steps=100), 4, r"fragment_steps=100 is not a multiple of 256.*nearest: 256"),
        (sized(8192, rollout__fragment_steps=512, rollout__num_envs=4), 4, r"fragment_steps=512 .* makes 1024"),
        (sized(8192, rollout__num_envs=4, trainer__num_workers=3), 1, r"multiple of trainer.num_workers=3"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_with_the_nearest(config: RunConfig, agents: int, said: str):
    with pytest.raises(ConfigError, match=said):
        resolved_sizes(config, agents)


def test_a_byte_budget_below_one_batch_would_never_train_and_is_refused():
    config = sized(8192, pacing__byte_budget=8_000_000)

    assert resolved_sizes(config, 4, agent_step_bytes=900)
    with pytest.raises(ConfigError, match=r"byte_budget=8000000 does not hold one batch of 8192000 bytes"):
        resolved_sizes(config, 4, agent_step_bytes=1000)


def test_more_workers_than_can_be_busy_are_told_how_to_be():
    config = load_run_config(None, {"workers": "2:16"})

    [said] = advice(config, resolved_sizes(config, agents_per_env=4))

    assert "16 rollout workers, but at most 8 can be busy" in said
    assert "raise trainer.batch_size" in said


def test_a_number_of_workers_that_fits_needs_no_advice():
    config = load_run_config(None, {"workers": "8"})

    assert advice(config, resolved_sizes(config, agents_per_env=4)) == []
