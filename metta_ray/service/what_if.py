"""How fast a run would be with other numbers of workers and replicas: the table of ``metta-ray plan``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from metta_ray.common.errors import ConfigError
from metta_ray.control.plan import Layout, Prediction, Resources, best_layout, next_lever, predict
from metta_ray.control.rates import ServiceTimes
from metta_ray.metrics.tables import plain_table
from metta_ray.service.layout import job_of
from metta_ray.service.run_config import RunConfig


@dataclass(frozen=True)
class WhatIf:
    layout: Layout
    prediction: Prediction
    lever: str


def what_if(config: RunConfig, times: ServiceTimes, agents_per_env: int, resources: Resources) -> list[WhatIf]:
    """For the configuration's workers and replicas, and for fewer and more of them, with the environments per worker
    that suit each. ConfigError if the batch cannot be shared by the configuration's replicas."""
    job = job_of(config, agents_per_env)
    rows = config.rollout.num_envs * agents_per_env or config.rollout.fragment_steps // job.horizon or None
    answers = []
    wanted = config.learner.replicas or 1
    for replicas in _around(wanted):
        for workers in _around(config.rollout.num_workers or 1):
            try:
                layout = best_layout(
                    times, job, resources, workers=workers, replicas=replicas, rows=rows, threads=config.learner.threads
                )
            except ConfigError:
                if replicas == wanted:
                    raise
                continue
            lever = next_lever(times, job, layout, resources)
            answers.append(WhatIf(layout, predict(times, job, layout, resources), lever.text if lever else "-"))
    return answers


def read_times(path: str) -> ServiceTimes:
    """Times that were measured elsewhere; ConfigError for a file that is none of them."""
    try:
        return ServiceTimes.from_json(json.loads(Path(path).read_text()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"measured={path!r} holds no service times: {error!r}") from None


def table(answers: Sequence[WhatIf], times: ServiceTimes, config: RunConfig, resources: Resources) -> str:
    where = (
        "each rollout worker has a core of its own, each learner replica a core (or what it was measured on)"
        if resources.cores is None
        else f"all share {resources.cores:g} cores"
    )
    headers = (
        "workers",
        "replicas",
        "agents each",
        "agent steps/s",
        "of floor",
        "limited by",
        "fragments/s",
        "MB/s",
        "next",
    )
    rows = [
        [
            answer.layout.workers,
            answer.layout.replicas,
            answer.layout.rows,
            round(answer.prediction.agent_steps_per_second),
            f"{answer.prediction.efficiency:.0%}",
            answer.prediction.limited_by,
            round(answer.prediction.fragments_per_second, 1),
            round(answer.prediction.network_bytes_per_second / 1e6, 1),
            answer.lever,
        ]
        for answer in answers
    ]
    trainer, last = config.trainer, answers[-1].layout
    minibatch = trainer.minibatch_size / last.replicas
    costs = (
        f"environment {1e6 * times.environment.at(last.rows):.1f}, "
        f"inference {1e6 * times.inference.at(last.rows):.1f}, "
        f"training {1e6 * times.training.at(minibatch):.1f} × {trainer.update_epochs}, "
        f"look again {1e6 * times.look_again:.1f}, transport and staging {1e6 * (times.transport + times.staging):.1f}"
    )
    return "\n".join(
        [
            f"batches of {trainer.batch_size:,} agent steps, minibatches of {trainer.minibatch_size:,}; {where}",
            f"microseconds per agent step on one core ({last.rows} agents, {last.replicas} replicas): {costs}",
            "",
            *plain_table(headers, rows),
        ]
    )


def _around(count: int) -> list[int]:
    """Powers of two from a quarter of a number to twice it, and the number itself; a small one from 1 on."""
    powers = {2**power for power in range(12)}
    return sorted({1, count} | {power for power in powers if count / 4 <= power <= 2 * count})
