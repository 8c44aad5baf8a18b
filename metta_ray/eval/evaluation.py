"""Answers an evaluation request: finds the policy, plays, stores what came out."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from metta_ray.agent.policy_record import PolicyRecord
from metta_ray.agent.policy_store import PolicyStore
from metta_ray.eval.eval_request_config import EvalRequestConfig, EvalResults
from metta_ray.eval.eval_stats_db import EvalStatsDB
from metta_ray.sim.simulation_suite import evaluate_policy

PIN_SECONDS = 3600.0


def run_evaluation(request: EvalRequestConfig, policy_store: PolicyStore | None = None) -> EvalResults:
    """Plays the suite. Scores go into the policy's own directory too, where the selector ``top`` finds them.

    The policy is pinned meanwhile, so that training, which goes on, does not delete it.
    """
    store = policy_store or PolicyStore(request.device)
    record = store.policy_record(request.policy_uri, request.selector, request.metric)
    with ExitStack() as stack:
        stack.enter_context(_pinned(store, record))
        database = stack.enter_context(EvalStatsDB(request.stats_db_path)) if request.stats_db_path else None
        result = evaluate_policy(
            record,
            request.suite,
            stats_db=database,
            replay_dir=request.replay_dir,
            seed=request.seed,
            policy_store=store,
        )
        if result.simulation_scores:
            store.add_scores(record.uri, result.score, result.metrics())
    return EvalResults.of(record.uri, result)


@contextmanager
def _pinned(store: PolicyStore, record: PolicyRecord) -> Iterator[None]:
    holder = store.pin(record.uri, holder=f"evaluation-{uuid.uuid4().hex[:8]}", seconds=PIN_SECONDS)
    try:
        yield
    finally:
        store.unpin(record.uri, holder)
