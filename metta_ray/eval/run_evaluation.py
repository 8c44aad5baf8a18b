"""Evaluation of one policy of a run: played, stored in the run's database, remembered with the policy, shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from metta_ray.agent import policy_files
from metta_ray.agent.policy_record import PolicyRecord
from metta_ray.eval.eval_stats_db import EvalStatsDB
from metta_ray.rl.run_directories import RunDirectories
from metta_ray.sim.players import RandomPlayer
from metta_ray.sim.simulation_config import SimulationSuiteConfig, SingleEnvSimulationConfig
from metta_ray.sim.simulation_suite import (
    create_evaluation_config_suite,
    create_replay_config,
    evaluate_policy,
)

STATS_FILE = "evaluations.sqlite"
EPISODES = 20


def evaluate_run(
    record: PolicyRecord, env: str, env_overrides: dict[str, Any], dirs: RunDirectories, *, seed: int = 0
) -> str:
    """Plays the suite that suits ``env`` with a policy and at random; returns a table and where things lie.

    Scores go into the run's database and into the policy's metadata, where PolicyStore's selector ``top`` finds
    them; MettaGrid policies leave a replay.
    """
    suite = suite_for(env, env_overrides)
    with EvalStatsDB(Path(dirs.stats_dir) / STATS_FILE) as stats_db:
        result = evaluate_policy(record, suite, stats_db=stats_db, seed=seed)
    random = evaluate_policy(RandomPlayer(), suite, seed=seed)
    assert record.file_path is not None
    policy_files.add_scores(record.file_path, {"score": result.score, "eval_scores": result.metrics()})
    lines = [
        f"evaluation of {record.run_name} (returns per agent; the last column is a random policy)",
        result.table([random]),
        f"results:    {stats_db.path}",
    ]
    replay_config = replay_for(env, env_overrides)
    if replay_config is not None:
        played = evaluate_policy(record, replay_config, replay_dir=dirs.replay_dir, seed=seed)
        lines += [f"replay:     {path}" for simulation in played.simulations for path in simulation.replay_paths]
    return "\n".join(lines)


def suite_for(env: str, env_overrides: dict[str, Any]) -> SimulationSuiteConfig:
    """Navigation in three sizes for the navigation curricula, else the training environment itself."""
    if _is_navigation(env):
        suite = create_evaluation_config_suite()
        changed = {
            name: simulation.model_copy(update={"env_overrides": {**env_overrides, **simulation.env_overrides}})
            for name, simulation in suite.simulations.items()
        }
        return suite.model_copy(update={"simulations": changed})
    name = env.strip("/").replace(":", "/", 1)
    simulation = SingleEnvSimulationConfig(env=env, num_episodes=EPISODES, env_overrides=env_overrides)
    return SimulationSuiteConfig(name="evaluation", num_episodes=EPISODES, simulations={name: simulation})


def replay_for(env: str, env_overrides: dict[str, Any]) -> SingleEnvSimulationConfig | None:
    """One episode to look at; None where there are no replays (other than MettaGrid)."""
    if _is_navigation(env):
        return create_replay_config().model_copy(
            update={"env_overrides": {**env_overrides, **create_replay_config().env_overrides}}
        )
    if env.startswith(("mettagrid:", "/")):
        return SingleEnvSimulationConfig(env=env, num_episodes=1, env_overrides=env_overrides)
    return None


def _is_navigation(env: str) -> bool:
    return "curriculum/navigation" in env or env in ("mettagrid:bucketed", "mettagrid:navigation")
