"""One training from its command to its exit code, on a Ray of its own."""

from __future__ import annotations

from tests.ray.harness import Lab, staleness_of


def test_train_ends_with_a_table_and_the_books_balance(lab: Lab) -> None:
    run = lab.train(
        "--preset", "smoke", "--total-timesteps", 10 * 2048, "--trainer.checkpoint.checkpoint-interval", 5, run="a"
    )

    out = run.wait_for_end(0)

    assert "evaluation of model_0010" in out
    assert [line["epoch"] for line in run.metrics()] == list(range(1, 11))
    assert run.checkpoints()[-1] == "model_0010"
    assert max(staleness_of(run.history())) <= 4
    run.check_books()
