"""What is loaded by whom, seen in fresh processes: commands answer at once, and a coordinator is back in a moment."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.unit.test_layers import DECISIONS, ROOT, SERVICE_ONLY, dotted, layer_of, modules


def loaded_after(statement: str) -> set[str]:
    """Top-level names in ``sys.modules`` of a new process that ran ``statement``."""
    code = f"{statement}\nimport sys, json\nprint(json.dumps(sorted(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    return set(json.loads(run.stdout.splitlines()[-1]))


def test_the_coordinator_is_back_in_a_moment():
    """It loads neither torch nor an engine, and Ray restarts it by importing it."""
    loaded = loaded_after("import metta_ray.service.coordinator, metta_ray.service.ray_children")

    assert loaded & {"torch", "mettagrid"} == set()


def test_importing_the_library_loads_no_service_and_no_engine():
    loaded = loaded_after("import metta_ray.api")

    assert loaded & SERVICE_ONLY == set()
    assert "mettagrid" not in loaded, "the engine takes seconds to load; it is loaded when an environment is made"
    assert {name for name in loaded if layer_of(name) in DECISIONS and name.startswith("metta_ray.")} == set()


LIGHT = (
    "metta_ray.rl.trainer_config",
    "metta_ray.rl.presets",
    "metta_ray.rl.run_options",
    "metta_ray.rl.hyperparameter_schedule",
    "metta_ray.rl.run_directories",
    "metta_ray.mettagrid.task_spec",
    "metta_ray.mettagrid.curriculum.resolve",
    "metta_ray.mettagrid.curriculum.learning_progress",
    "metta_ray.envs.registry",
    "metta_ray.sim.simulation_config",
    "metta_ray.cli",
    "metta_ray.service.run_config",
    "metta_ray.service.connection",
    "metta_ray.jobs.client",
    "metta_ray.metrics.console",
    "metta_ray.service.sizes",
)


def test_common_configuration_and_curricula_load_neither_torch_nor_an_engine_nor_ray():
    common = [dotted(path) for path in modules() if layer_of(dotted(path)) == "common"]

    loaded = loaded_after("\n".join(f"import {name}" for name in (*common, *LIGHT)))

    assert loaded & {"torch", "mettagrid", "scipy", *SERVICE_ONLY} == set(), (
        "python -X importtime -c 'import …' tells by whom"
    )
