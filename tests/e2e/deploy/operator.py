"""What KubeRay's operator (v1.7) makes of a RayCluster and a RayJob: the commands that containers run.

Written after its ``pod.go`` and ``job.go``; the manifests hold parameters, these are the commands.
"""

from __future__ import annotations

import json
import math
import shlex
from typing import Any

import yaml

from tests.unit.deploy.manifests import bytes_of, cores_of, ray_container

Object = dict[str, Any]

NOT_A_SWITCH = ("log-color", "include-dashboard")
STANDARD = {"CPU": "num-cpus", "GPU": "num-gpus", "memory": "memory"}


def ray_start(group: Object, *, is_head: bool, head: str = "head:6379") -> str:
    """``ray start …`` of a group of nodes, as a line for a shell."""
    parameters = dict(group["rayStartParams"])
    custom = {}
    for name, amount in group.get("resources", {}).items():
        if name in STANDARD:
            parameters[STANDARD[name]] = amount
        else:
            custom[name] = int(amount)
    if custom:
        parameters["resources"] = f"'{json.dumps(custom)}'"
    if is_head:
        parameters.setdefault("dashboard-host", "0.0.0.0")
        parameters["no-monitor"] = "true"  # the autoscaler is a container beside it
    else:
        parameters.setdefault("address", head)
    parameters.setdefault("metrics-export-port", "8080")
    parameters.setdefault("dashboard-agent-listen-port", "52365")
    parameters["block"] = "true"
    limits = ray_container(group)["resources"]["limits"]
    parameters.setdefault("num-cpus", str(math.ceil(cores_of(limits["cpu"]))))
    parameters.setdefault("memory", str(bytes_of(limits["memory"])))
    if "nvidia.com/gpu" in limits:
        parameters.setdefault("num-gpus", limits["nvidia.com/gpu"])
    return f"ray start {'--head ' if is_head else ''}{_flags(parameters)}"


def wait_for_head(head: str) -> str:
    """What the operator's init container repeats until it succeeds."""
    return f"ray health-check --address {head}"


def submission(job: Object, *, dashboard: str, submission_id: str) -> str:
    """The submitter's command for a job that was not submitted before."""
    runtime_env = json.dumps(yaml.safe_load(job["runtimeEnvYAML"]))
    words = ["ray", "job", "submit", "--address", dashboard]
    words += ["--runtime-env-json", runtime_env, "--metadata-json", json.dumps(job["metadata"])]
    words += ["--submission-id", submission_id, "--"]
    return f"{shlex.join(words)} {job['entrypoint'].strip()}"


def _flags(parameters: dict[str, str]) -> str:
    flags = []
    for name, value in sorted(parameters.items()):
        if value.lower() in ("true", "false") and name not in NOT_A_SWITCH:
            flags += [f"--{name}"] if value.lower() == "true" else []
        else:
            flags.append(f"--{name}={value}")
    return " ".join(flags)
