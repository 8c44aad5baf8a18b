"""A run keeps the way of computing that it began with."""

import pytest
import yaml

from metta_ray.agent.formulations import Formulation
from metta_ray.bench.synthetic import navigation_spec
from metta_ray.rl import formulation
from metta_ray.rl.formulation import recorded_formulation, resolve_formulation
from metta_ray.rl.run_options import RunOptions

SPEC = navigation_spec()
FAST_HERE = Formulation("bf16", False)


@pytest.fixture(autouse=True)
def _machine(monkeypatch):
    """A machine where bfloat16 over a dense box is the fastest."""

    def choose(spec, config, autocast, *, device, segments):
        gather = FAST_HERE.gather_conv if config.gather_conv is None else config.gather_conv
        return Formulation(FAST_HERE.autocast if autocast == "auto" else autocast, gather)

    monkeypatch.setattr(formulation, "choose_formulation", choose)


def options(tmp_path, **fields):
    open_ones = {"agent": {"architecture": "light"}, "trainer": {"autocast": "auto"}}
    return RunOptions(run="first", data_dir=str(tmp_path), **{**open_ones, **fields})


def chosen(resolved):
    return Formulation(resolved.trainer.autocast, resolved.agent["gather_conv"])


def write_record(tmp_path, trainer, agent):
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "config.yaml").write_text(yaml.safe_dump({"trainer": trainer, "agent": agent}))


def test_a_new_run_takes_what_is_fastest(tmp_path):
    assert chosen(resolve_formulation(options(tmp_path), SPEC, "cpu")) == FAST_HERE


def test_a_run_that_goes_on_keeps_its_own(tmp_path):
    write_record(tmp_path, {"autocast": "none"}, {"gather_conv": True})
    assert chosen(resolve_formulation(options(tmp_path), SPEC, "cpu")) == Formulation("none", True)
    assert chosen(resolve_formulation(options(tmp_path, fresh=True), SPEC, "cpu")) == FAST_HERE


def test_what_the_user_says_goes_before_both(tmp_path):
    write_record(tmp_path, {"autocast": "bf16"}, {"gather_conv": True})
    said = options(tmp_path, trainer={"autocast": "none"}, agent={"architecture": "light", "gather_conv": False})
    assert chosen(resolve_formulation(said, SPEC, "cpu")) == Formulation("none", False)


@pytest.mark.parametrize("text", ["", "{", "trainer: {autocast: auto}\nagent: {}", "trainer: {}", "- 1", "trainer: 3"])
def test_a_record_that_says_nothing_is_none(tmp_path, text):
    assert recorded_formulation(tmp_path) is None
    (tmp_path / "config.yaml").write_text(text)
    assert recorded_formulation(tmp_path) is None
