"""A question that takes long keeps nobody waiting."""

from __future__ import annotations

import threading
import time

from metta_ray.service.background import LastAnswer


def test_the_last_answer_is_there_at_once_and_one_question_is_open_at_a_time():
    asked = threading.Semaphore(0)
    answers = iter(range(1, 10))
    may_answer = threading.Event()

    def ask() -> int:
        asked.release()
        may_answer.wait(30.0)
        return next(answers)

    last = LastAnswer(ask, first=0, name="test")

    assert [last.get() for _ in range(3)] == [0, 0, 0]
    assert asked.acquire(timeout=30.0)
    assert not asked.acquire(blocking=False)
    may_answer.set()
    deadline = time.monotonic() + 30.0
    while (answer := last.get()) == 0:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    assert answer >= 1
