"""Settings for all tests: one thread per process, what runs beside what, and no skipping in CI."""

from __future__ import annotations

import os

# Before numpy and torch are imported: with several processes on few cores, more threads only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("METTAGRID_LOG_LEVEL", "WARNING")

import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# Not the user's: a test must not decide how later runs compute.
os.environ.setdefault("METTA_RAY_CACHE", str(Path(tempfile.gettempdir()) / f"metta_ray_tests_{os.getuid()}"))

# Tests that touch environments are slow by nature, and the machines that run them are shared.
settings.register_profile("metta_ray", deadline=None, print_blob=True)
settings.load_profile("metta_ray")

ROOT = Path(__file__).parents[1]
STARTS_RAY = ("tests/ray/", "tests/e2e/deploy/", "tests/e2e/test_boards.py", "tests/e2e/test_readme.py")
"""Tests of one worker: two clusters at once leave no core for what they are watched by."""


@pytest.fixture(autouse=True)
def repeatable_and_contained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Every test starts from the same random states; runs without a data_dir go to the test's own directory."""
    # Here, so that a pytest that only hands tests to its workers does not load them.
    import numpy as np
    import torch

    torch.set_num_threads(1)
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "train_dir"))
    monkeypatch.delenv("METTA_RUN", raising=False)
    for name in ("LOCAL_RANK", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    yield
    torch.set_flush_denormal(False)  # a training in this process changes it


@pytest.fixture
def repository() -> Path:
    """The root of the working tree."""
    return ROOT


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Where CI=true, the programs that a test needs must be there: a skip is a failure, unless for want of a GPU."""
    report = yield
    is_skip = report.skipped and not hasattr(report, "wasxfail")
    if os.environ.get("CI") == "true" and is_skip and "GPU" not in str(report.longrepr):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, but CI=true: {report.longrepr}"
    return report


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Two workers for folders, none for files and single tests: starting workers takes longer than most files."""
    is_for_folders = all(Path(argument).is_dir() for argument in config.args)
    return 2 if is_for_folders else 0


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Files go to the workers as a whole, as their tests share what is slow to start."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "Ray" if nodeid.startswith(STARTS_RAY) else nodeid.split("::")[0]

    return ByFile(config, log)
