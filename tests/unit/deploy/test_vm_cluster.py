"""The cluster file for virtual machines: what ``ray up`` would read, checked with Ray's own code and no cloud."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import ValidationError
from ray.autoscaler._private.util import fillout_defaults, validate_config

FILE = Path(__file__).parents[3] / "deploy" / "vm" / "aws.yaml"
CLUSTER: dict[str, Any] = yaml.safe_load(FILE.read_text())
TYPES = CLUSTER["available_node_types"]


def test_rays_schema_accepts_it() -> None:
    validate_config(fillout_defaults(copy.deepcopy(CLUSTER)))


def test_rays_schema_would_find_a_misspelt_field() -> None:
    misspelt = copy.deepcopy(CLUSTER) | {"idle_timeout_minuts": 1}

    with pytest.raises(ValidationError):
        validate_config(fillout_defaults(misspelt))


def test_every_start_command_asks_for_the_token_in_so_many_words() -> None:
    for commands in (CLUSTER["head_start_ray_commands"], CLUSTER["worker_start_ray_commands"]):
        starts = [command for command in commands if "ray start" in command]
        assert starts
        assert all("RAY_AUTH_MODE=token" in command for command in starts)
    assert "~/.ray/auth_token" in CLUSTER["file_mounts"]


def test_the_dashboard_stays_on_loopback() -> None:
    assert "--dashboard-host=127.0.0.1" in CLUSTER["head_start_ray_commands"][-1]


def test_roles_have_the_resources_that_run_files_ask_for() -> None:
    assert TYPES["head"]["resources"]["CPU"] == 0
    assert TYPES["rollout"]["resources"]["rollout"] == TYPES["rollout"]["resources"]["CPU"]
    assert TYPES["learner"]["min_workers"] == TYPES["learner"]["max_workers"]
    assert TYPES["learner"]["resources"]["GPU"] == 1
    assert TYPES["evaluator"]["min_workers"] == 0


def test_only_who_may_be_lost_is_on_the_spot_market() -> None:
    for name, node in TYPES.items():
        is_spot = node["node_config"].get("InstanceMarketOptions") == {"MarketType": "spot"}
        assert is_spot == (name in ("rollout", "evaluator"))


def test_the_total_is_that_of_the_types() -> None:
    assert CLUSTER["max_workers"] == sum(node.get("max_workers", 0) for node in TYPES.values())


def test_what_is_installed_is_pinned() -> None:
    (install,) = [command for command in CLUSTER["setup_commands"] if "pip install" in command]

    assert "--constraint ~/metta_ray/docker/requirements.txt" in install
    assert (FILE.parents[2] / "docker" / "requirements.txt").exists()
