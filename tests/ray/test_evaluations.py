"""Evaluations beside a training, on a real Ray: asked for by the interval and by command, through the death of whoever
has a part in them."""

from __future__ import annotations

import json
import sqlite3
from typing import Any

import pytest

from tests.ray.harness import Head, Lab, Run, kill, wait_until

# Small and endless: evaluations come and go while it trains.
CARTPOLE = [
    *("--preset", "cartpole", "--env", "oracle_envs:CartPole", "--evaluate", "false", "--workers", 1),
    *("--trainer.batch-size", 512, "--trainer.minibatch-size", 128, "--trainer.bptt-horizon", 32),
    *("--rollout.num-envs", 4, "--rollout.num-cpus", 0.1, "--learner.num-cpus", 0.1),
    *("--trainer.checkpoint.checkpoint-interval", 5, "--trainer.checkpoint.wandb-checkpoint-interval", 0),
    *("--trainer.checkpoint.keep-last", 1, "--total-timesteps", 100_000_000),
]
NEVER = ["--trainer.simulation.evaluate-interval", 0]
PLAYED_S = 60.0


def evaluations(run: Run) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = run.status()["evaluations"].get("list", [])
    return found


def wait_until_done(run: Run, number: int) -> dict[str, Any]:
    def is_done() -> dict[str, Any] | None:
        answer = run.ask("evaluation", number)
        assert answer.get("state") != "failed", answer
        return answer if answer.get("state") == "done" else None

    answer: dict[str, Any] = wait_until(is_done, PLAYED_S, f"evaluation {number} is played", every_s=0.2)
    return answer


def stored(run: Run) -> list[tuple[str, int, int]]:
    """(policy, version, episodes) of each simulation of the run's own policies in its database."""
    db = sqlite3.connect(run.run_dir / "stats" / "evaluations.sqlite")
    sql = """SELECT s.policy_key, s.policy_version, count(e.id) FROM simulations s JOIN episodes e
             ON e.simulation_id = s.id WHERE s.policy_key LIKE 'file:%' GROUP BY s.id ORDER BY 2"""
    try:
        return [tuple(row) for row in db.execute(sql)]
    finally:
        db.close()


def journal_of(run: Run, number: int) -> list[str]:
    """What happened to an evaluation, in order."""
    return [record["what"] for record in run.history() if record["kind"] == "evaluation" and record["number"] == number]


@pytest.fixture(scope="module")
def head(shared_lab: Lab) -> Head:
    return shared_lab.head()


@pytest.fixture(scope="module")
def run(shared_lab: Lab, head: Head) -> Run:
    run = shared_lab.train(*CARTPOLE, "--trainer.simulation.evaluate-interval", 20, run="a", head=head)
    run.wait_for_version(2)
    return run


def test_the_interval_evaluates_exactly_that_policy_beside_the_training(run: Run) -> None:
    run.wait_for_version(20)

    done = wait_until_done(run, 0)

    assert (done["asked_by"], done["version"] >= 20, done["episodes"]) == ("interval", True, 20)
    assert done["verdict"] == "promoted"
    assert done["low"] <= done["score"] <= done["high"]
    assert (done["policy_uri"], done["version"], 20) in stored(run)
    assert run.status()["best"]["version"] == done["version"]
    version = run.version
    run.wait_for_version(version + 2)  # training goes on


def test_the_best_policy_and_what_waits_outlive_retention(run: Run) -> None:
    best = run.status()["best"]["path"].rpartition("/")[2]
    run.wait_for_version(run.version + 12)  # two checkpoints more, of which one is kept

    assert best in run.checkpoints()


def test_a_command_asks_waits_and_prints_the_table(run: Run, shared_lab: Lab) -> None:
    words = ["--data-dir", run.data_dir, "--address", run.head.address] if run.head else []

    shown = shared_lab.command("evaluate", run.name, "--wait", "--seed", 7, "--episodes", 5, *words)

    assert shown.returncode == 0, shown.stderr
    assert "evaluation of model_" in shown.stdout
    listing = shared_lab.command("evaluations", run.name, "--json", *words)
    newest = max(json.loads(listing.stdout)["list"], key=lambda one: one["seed"])
    assert (newest["asked_by"], newest["state"], newest["episodes"]) == ("user", "done", 5)
    assert newest["policy"] in shown.stdout


def test_what_does_not_fit_is_refused_with_the_reason_and_the_run_goes_on(run: Run) -> None:
    with pytest.raises(RuntimeError, match="navigation"):
        run.ask("evaluate", "navigatoin")
    answer = run.ask("evaluate", "smoke")  # a suite of MettaGrid for a policy of CartPole

    def has_failed() -> dict[str, Any] | None:
        told: dict[str, Any] = run.ask("evaluation", answer["number"])
        return told if told["state"] == "failed" else None

    told = wait_until(has_failed, PLAYED_S, "it is refused", every_s=0.2)
    assert "has MettaGrid's tokens" in told["reason"]
    run.wait_for_version(run.version + 2)


def test_the_run_ends_when_everything_is_played_and_its_books_balance(run: Run) -> None:
    run.ask("set", "trainer.total_timesteps", run.ledger().agent_step + 2000)
    run.wait_for_end(0)

    results = [record for record in run.history() if record["kind"] == "evaluation" and record["what"] == "done"]
    assert len({record["number"] for record in results}) == len(results)
    keys = [row[:2] for row in stored(run)]
    assert len(keys) == len(results)
    run.check_books()


# Deaths.


@pytest.mark.chaos
@pytest.mark.parametrize("point", ["evaluator.start", "evaluator.evaluate", "evaluator.evaluated"])
def test_a_killed_evaluator_costs_nothing_but_time(shared_lab: Lab, head: Head, point: str) -> None:
    run = shared_lab.train(*CARTPOLE, *NEVER, run=f"kill-{point.replace('.', '-')}", head=head)
    run.wait_for_version(2)
    run.let_off(point, "kill")
    number = run.ask("evaluate")["number"]

    done = wait_until_done(run, number)

    assert run.was_let_off(point)
    assert journal_of(run, number).count("done") == 1
    assert done["tries"] == 2
    assert len(stored(run)) == 1
    status = run.status()
    assert status["failures"].get("crash", 0) == 0, "training has no failure of it"
    assert status["evaluations"]["failures"] == {"crash": 1}
    run.finish()
    run.check_books()


@pytest.mark.chaos
def test_evaluators_that_go_on_dying_are_given_up_and_training_goes_on(shared_lab: Lab, head: Head) -> None:
    run = shared_lab.train(*CARTPOLE, *NEVER, "--failure.evaluator.per-run", 1, run="given-up", head=head)
    run.wait_for_version(2)
    run.let_off("evaluator.evaluate", "kill")
    number = run.ask("evaluate")["number"]
    wait_until(lambda: run.was_let_off("evaluator.evaluate"), PLAYED_S, "the first dies")
    run.let_off_and_wait("evaluator.evaluate", "kill", PLAYED_S)

    wait_until(lambda: run.status()["evaluations"]["given_up"], PLAYED_S, "there are to be no more")

    told = run.ask("evaluation", number)
    assert told["state"] == "failed"
    assert "2 evaluators lost in 300 s (failure.evaluator.per_run=1), the last by crash" in told["reason"]
    refused = run.ask("evaluate")
    assert not refused["ok"]
    assert "training goes on without evaluations" in refused["message"]
    run.wait_for_version(run.version + 2)
    run.finish()
    run.check_books()


@pytest.mark.chaos
def test_a_coordinator_that_dies_while_it_is_played_gets_its_result_once(shared_lab: Lab, head: Head) -> None:
    run = shared_lab.train(*CARTPOLE, *NEVER, run="coordinator", head=head)
    run.wait_for_version(2)
    run.let_off("evaluator.evaluate", "wait 4")
    number = run.ask("evaluate")["number"]
    wait_until(lambda: run.was_let_off("evaluator.evaluate"), PLAYED_S, "it is being played")

    kill(run.coordinator_pid())
    run.hang_up()
    run.wait_for_status(lambda status: status["generation"] >= 2, "the coordinator is back")
    done = wait_until_done(run, number)

    assert journal_of(run, number) == ["asked", "started", "done"], "it went on with the same evaluator"
    assert done["tries"] == 1
    assert len(stored(run)) == 1
    run.finish()
    run.check_books()


@pytest.mark.chaos
def test_a_hanging_evaluator_is_ended_at_its_deadline(shared_lab: Lab, head: Head) -> None:
    run = shared_lab.train(*CARTPOLE, *NEVER, "--evaluator.deadline-s", 15, run="hang", head=head)
    run.wait_for_version(2)
    run.let_off("evaluator.evaluate", "hold_gil")
    number = run.ask("evaluate")["number"]

    done = wait_until_done(run, number)

    assert done["tries"] == 2
    run.finish()
    run.check_books()
