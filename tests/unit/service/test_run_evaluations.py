"""The evaluations of a run: which policies are asked about, and what follows from results."""

from __future__ import annotations

import json
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from metta_ray.agent import policy_pins
from metta_ray.common.errors import ConfigError
from metta_ray.service.announcer import Announcer
from metta_ray.service.evaluations import MAX_WAITING, Evaluations, Wish
from tests.unit.service.test_evaluation_pool import Evaluating


class FakeCheckpointer:
    """Writes a policy's directory when a test says so."""

    def __init__(self, checkpoint_dir: Path) -> None:
        self.checkpoint_dir = str(checkpoint_dir)
        self.newest: Any = None
        self.wanted = 0

    def want(self) -> None:
        self.wanted += 1

    def holds(self, version: int) -> bool:
        return self.newest is not None and self.newest.version == version

    def write(self, version: int) -> Path:
        path = Path(self.checkpoint_dir) / f"model_{version:04d}"
        path.mkdir(parents=True)
        (path / "manifest.json").write_text(json.dumps({"version": version}))
        self.newest = SimpleNamespace(path=str(path), version=version)
        return path


class Place(Evaluating):
    def __init__(self, run_dir: Path, **settings: Any) -> None:
        super().__init__(run_dir, **settings)
        self.checkpointer = FakeCheckpointer(run_dir / "checkpoints")
        self.announcer = Announcer("fake")
        self.evaluations = Evaluations(
            self.books,
            self.pool,
            self.checkpointer,  # type: ignore[arg-type]
            self.announcer,
            self.clock,
        )

    def turn(self, times: int = 3) -> None:
        for _ in range(times):
            self.clock.advance(0.2)
            self.evaluations.look_after()

    def play(self, **changes: Any) -> None:
        """One evaluation, from its beginning to its end."""
        self.turn()
        self.children.evaluators[-1].finish(**changes)
        self.turn()

    def kinds(self) -> list[str]:
        return list(self.announcer._counts)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_the_interval_makes_a_checkpoint_and_asks_for_exactly_that_policy(place: Place):
    place.evaluations.want(Wish(3, "interval"))
    place.turn()
    assert (place.checkpointer.wanted, place.queue.all()) == (1, [])

    path = place.checkpointer.write(3)
    place.turn()

    [one] = place.queue.all()
    assert (one.request.version, one.request.policy_uri) == (3, f"file://{path}")
    assert one.request.fingerprint == policy_pins.fingerprint(path)


def test_a_policy_is_pinned_from_when_it_is_asked_for_until_its_evaluation_has_ended(place: Place):
    first, second = place.checkpointer.write(1), place.checkpointer.write(2)
    place.evaluations.want(Wish(2, "interval"))
    place.turn()
    assert policy_pins.is_pinned(second)
    assert not policy_pins.is_pinned(first)

    place.play(standing=None)

    assert not policy_pins.is_pinned(second)


def test_an_evaluation_that_fails_for_good_lets_its_policy_go(place: Place):
    path = place.checkpointer.write(1)
    place.evaluations.want(Wish(1, "interval"))
    place.turn()
    place.children.evaluators[0].refuse("it does not fit")
    place.turn()

    assert not policy_pins.is_pinned(path)
    assert "evaluation_failed" in place.kinds()


def test_the_first_result_is_the_best_and_it_stays_pinned_until_a_better_one_comes(place: Place):
    first = place.checkpointer.write(1)
    place.evaluations.want(Wish(1, "interval"))
    place.play()
    best = place.evaluations.best()
    assert best is not None
    assert (best["version"], best["path"]) == (1, str(first))
    assert policy_pins.is_pinned(first)

    second = place.checkpointer.write(2)
    place.evaluations.want(Wish(2, "interval"))
    place.play()

    assert place.evaluations.best()["version"] == 2  # type: ignore[index]
    assert (policy_pins.is_pinned(first), policy_pins.is_pinned(second)) == (False, True)
    assert place.announcer._counts["best_policy"] == 2


def test_a_policy_that_is_not_better_beyond_doubt_is_kept_and_one_that_is_worse_is_told(place: Place):
    for version in (1, 2, 3):
        place.checkpointer.write(version)
        place.evaluations.want(Wish(version, "interval"))
        place.turn()
        best = {"version": 1, "policy": place.queue[0].request.policy_uri, "score": 0.5}
        standing = {"compared": version, "best": best}
        worse = {"best_version": 1, "drop": 0.3, "drop_low": 0.1, "drop_high": 0.5, "simulations": ["one"]}
        place.play(standing=standing, regression=worse if version == 3 else None)

    assert [one.verdict for one in place.queue.all()] == ["promoted", "kept", "regressed"]
    assert place.announcer._counts["best_policy"] == 1
    assert place.announcer._counts["evaluation_regressed"] == 1


def test_a_suite_of_a_persons_choice_does_not_decide_which_policy_is_best(place: Place):
    path = place.checkpointer.write(1)
    place.evaluations.want(Wish(1, "interval"))
    place.play()
    place.evaluations.ask(path, 1, Wish(1, "user", "smoke"))
    place.play(score=0.9)

    assert place.evaluations.best()["suite"] == "evaluation"  # type: ignore[index]


def test_asked_by_command_it_waits_for_a_checkpoint_of_the_policy_as_it_is(place: Place):
    place.books.record({"kind": "adopt", "version": 4, "trained": 100})
    answer: Future[dict[str, Any]] = Future()

    reply = place.evaluations.ask_by_command(Wish(4, "user", "smoke"), None, answer)
    assert reply is None
    place.checkpointer.write(4)
    place.turn()

    told = answer.result(0)
    assert (told["ok"], told["number"]) == (True, 0)
    assert "model_0004 in suite smoke" in told["message"]


def test_asked_twice_it_is_one_evaluation_and_after_it_the_answer_is_there(place: Place):
    path = place.checkpointer.write(1)
    first = place.evaluations.ask_by_command(Wish(0, "user"), 1, Future())
    again = place.evaluations.ask_by_command(Wish(0, "user"), 1, Future())
    assert first is not None
    assert again is not None
    assert first["number"] == again["number"]
    place.play()

    later = place.evaluations.ask_by_command(Wish(0, "user"), 1, Future())

    assert later is not None
    assert "was played before" in later["message"]
    assert len(place.queue.all()) == 1
    assert path.is_dir()


def test_an_unknown_suite_and_an_epoch_without_a_checkpoint_name_what_there_is(place: Place):
    place.checkpointer.write(5)

    with pytest.raises(ConfigError, match="navigation"):
        place.evaluations.ask_by_command(Wish(5, "user", "navigatoin"), None, Future())
    with pytest.raises(ConfigError, match="model_0005"):
        place.evaluations.ask_by_command(Wish(5, "user"), 4, Future())


def test_the_interval_does_not_pile_up_more_than_can_be_played(place: Place):
    place.children.start_seconds = None
    for version in range(1, MAX_WAITING + 4):
        place.checkpointer.write(version)
        place.evaluations.want(Wish(version, "interval"))
        place.turn()

    assert len(place.queue.waiting) == MAX_WAITING
    assert "evaluation_skipped" in place.kinds()


def test_a_run_that_ends_tells_those_who_wait_for_a_checkpoint(place: Place):
    answer: Future[dict[str, Any]] = Future()
    place.evaluations.want(Wish(9, "user", answer=answer))

    place.evaluations.give_up_wishes("the run has ended")

    assert answer.result(0) == {"ok": False, "message": "the run has ended"}
    assert place.evaluations.is_idle


def test_the_status_lists_evaluations_and_evaluators(place: Place):
    place.checkpointer.write(1)
    place.evaluations.want(Wish(1, "interval"))
    place.turn()

    facts = place.evaluations.facts()

    assert (facts["evaluations"]["running"], facts["evaluations"]["evaluators"][0]["state"]) == (1, "playing")
    assert facts["evaluations"]["list"][0]["policy"] == "model_0001"
    assert json.loads(json.dumps(facts)) == facts


def test_an_answer_that_makes_no_sense_fails_the_evaluation_and_nothing_else(place: Place):
    place.checkpointer.write(1)
    place.evaluations.want(Wish(1, "interval"))
    place.turn()
    place.children.evaluators[0].open_calls("evaluate")[0].answer({"score": "high"})

    place.turn()

    assert place.queue.all()[0].state == "failed"
    assert "evaluation_failed" in place.kinds()


def test_without_evaluators_training_is_told_once_and_who_asks_is_told_the_remedy(tmp_path: Path):
    place = Place(tmp_path, failure__evaluator={"per_run": 1})
    place.checkpointer.write(1)
    place.evaluations.want(Wish(1, "interval"))
    for _ in range(2):
        place.turn()
        place.children.evaluators[0].die()
        place.turn(1)

    place.evaluations.want(Wish(2, "interval"))
    reply = place.evaluations.ask_by_command(Wish(1, "user"), None, Future())

    assert place.kinds().count("evaluators_given_up") == 1
    assert [one.summary()["reason"] for one in place.queue.all()] == [place.pool.given_up]
    assert place.evaluations.is_idle, "so the run can end"
    assert reply is not None
    assert not reply["ok"]
    assert "training goes on without evaluations: 2 evaluators lost in 300 s" in reply["message"]
    assert "metta-ray evaluate RUN --here" in reply["message"]
    facts = place.evaluations.facts()["evaluations"]
    assert (facts["failures"], facts["given_up"]) == ({"crash": 2}, place.pool.given_up)
