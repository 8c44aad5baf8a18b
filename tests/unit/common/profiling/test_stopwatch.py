import contextlib
import json
import logging
import threading

import pytest

from metta_ray.common.profiling.stopwatch import Stopwatch, with_instance_timer, with_timer


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s

    def advance(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def timer(clock: Clock) -> Stopwatch:
    return Stopwatch(clock=clock)


def test_elapsed_counts_finished_and_running_stretches(timer: Stopwatch, clock: Clock):
    timer.start()
    clock.advance(2)
    assert timer.stop() == 2
    clock.advance(100)
    timer.start()
    clock.advance(3)

    assert timer.get_elapsed() == 5
    assert timer.get_last_elapsed() == 3
    assert timer.get_rate(50) == 10


def test_with_blocks_time_named_timers_even_when_they_raise(timer: Stopwatch, clock: Clock):
    with timer("_rollout"):
        clock.advance(1)
        with timer.time("_rollout.env"):
            clock.advance(2)
    with contextlib.suppress(ZeroDivisionError), timer("_train"):
        clock.advance(4)
        raise ZeroDivisionError

    assert timer.get_all_elapsed() == {"_rollout": 3, "_rollout.env": 2, "_train": 4}
    assert not timer.get_summary("_train")["is_running"]


def test_laps_are_the_time_since_the_last_checkpoint(timer: Stopwatch, clock: Clock):
    timer.start()
    clock.advance(2)
    assert timer.lap(100) == 2
    clock.advance(3)
    assert timer.get_lap_rate(160) == 20
    assert timer.lap(250) == 3

    assert (timer.get_lap_time(-1), timer.get_lap_steps(-1)) == (3, 150)
    assert (timer.get_lap_time(-2), timer.get_lap_steps(-2)) == (2, 100)
    assert timer.get_lap_time(-3) is None
    assert timer.get_lap_rate() == 50
    with pytest.raises(ValueError, match="lap_index=0"):
        timer.get_lap_time(0)


def test_lap_all_laps_every_timer_and_can_leave_the_global_one_out(timer: Stopwatch, clock: Clock):
    timer.start()
    with timer("a"):
        clock.advance(1)
    with timer("b"):
        clock.advance(2)

    assert timer.lap_all(10) == {"a": 1, "b": 2}
    clock.advance(5)
    assert timer.lap_all(20, exclude_global=False) == {"global": 5, "a": 0, "b": 0}


def test_named_checkpoints_show_in_the_summary(timer: Stopwatch, clock: Clock):
    timer.start("a")
    clock.advance(1)
    timer.checkpoint_all(7, "warm")

    assert timer.get_all_summaries()["a"]["checkpoints"][-1] == {"name": "warm", "elapsed_s": 1, "steps": 7}


def test_k30_memory_stays_bounded_over_many_laps(timer: Stopwatch, clock: Clock):
    timer.start()
    for steps in range(1000):
        clock.advance(1)
        timer.lap_all(steps, exclude_global=False)

    assert len(timer.get_summary()["checkpoints"]) == 5
    assert timer.get_lap_time(-4) == 1
    assert timer.get_lap_time(-5) is None


def test_starting_twice_and_stopping_twice_warn(timer: Stopwatch, caplog: pytest.LogCaptureFixture):
    timer.start("a")
    timer.start("a")
    timer.stop("a")
    assert timer.stop("a") == 0.0

    assert [record.getMessage() for record in caplog.records] == [
        "timer 'a' is running already",
        "timer 'a' is not running",
    ]


def test_remaining_time_follows_the_rate(timer: Stopwatch, clock: Clock, caplog: pytest.LogCaptureFixture):
    assert timer.estimate_remaining(0, 100) == (float("inf"), "unknown")
    timer.start()
    clock.advance(10)

    assert timer.estimate_remaining(100, 1000) == (90.0, "1.5 min")
    with caplog.at_level(logging.INFO):
        timer.log_progress(100, 1000)
    assert "Progress: 100/1000 (10.0%), 10 steps/s, 1.5 min remaining" in caplog.text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(45, "45 sec"), (750, "12.5 min"), (11520, "3.2 hours"), (181440, "2.1 days")],
)
def test_durations_are_readable(seconds: float, text: str):
    assert Stopwatch.format_time(seconds) == text


def test_reset_forgets_time_and_laps(timer: Stopwatch, clock: Clock):
    timer.start("a")
    clock.advance(1)
    timer.lap(5, "a")
    timer.reset("a")
    assert timer.get_elapsed("a") == 0
    timer.start()
    clock.advance(1)
    timer.reset_all()
    assert timer.get_all_elapsed(exclude_global=False) == {"global": 0, "a": 0}


def test_saved_state_continues_in_another_process(timer: Stopwatch, clock: Clock):
    timer.start()
    with timer("a"):
        clock.advance(4)
    timer.lap_all(100)
    clock.advance(1)
    state = json.loads(json.dumps(timer.save_state()))

    later = Clock()
    later.now_s = 5.0  # another process has another clock
    restored = Stopwatch(clock=later)
    restored.load_state(state)
    later.advance(2)

    assert restored.get_elapsed() == 7
    assert restored.get_elapsed("a") == 4
    assert restored.get_lap_rate(130) == 10
    restored.load_state(state, resume_running=False)
    later.advance(9)
    assert restored.get_elapsed() == 5


def test_decorators_time_functions_and_methods(timer: Stopwatch, clock: Clock):
    @with_timer(timer)
    def work(seconds: float) -> str:
        clock.advance(seconds)
        return "done"

    class Trainer:
        def __init__(self) -> None:
            self.timer = timer

        @with_instance_timer("_train")
        def train(self) -> None:
            clock.advance(2)

    assert work(3) == "done"
    Trainer().train()
    assert timer.get_all_elapsed() == {"work": 3, "_train": 2}


def test_a_timer_knows_the_file_that_started_it(timer: Stopwatch):
    with timer("a"):
        pass
    assert timer.get_filename("a") == "test_stopwatch.py"
    assert timer.get_filename("never") == "unknown"


def test_threads_may_share_a_stopwatch():
    timer = Stopwatch()

    def work(name: str) -> None:
        for step in range(200):
            with timer(name):
                timer.lap(step, name)

    threads = [threading.Thread(target=work, args=(f"t{index}",)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert {name: summary["laps"] for name, summary in timer.get_all_summaries().items()} == {
        "global": 0,
        **{f"t{index}": 200 for index in range(4)},
    }
