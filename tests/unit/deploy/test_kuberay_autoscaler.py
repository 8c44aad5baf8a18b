"""Ray's own autoscaler understands the manifests, and the nodes it can add hold the runs that come with them."""

from __future__ import annotations

import pytest
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

from metta_ray.service.run_config import RunConfig, load_run_config
from metta_ray.service.sizes import resolved_sizes
from tests.unit.deploy.kustomization import Object
from tests.unit.deploy.manifests import KUBERAY, OVERLAYS, one

AGENTS_PER_ENVIRONMENT = 4

in_every_overlay = pytest.mark.parametrize("name", OVERLAYS)


def node_types(name: str) -> dict[str, Object]:
    types: dict[str, Object] = _derive_autoscaling_config_from_ray_cr(one(f"overlays/{name}", "RayCluster"))[
        "available_node_types"
    ]
    return types


def run_config(name: str) -> RunConfig:
    return load_run_config(KUBERAY / "overlays" / name / "run.yaml", {})


@in_every_overlay
def test_the_autoscaler_reads_the_groups_with_their_resources(name: str) -> None:
    types = node_types(name)

    assert set(types) == {"headgroup", "rollout", "learner", "evaluator"}
    assert types["headgroup"]["resources"]["CPU"] == 0
    assert types["rollout"]["resources"]["rollout"] == types["rollout"]["resources"]["CPU"] > 0
    assert types["evaluator"]["resources"]["evaluator"] >= 1
    assert types["evaluator"]["min_workers"] == 0


@in_every_overlay
def test_the_largest_number_of_rollout_workers_has_room(name: str) -> None:
    config, node = run_config(name), node_types(name)["rollout"]

    most = config.rollout.max_workers or config.rollout.num_workers
    need = {"CPU": config.rollout.num_cpus, **config.rollout.resources}
    per_node = min(node["resources"][resource] // amount for resource, amount in need.items())

    assert "rollout" in need, "workers stay off the learners' nodes"
    assert per_node * node["max_workers"] >= most


@in_every_overlay
def test_the_learners_have_room_without_being_asked_for(name: str) -> None:
    config, node = run_config(name), node_types(name)["learner"]
    learner = config.learner

    assert node["resources"]["CPU"] >= learner.num_cpus
    assert node["resources"].get("GPU", 0) >= learner.num_gpus
    assert node["min_workers"] >= learner.replicas >= 1
    assert (learner.device == "cuda") == ("GPU" in node["resources"])


@in_every_overlay
def test_an_evaluation_brings_a_node_of_its_own(name: str) -> None:
    evaluator = run_config(name).evaluator

    assert evaluator.resources["evaluator"] <= node_types(name)["evaluator"]["resources"]["evaluator"]


@in_every_overlay
def test_the_sizes_of_the_run_fit_together_and_all_workers_can_be_busy(name: str) -> None:
    config = run_config(name)
    most = config.rollout.max_workers or config.rollout.num_workers

    sizes = resolved_sizes(config, AGENTS_PER_ENVIRONMENT)

    assert sizes.useful_workers >= most


@in_every_overlay
def test_the_config_map_holds_the_run_file(name: str) -> None:
    config_map = one(f"overlays/{name}", "ConfigMap", "metta-ray-run")

    assert yaml.safe_load(config_map["data"]["run.yaml"])["evaluator"]
    assert config_map["data"]["run.yaml"] == (KUBERAY / "overlays" / name / "run.yaml").read_text()
