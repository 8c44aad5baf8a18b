"""Checkpoints of a running training, over children that do as they are told."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from typing import Any

from metta_ray.service.announcer import Announcer
from metta_ray.service.checkpointer import Checkpointer
from tests.fakes import FakeRun


def test_what_is_wanted_again_while_it_is_being_written_is_written_once(tmp_path: Path):
    run = FakeRun(tmp_path).start()
    checkpointer = Checkpointer(
        run.books, run.pool, run.learners, run.children, Announcer("fake"), run.clock, str(tmp_path / "checkpoints"), 1
    )
    answer: Future[dict[str, Any]] = Future()
    checkpointer.want()
    checkpointer.look_after({}, is_final=False)
    assert checkpointer.is_busy

    checkpointer.want(answer)
    for _ in range(3):
        checkpointer.look_after({}, is_final=False)

    assert answer.result(0)["message"].endswith("model_0000")
    assert sum(call.method == "save" for call in run.replicas[0].calls) == 1
