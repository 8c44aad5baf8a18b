"""A run in numbers, for ``metta-ray status`` and the state store: plain JSON values, made from the living parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from metta_ray.service.learner_group import LearnerGroup, Replica
from metta_ray.service.rollout_pool import RolloutPool
from metta_ray.service.wiring import Parts


def facts_before_opening(wanted: int, useful: int) -> dict[str, Any]:
    """The same names while nothing is there yet, so that whoever asks early need not ask differently."""
    none = {"wanted": wanted, "ready": 0, "starting": 0, "draining": 0, "useful": useful, "started": 0, "list": []}
    return {
        "agent_step": 0,
        "policy_version": 0,
        "epoch": 0,
        "workers": none,
        "learners": [],
        "failures": {},
        "best": None,
        "evaluations": {},
    }


def facts_of(parts: Parts, epoch: Mapping[str, Any]) -> dict[str, Any]:
    """All of a run's status that its parts know. epoch: record of the last one."""
    ledger, newest = parts.books.ledger, parts.checkpointer.newest
    counts = workers_of(parts.pool, parts.count.wanted, parts.sizes.useful_workers)
    return {
        "generation": parts.books.generation,
        "agent_step": ledger.agent_step,
        "total_timesteps": parts.pipeline.total_timesteps,
        "policy_version": ledger.version,
        "epoch": ledger.version,
        "reward": epoch.get("reward"),
        "agent_steps_per_second": epoch.get("agent_steps_per_second"),
        "efficiency": epoch.get("efficiency"),
        "staleness": epoch.get("staleness"),
        "bottleneck": epoch.get("bottleneck"),
        "workers": {**counts, "started": parts.books.next_number["rollout"], "list": worker_list(parts.pool)},
        "learners": learner_list(parts.learners),
        "ledger": ledger.totals(),
        "failures": failures_of(parts.pool, parts.learners),
        "checkpoint": {
            "path": newest.path if newest else None,
            "epoch": newest.version if newest else None,
            "age_s": round(parts.clock() - newest.at, 1) if newest else None,
            "write_seconds": newest.saved.seconds if newest and newest.saved else None,
            "size_bytes": newest.saved.size_bytes if newest and newest.saved else None,
            "failures": parts.checkpointer.failures,
            "all_failures": parts.checkpointer.all_failures,
        },
        **parts.evaluations.facts(),
        "settings": dict(parts.books.settings),
        "unwritten_events": parts.books.unwritten,
        "bytes_outstanding": parts.pipeline.bytes_outstanding,
        "byte_budget": parts.pipeline.byte_budget,
    }


def workers_of(pool: RolloutPool, wanted: int, useful: int) -> dict[str, int]:
    """Counts alone, for a line of progress."""
    return {
        "wanted": wanted,
        "ready": len(pool.ready),
        "starting": len(pool.starting),
        "draining": len(pool.draining),
        "useful": useful,
    }


def worker_list(pool: RolloutPool) -> list[dict[str, Any]]:
    """One entry per living worker, by slot."""
    members = dict.fromkeys([*(pool.members[slot] for slot in sorted(pool.members)), *pool.draining])
    return [
        {
            "stream": member.number,
            "slot": member.slot,
            "state": member.state.value,
            "pid": member.info.pid if member.info else None,
            "host": member.info.host if member.info else None,
            "node": member.info.node_id if member.info else None,
            "tickets": len(member.orders),
            "fragments": member.fragments,
            "restarts": pool.restarts(member.slot),
            "rss_bytes": member.info.rss_bytes if member.info else None,
            "incarnation": member.child.identity.incarnation,
        }
        for member in members
    ]


def learner_list(learners: LearnerGroup) -> list[dict[str, Any]]:
    """One entry per replica, by rank; newcomers have none yet."""
    seats: list[tuple[int | None, str, Replica]] = [
        (rank, "training" if learners.update else "ready", member) for rank, member in enumerate(learners.members)
    ]
    seats += [(None, "joining", member) for member in learners.newcomers]
    return [
        {
            "name": f"learner-{replica.number}",
            "rank": rank,
            "state": state,
            "pid": replica.info.pid if replica.info else None,
            "host": replica.info.host if replica.info else None,
            "node": replica.info.node_id if replica.info else None,
        }
        for rank, state, replica in seats
    ]


def failures_of(pool: RolloutPool, learners: LearnerGroup) -> dict[str, int]:
    """Cause → how often since this coordinator started."""
    counts = {cause.value: count for cause, count in pool.failures.items()}
    return counts | {"learner": learners.failures, "repeated_updates": learners.repeated_updates}
