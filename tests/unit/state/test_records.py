import json
import math
from dataclasses import replace

import pytest

from metta_ray.common.errors import StateStoreError
from metta_ray.state.records import EventRecord, RunRecord

RUN = RunRecord(
    name="größe-1",
    run_dir="/data/größe-1",
    state="running",
    generation=3,
    started=1_700_000_000.5,
    updated=1_700_000_010.25,
    ray_address="127.0.0.1:6379",
    dashboard_url="http://127.0.0.1:8265",
    namespace="metta-größe-1",
    driver_pid=42,
    agent_step=4096,
    total_timesteps=100_000,
    policy_version=1,
    reward=0.125,
    message="",
    config={"trainer": {"seed": 1, "betas": [0.9, 0.999]}},
)
EVENT = EventRecord("größe-1", 1_700_000_005.0, "replace", "crash: first failure of slot 2, replaced at once")


def test_records_come_back_from_json():
    assert RunRecord.from_json(json.loads(json.dumps(RUN.to_json()))) == RUN
    assert EventRecord.from_json(json.loads(json.dumps(EVENT.to_json()))) == EVENT


@pytest.mark.parametrize("reward", [math.nan, math.inf, None])
def test_a_reward_that_is_no_number_is_none_in_json(reward: float | None):
    assert replace(RUN, reward=reward).to_json()["reward"] is None


def test_keys_of_a_newer_version_are_ignored():
    assert RunRecord.from_json({**RUN.to_json(), "favourite": True}) == RUN
    assert EventRecord.from_json({**EVENT.to_json(), "colour": "red"}) == EVENT


def test_keys_added_since_an_older_version_have_defaults():
    old = {key: RUN.to_json()[key] for key in ("name", "run_dir", "state", "generation", "started", "updated")}

    assert RunRecord.from_json(old).reward is None


def test_a_missing_key_is_named():
    with pytest.raises(StateStoreError, match=r"not a EventRecord.*'text'"):
        EventRecord.from_json({"run": "a", "at": 0.0, "kind": "b"})
