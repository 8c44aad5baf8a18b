"""The front door: what it offers, where that lives, and that a whole training needs nothing else."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import metta_ray.api

ROOT = Path(__file__).parents[2]
API = ROOT / "metta_ray" / "api.py"
SEED = ROOT / "tests" / "golden" / "seed_api.md"

# Where scripts written against Metta import these from, `metta.` replaced by `metta_ray.`.
HOMES = {
    "metta_ray.agent.metta_agent": ["MettaAgent"],
    "metta_ray.agent.policy_record": ["PolicyRecord"],
    "metta_ray.agent.policy_state": ["PolicyState"],
    "metta_ray.agent.policy_store": ["PolicyStore"],
    "metta_ray.common.profiling.memory_monitor": ["MemoryMonitor"],
    "metta_ray.common.profiling.stopwatch": ["Stopwatch"],
    "metta_ray.common.util.heartbeat": ["record_heartbeat"],
    "metta_ray.common.util.system_monitor": ["SystemMonitor"],
    "metta_ray.eval.eval_stats_db": ["EvalStatsDB"],
    "metta_ray.mettagrid.curriculum.core": ["PreBuiltConfigCurriculum"],
    "metta_ray.rl.experience": ["Experience"],
    "metta_ray.rl.functions": [
        "accumulate_rollout_stats",
        "calculate_anneal_beta",
        "compute_advantage",
        "maybe_update_l2_weights",
        "perform_rollout_step",
        "process_minibatch_update",
        "process_training_stats",
        "should_run_on_interval",
    ],
    "metta_ray.rl.kickstarter": ["Kickstarter"],
    "metta_ray.rl.kickstarter_config": ["KickstartConfig", "KickstartTeacherConfig"],
    "metta_ray.rl.losses": ["Losses"],
    "metta_ray.rl.trainer_config": [
        "CheckpointConfig",
        "InitialPolicyConfig",
        "OptimizerConfig",
        "PPOConfig",
        "SimulationConfig",
        "TrainerConfig",
        "VTraceConfig",
    ],
    "metta_ray.rl.vecenv": ["make_vecenv"],
    "metta_ray.sim.simulation": ["Simulation"],
    "metta_ray.sim.simulation_config": ["SimulationSuiteConfig", "SingleEnvSimulationConfig"],
    "metta_ray.sim.simulation_suite": ["SimulationSuite"],
}
# What run.py takes beside the front door.
STANDARD_LIBRARY = {"__future__", "os", "sys", "typing"}
METRICS_SINK = "metta_ray.metrics.prometheus_exporter"  # which the library may not know, so it is passed in


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def seed_names() -> set[str]:
    """Names of the seed's Key Exports and of every import from ``metta.api`` in its code blocks."""
    text = SEED.read_text()
    listed = re.findall(r"`(\w+)`", text.split("## Key Exports")[1].replace("\n", " "))
    imported: set[str] = set()
    for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module == "metta.api":
                imported |= {alias.name for alias in node.names}
    assert len(listed) == 25
    return {*listed, *imported}


def test_every_name_of_the_seed_is_exported():
    assert seed_names() - set(metta_ray.api.__all__) == set()


def test_further_names_of_the_original_are_exported():
    further = {
        "PreBuiltConfigCurriculum",
        "RunDirectories",
        "SimulationConfig",
        "calculate_anneal_beta",
        "maybe_update_l2_weights",
        "should_run_on_interval",
    }

    assert further - set(metta_ray.api.__all__) == set()


def test_all_is_sorted_and_equals_what_is_imported():
    imported = [alias.name for node in tree_of(API).body if isinstance(node, ast.ImportFrom) for alias in node.names]

    assert metta_ray.api.__all__ == sorted(metta_ray.api.__all__)
    assert sorted(imported) == metta_ray.api.__all__


def test_api_has_no_logic():
    docstring, *rest = tree_of(API).body

    assert isinstance(docstring, ast.Expr)
    assert {type(node) for node in rest} == {ast.ImportFrom, ast.Assign}
    (assignment,) = [node for node in rest if isinstance(node, ast.Assign)]
    assert ast.unparse(assignment.targets[0]) == "__all__"


def test_every_export_is_taken_from_the_module_that_defines_it():
    for node in tree_of(API).body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                exported = getattr(metta_ray.api, alias.name)
                assert exported.__module__ == node.module, alias.name


@pytest.mark.parametrize(("module", "names"), HOMES.items(), ids=HOMES)
def test_module_paths_of_metta_scripts_exist(module: str, names: list[str]):
    imported = importlib.import_module(module)

    assert [name for name in names if not hasattr(imported, name)] == []
    for name in set(names) & set(metta_ray.api.__all__):
        assert getattr(imported, name) is getattr(metta_ray.api, name)


def test_run_py_uses_only_the_front_door():
    modules: set[str] = set()
    names: set[str] = set()
    for node in ast.walk(tree_of(ROOT / "run.py")):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add(node.module or "")
            names |= {alias.name for alias in node.names} if node.module == "metta_ray.api" else set()

    assert modules <= STANDARD_LIBRARY | {"metta_ray.api", "torch", METRICS_SINK}
    assert names <= set(metta_ray.api.__all__)


def test_run_py_is_under_250_lines():
    assert len((ROOT / "run.py").read_text().splitlines()) < 250


def test_the_ppo_loss_is_defined_once():
    found = [path for path in (ROOT / "metta_ray").rglob("*.py") if "def ppo_loss" in path.read_text()]

    assert [path.relative_to(ROOT).as_posix() for path in found] == ["metta_ray/rl/losses.py"]
    assert found[0].read_text().count("def ppo_loss") == 1


def test_help_needs_no_environment_and_starts_nothing(tmp_path: Path):
    run = subprocess.run(
        [sys.executable, str(ROOT / "run.py"), "--help"], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )

    assert run.returncode == 0, run.stderr
    assert "--trainer.ppo.clip-coef" in run.stdout
    assert list(tmp_path.iterdir()) == []
