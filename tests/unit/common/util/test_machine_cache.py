import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from metta_ray.common.util.machine_cache import MachineCache, cache_directory, machine


class Counting:
    def __init__(self, answer: object) -> None:
        self.answer = answer
        self.calls = 0

    def __call__(self) -> object:
        self.calls += 1
        return self.answer


def test_the_second_question_is_answered_without_measuring(tmp_path: Path) -> None:
    measure = Counting({"precision": "none", "seconds": 0.5})
    answers = [MachineCache("rates", tmp_path).get_or_measure({"rows": 64}, measure) for _ in range(2)]
    assert answers == [measure.answer] * 2
    assert measure.calls == 1


def test_other_keys_and_other_names_are_other_questions(tmp_path: Path) -> None:
    for number, (name, key) in enumerate([("rates", {"rows": 64}), ("rates", {"rows": 65}), ("other", {"rows": 64})]):
        assert MachineCache(name, tmp_path).get_or_measure(key, Counting(number)) == number


def test_another_machine_measures_for_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = MachineCache("rates", tmp_path)
    cache.get_or_measure({}, Counting(1))
    there = machine() | {"cores": 4096}
    monkeypatch.setattr("metta_ray.common.util.machine_cache.machine", lambda: there)
    assert cache.get_or_measure({}, Counting(2)) == 2


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"question": {}, "answer": 1}', "\x00" * 10])
def test_a_damaged_file_is_measured_again_and_replaced(tmp_path: Path, content: str) -> None:
    cache = MachineCache("rates", tmp_path)
    cache.get_or_measure({"rows": 1}, Counting(1))
    cache.path({"rows": 1}).write_text(content)
    assert cache.get_or_measure({"rows": 1}, Counting(2)) == 2
    assert cache.get_or_measure({"rows": 1}, Counting(3)) == 2


def test_where_nothing_can_be_written_it_measures_each_time(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = MachineCache("rates", tmp_path / "file")
    assert [cache.get_or_measure({}, Counting(n)) for n in (1, 2)] == [1, 2]


def test_errors_of_the_measurement_are_the_callers_and_nothing_is_kept(tmp_path: Path) -> None:
    cache = MachineCache("rates", tmp_path)

    def fails() -> None:
        raise RuntimeError("no clock")

    with pytest.raises(RuntimeError, match="no clock"):
        cache.get_or_measure({}, fails)
    assert cache.get_or_measure({}, Counting(1)) == 1


def _ask(directory: Path) -> None:
    for number in range(20):
        answer = MachineCache("rates", directory).get_or_measure({"number": number}, lambda n=number: [n] * 1000)
        assert answer == [number] * 1000


def test_many_processes_at_once_leave_whole_files(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_ask, args=(tmp_path,)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert len(list(tmp_path.iterdir())) == 20
    assert all(json.loads(path.read_text())["answer"] for path in tmp_path.iterdir())


def _ask_at_once(directory: Path, number: int, barrier: Any, answers: Any) -> None:
    def measure() -> int:
        barrier.wait()
        return number

    answers.put(MachineCache("rates", directory).get_or_measure({}, measure))


def test_processes_that_are_done_at_the_same_moment_all_get_one_answer(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    for attempt in range(20):
        barrier, answers = context.Barrier(4), context.Queue()
        arguments = [(tmp_path / str(attempt), number, barrier, answers) for number in range(4)]
        processes = [context.Process(target=_ask_at_once, args=one) for one in arguments]
        for process in processes:
            process.start()
        assert len({answers.get(timeout=30) for _ in processes}) == 1
        for process in processes:
            process.join()


def test_directory_is_the_users_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METTA_RAY_CACHE", "/somewhere")
    assert cache_directory() == Path("/somewhere")
    monkeypatch.delenv("METTA_RAY_CACHE")
    monkeypatch.setenv("HOME", "/home/someone")
    assert cache_directory() == Path("/home/someone/.cache/metta_ray")


def test_of_two_who_measure_at_once_the_first_who_is_done_is_right(tmp_path: Path) -> None:
    cache = MachineCache("rates", tmp_path)

    def slow() -> int:
        assert cache.get_or_measure({}, Counting(1)) == 1
        return 2

    assert cache.get_or_measure({}, slow) == 1
    assert cache.get_or_measure({}, Counting(3)) == 1


def test_answers_are_kept_where_the_file_system_knows_no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError("Operation not permitted")

    monkeypatch.setattr("os.link", refused)
    cache = MachineCache("rates", tmp_path)
    assert [cache.get_or_measure({}, Counting(n)) for n in (1, 2)] == [1, 1]
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"]
