"""Measuring a machine before a run: in a process of its own, once for each question."""

from __future__ import annotations

from pathlib import Path

import pytest

from metta_ray.common.util.machine_cache import MachineCache
from metta_ray.service import measuring
from metta_ray.service.measuring import MeasuringError, measured_here
from metta_ray.service.run_config import RunConfig, load_run_config

SMALL = {"preset": "cartpole", "trainer.batch_size": "256", "trainer.minibatch_size": "128"}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "CACHE", MachineCache("runs", tmp_path))


def config_of(**words: str) -> RunConfig:
    return load_run_config(None, SMALL | {name.replace("__", "."): value for name, value in words.items()})


def test_a_machine_is_measured_once_for_the_same_question(monkeypatch: pytest.MonkeyPatch) -> None:
    first = measured_here(config_of(trainer__autocast="none"))

    assert first.times.collecting(64) > 0
    assert first.times.learning(128, update_epochs=1) > 0
    assert first.autocast == "none", "what is given stays"

    monkeypatch.setattr(measuring, "_in_a_process", lambda config: pytest.fail("measured again"))
    assert measured_here(config_of(trainer__autocast="none", trainer__total_timesteps="1000")) == first


def test_another_batch_is_another_question(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def refuse(config: RunConfig) -> dict[str, object]:
        asked.append(config.trainer.batch_size)
        raise MeasuringError("not now")

    monkeypatch.setattr(measuring, "_in_a_process", refuse)
    for size in ("256", "512"):
        with pytest.raises(MeasuringError, match="not now"):
            measured_here(config_of(trainer__batch_size=size))

    assert asked == [256, 512], "and a failure is not remembered"


def test_what_cannot_be_run_is_told() -> None:
    config = config_of(env="gym:CartPole-v1", agent__architecture="no_such_module:Network")

    with pytest.raises(MeasuringError, match="no_such_module"):
        measured_here(config)


def test_a_measurement_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "TIMEOUT_S", 0.01)

    with pytest.raises(MeasuringError, match=r"nothing was measured within 0\.01 s"):
        measured_here(config_of())
