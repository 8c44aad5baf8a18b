"""Runs on a real Ray, in processes of their own. See ``harness`` for what a test can do with them."""

from __future__ import annotations

import os

os.environ["RAY_AUTH_MODE"] = "disabled"  # read when Ray is loaded; never left to what lies in a home directory
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ray.harness import Lab, living_runs


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[pytest.TestReport]:
    """A failure comes with what is known of the runs: output, ledger, last records of the journal, status."""
    report: pytest.TestReport = yield
    if report.failed:
        report.sections += [(f"run {run.name}", run.describe()) for run in living_runs()]
    return report


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """A place for the runs of one test."""
    place = Lab(tmp_path)
    yield place
    place.end()


@pytest.fixture(scope="module")
def shared_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A place for runs that the tests of a file share."""
    place = Lab(tmp_path_factory.mktemp("lab"))
    yield place
    place.end()
