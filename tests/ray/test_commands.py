"""A run obeys while it trains. The tests share one; the last ones interrupt it and go on with it."""

from __future__ import annotations

import signal
import time

import pytest

from tests.ray.harness import Lab, Run, staleness_of, wait_until

# Four fragments of 128 agent steps make a batch, so eight workers are the most that can be busy.
CARTPOLE = [
    *("--preset", "cartpole", "--env", "oracle_envs:CartPole", "--evaluate", "false", "--workers", 1),
    *("--trainer.batch-size", 512, "--trainer.minibatch-size", 128, "--trainer.bptt-horizon", 32),
    *("--trainer.update-epochs", 2, "--rollout.num-envs", 4, "--trainer.checkpoint.checkpoint-interval", 50),
    *("--rollout.num-cpus", 0.1, "--learner.num-cpus", 0.1),
    # Puts the learning rate into the metrics.
    *("--trainer.hyperparameter-scheduler", '{"learning_rate_schedule": {"type": "constant"}}'),
]
ENDLESS = ["--total-timesteps", 100_000_000]


@pytest.fixture(scope="module")
def run(shared_lab: Lab) -> Run:
    head = shared_lab.head()
    run = shared_lab.train(*CARTPOLE, *ENDLESS, run="a", head=head)
    run.wait_for_version(2)
    return run


def workers(run: Run) -> int:
    return int(run.status()["workers"]["ready"])


def test_workers_come_and_go_while_it_trains(run: Run) -> None:
    answer = run.ask("scale", "3")
    assert answer["ok"]
    run.wait_for_status(lambda status: status["workers"]["ready"] == 3, "three workers")
    delivered = lambda status: all(worker["fragments"] for worker in status["workers"]["list"])  # noqa: E731
    run.wait_for_status(delivered, "all three deliver")

    run.ask("scale", "1")
    run.wait_for_status(lambda status: len(status["workers"]["list"]) == 1, "one worker, nobody drains any more")

    run.wait_for_version(run.version + 2)
    assert not run.ledger().totals()["lost"], "draining loses nothing"
    run.check_books()


def test_more_workers_than_useful_are_commented_on(run: Run) -> None:
    useful = run.status()["workers"]["useful"]

    answer = run.ask("scale", f"1:{useful + 1}")

    assert f"at most {useful} can be busy" in answer["message"]
    assert "batch_size" in answer["message"]
    run.ask("scale", "1")


def test_pause_brings_what_is_in_flight_to_zero_and_unpause_goes_on(run: Run) -> None:
    run.ask("pause")
    run.wait_for_status(lambda status: status["ledger"]["in_flight"] == 0, "nothing in flight")
    run.wait_for_status(lambda status: status["state"] == "paused", "paused")
    version = run.version
    assert run.version == version

    run.ask("unpause")

    run.wait_for_version(version + 2)
    assert run.status()["state"] == "running"


def test_a_checkpoint_can_be_asked_for(run: Run) -> None:
    answer = run.ask("checkpoint")

    assert answer["ok"]
    assert answer["message"].rpartition("/")[2] in run.checkpoints()


def test_a_learning_rate_is_set_for_the_next_update(run: Run) -> None:
    answer = run.ask("set", "trainer.optimizer.learning_rate", "0.000123")
    assert answer["ok"]
    run.wait_for_version(run.version + 2)

    assert run.status()["settings"] == {"trainer.optimizer.learning_rate": 0.000123}
    wait_until(lambda: learning_rates(run)[-1] == pytest.approx(0.000123), 30.0, "the rate in the metrics")


def learning_rates(run: Run) -> list[float]:
    return [line[key] for line in run.metrics() for key in line if key.endswith("learning_rate")]


def test_a_setting_that_cannot_change_is_refused(run: Run) -> None:
    with pytest.raises(RuntimeError, match="cannot be changed while the run goes on"):
        run.ask("set", "rollout.num_envs", "8")


def test_control_c_saves_and_the_same_name_goes_on_from_there(run: Run, shared_lab: Lab) -> None:
    run.driver.send_signal(signal.SIGINT)
    run.wait_for_end(130)
    last = run.version
    assert run.checkpoints()[-1] == f"model_{last:04d}"
    assert max(staleness_of(run.history())) <= 4
    run.check_books()

    again = shared_lab.train(*CARTPOLE, "--total-timesteps", run.ledger().agent_step + 3 * 512, run="a", head=run.head)
    out = again.wait_for_end(0)

    assert f"continuing a after epoch {last}" in out
    assert again.version == last + 3
    assert [line["epoch"] for line in again.metrics()] == list(range(1, last + 4))
    assert learning_rates(again)[-1] == pytest.approx(0.000123), "what was set is kept"
    again.check_books()


def test_stop_by_force_leaves_nothing_and_the_same_name_goes_on_from_the_last_checkpoint(
    run: Run, shared_lab: Lab
) -> None:
    forced = shared_lab.train(*CARTPOLE, *ENDLESS, "--workers", 2, run="forced", head=run.head)
    forced.wait_for_status(lambda status: status["workers"]["ready"] == 2, "two workers")
    assert forced.ask("checkpoint")["ok"]
    forced.wait_for_version(forced.version + 2)

    answer = shared_lab.command("stop", "forced", "--force", "--data-dir", forced.data_dir)

    assert answer.returncode == 0, answer.stderr
    assert "4 actors killed" in answer.stdout
    assert forced.recorded_state() == "stopped"
    forced.check_nothing_is_left()
    forced.wait_for_end(None)
    saved, total = int(forced.checkpoints()[-1].removeprefix("model_")), forced.ledger().agent_step + 3 * 512
    again = shared_lab.train(*CARTPOLE, "--total-timesteps", total, run="forced", head=run.head)
    assert f"continuing forced after epoch {saved}," in again.wait_for_end(0)
    again.check_books()


def test_stop_by_force_of_a_run_with_a_ray_of_its_own_ends_in_time_although_that_ray_ends_meanwhile(
    shared_lab: Lab,
) -> None:
    alone = shared_lab.train(*CARTPOLE, *ENDLESS, run="alone")
    alone.wait_for_version(2)

    began = time.monotonic()
    answer = shared_lab.command("stop", "alone", "--force", "--data-dir", alone.data_dir)

    assert answer.returncode == 0, answer.stderr
    assert "stopped by force" in answer.stdout
    assert time.monotonic() - began < 6 * 5.0
    assert alone.recorded_state() == "stopped"
    assert "the coordinator of run alone is gone" in alone.wait_for_end(3)
    wait_until(lambda: not alone.session.members(), 30.0, "its Ray has ended")
