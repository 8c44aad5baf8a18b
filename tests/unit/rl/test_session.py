"""The process around a training."""

from __future__ import annotations

import os
import random
import signal
import threading

import numpy as np
import pytest
import torch

from metta_ray.rl import session
from metta_ray.rl.session import StopRequest, prepare_process, prepare_thread


@pytest.fixture(autouse=True)
def _process_is_left_as_it_was():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)


def draw() -> tuple[float, float, float]:
    return torch.rand(1).item(), float(np.random.rand()), random.random()


def test_a_seed_fixes_every_generator_and_ranks_differ(monkeypatch):
    def drawn(seed: int, rank: int = 0) -> tuple[float, float, float]:
        monkeypatch.setattr(session, "setup_distributed_vars", lambda: (rank == 0, 2, rank))
        prepare_process(seed)
        return draw()

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
    assert all(one != other for one, other in zip(drawn(1, rank=0), drawn(1, rank=1), strict=True))


def test_threads_are_set(monkeypatch):
    prepare_process(0, threads=2)
    assert torch.get_num_threads() == 2
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr(session, "setup_distributed_vars", lambda: (True, 4, 0))
    prepare_process(0, threads=0)
    assert torch.get_num_threads() == 2


def test_another_thread_that_is_prepared_later_changes_nothing_here():
    prepared, go_on, found = threading.Event(), threading.Event(), []

    def copy_beside_training() -> None:
        prepare_thread(1)
        prepared.set()
        go_on.wait(10.0)
        found.append(torch.get_num_threads())

    thread = threading.Thread(target=copy_beside_training)
    thread.start()
    assert prepared.wait(10.0)
    prepare_thread(2)
    go_on.set()
    thread.join()

    assert found == [1]
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_first_signal_is_a_wish_and_the_second_acts_as_usual(number):
    heard = []
    before = signal.signal(number, lambda *_: heard.append("usual"))
    try:
        stop = StopRequest()
        assert not stop.is_set()
        signal.raise_signal(number)
        assert stop.is_set()
        assert not heard
        signal.raise_signal(number)
        assert heard == ["usual"]
        stop.restore()
        signal.raise_signal(number)
        assert heard == ["usual", "usual"]
    finally:
        signal.signal(number, before)


def test_signals_are_given_back():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    StopRequest().restore()
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    assert threading.current_thread() is threading.main_thread()
