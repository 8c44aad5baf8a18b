"""Plays a policy and remembers what came out: on request, or for the run it belongs to."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from metta_ray.agent.policy_record import PolicyRecord
from metta_ray.agent.policy_store import PolicyStore
from metta_ray.eval.eval_request_config import EvalRequestConfig, EvalResults
from metta_ray.eval.eval_stats_db import EvalStatsDB
from metta_ray.eval.evaluate_policies import evaluate_policies
from metta_ray.eval.suites import replay_for, suite_for
from metta_ray.rl.run_directories import RunDirectories
from metta_ray.sim.results import SuiteResult
from metta_ray.sim.simulation_config import SimulationSuiteConfig
from metta_ray.sim.simulation_suite import evaluate_policy

PIN_SECONDS = 3600.0
STATS_FILE = "evaluations.sqlite"


def run_evaluation(request: EvalRequestConfig, policy_store: PolicyStore | None = None) -> EvalResults:
    """Plays the suite. Scores go into the policy's own directory too, where the selector ``top`` finds them.

    The policy is pinned meanwhile, so that training, which goes on, does not delete it.
    """
    store = policy_store or PolicyStore(request.device)
    record = store.policy_record(request.policy_uri, request.selector, request.metric)
    result = _play(
        record, request.suite, store, request.stats_db_path, replay_dir=request.replay_dir, seed=request.seed
    )
    return EvalResults.of(record.uri, result)


def evaluate_run(
    record: PolicyRecord,
    env: str,
    env_overrides: dict[str, Any],
    dirs: RunDirectories,
    policy_store: PolicyStore,
    *,
    seed: int = 0,
) -> str:
    """Plays the suite that suits ``env`` with a policy and its references; returns a table and where things lie.

    Scores go into the run's database and to the policy; MettaGrid policies leave a replay.
    """
    stats_db_path = Path(dirs.stats_dir) / STATS_FILE
    with EvalStatsDB(stats_db_path) as db:
        suite = suite_for(env, env_overrides)
        table = evaluate_policies([record], suite, seed=seed, stats_db=db, policy_store=policy_store)
    score = table.score(table.labels[0])["score"]
    if score is not None:
        policy_store.add_scores(record.uri, score)
    lines = [f"evaluation of {record.run_name}", table.text(), f"results:    {stats_db_path}"]
    replay_config = replay_for(env, env_overrides)
    if replay_config is not None:
        played = evaluate_policy(record, replay_config, replay_dir=dirs.replay_dir, seed=seed)
        lines += [f"replay:     {path}" for simulation in played.simulations for path in simulation.replay_paths]
    return "\n".join(lines)


def _play(
    record: PolicyRecord,
    suite: SimulationSuiteConfig,
    store: PolicyStore,
    stats_db_path: str | None,
    *,
    replay_dir: str | None = None,
    seed: int = 0,
) -> SuiteResult:
    """Plays a suite; scores go into the database and to the policy, which is pinned meanwhile."""
    with ExitStack() as stack:
        stack.enter_context(_pinned(store, record))
        database = stack.enter_context(EvalStatsDB(stats_db_path)) if stats_db_path else None
        result = evaluate_policy(record, suite, stats_db=database, replay_dir=replay_dir, seed=seed, policy_store=store)
        if result.simulation_scores:
            store.add_scores(record.uri, result.score, result.metrics())
    return result


@contextmanager
def _pinned(store: PolicyStore, record: PolicyRecord) -> Iterator[None]:
    holder = store.pin(record.uri, holder=f"evaluation-{uuid.uuid4().hex[:8]}", seconds=PIN_SECONDS)
    try:
        yield
    finally:
        store.unpin(record.uri, holder)
