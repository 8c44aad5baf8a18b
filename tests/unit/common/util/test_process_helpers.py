"""Heartbeat, system monitor, ranks and logging."""

import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from metta_ray.common.util.heartbeat import HeartbeatWatch, record_heartbeat
from metta_ray.common.util.logging_helpers import setup_logging
from metta_ray.common.util.ranks import is_master, process_count, process_rank
from metta_ray.common.util.system_monitor import SystemMonitor


def sleeping_process() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)


def test_a_process_without_heartbeat_is_ended_after_the_alarm(tmp_path: Path):
    process = sleeping_process()
    ages: list[float] = []
    watch = HeartbeatWatch(tmp_path / "beat", process.pid, timeout_s=0.2, check_every_s=0.05, on_stale=ages.append)

    assert watch.run() is True

    assert process.wait(timeout=10) == -15
    assert ages[0] > 0.2


def test_a_process_that_ends_by_itself_is_not_ended(tmp_path: Path):
    process = subprocess.Popen([sys.executable, "-c", ""], start_new_session=True)
    assert HeartbeatWatch(tmp_path / "beat", process.pid, timeout_s=30, check_every_s=0.05).run() is False
    assert process.wait(timeout=10) == 0


def test_a_heartbeat_makes_its_age_small(tmp_path: Path):
    path = tmp_path / "new" / "beat"
    watch = HeartbeatWatch(path, os.getpid())
    time.sleep(0.2)
    before = watch.age_s()
    record_heartbeat(path)

    assert before >= 0.2
    assert watch.age_s() < before


def test_a_heartbeat_that_cannot_be_written_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "file").touch()
    record_heartbeat(tmp_path / "file" / "beat")
    record_heartbeat(None)
    assert "cannot be written" in caplog.text


def test_the_system_monitor_samples_in_the_background_and_keeps_a_bounded_history():
    monitor = SystemMonitor(interval_s=0.01, history=5, hourly_cost=3.6)
    deadline = time.monotonic() + 10
    while len(monitor.get_history("memory_percent")) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    monitor.stop()
    monitor.sample()

    assert len(monitor.get_history("memory_percent")) == 5
    stats = monitor.stats()
    assert stats["monitor/process_memory_mb"] > 1
    assert stats["monitor/cost/hourly_total"] == 3.6
    summary = monitor.get_summary()["memory_percent"]
    assert summary["min"] <= summary["mean"] <= summary["max"]
    assert monitor.get_latest("no_such_metric") is None


def test_ranks_come_from_the_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert (process_rank(), process_count(), is_master()) == (0, 1, True)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert (process_rank(), process_count(), is_master()) == (1, 2, False)


def test_only_rank_0_speaks_below_warning(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    logger = logging.getLogger("metta_ray")
    before = (logger.handlers, logger.propagate, logger.level)
    try:
        setup_logging().info("from rank 0")
        monkeypatch.setenv("RANK", "1")
        monkeypatch.setenv("WORLD_SIZE", "2")
        setup_logging().info("quiet")
        logging.getLogger("metta_ray.rl").warning("careful")
    finally:
        logger.handlers, logger.propagate, logger.level = before[0], before[1], before[2]

    written = capsys.readouterr().err
    assert "INFO from rank 0" in written
    assert "quiet" not in written
    assert "WARNING [rank 1] careful" in written
