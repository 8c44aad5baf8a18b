"""Does a curriculum help, and does it have to be shared? Bucketed navigation with short episodes, three arms: uniform
sampling, learning progress of all rollout workers together, and of each worker for itself. Two more tell what any
curriculum could change at most: training on only the quarter of tasks that gained most, or least, in the uniform run.

Every run has the same agent steps, the workers' environments in one process in lock-step, and the same held-out maps.
A difference is over pairs of the same map and seed; its interval is that of a bootstrap that draws seeds and maps. With
three seeds such an interval is rather too narrow, so the single differences are told as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metta_ray.bench.curriculum_run import (
    ARMS,
    HINDSIGHT,
    PER_WORKER,
    SHARED,
    UNIFORM,
    CurriculumRun,
    CurriculumTraining,
    Experiment,
)
from metta_ray.bench.machine import describe_machine
from metta_ray.common.errors import UsageError

ENOUGH = 10
"""Outcomes from which a task counts as covered."""

RESAMPLES = 2000
Array = NDArray[np.float64]


def run(
    agent_steps: int = Experiment.agent_steps,
    seeds: int = 3,
    hindsight: bool = False,
    experiment: Experiment | None = None,
) -> dict[str, Any]:
    """agent_steps: of each of the ``3 × seeds`` runs, or ``5 × seeds`` with hindsight. UsageError for numbers that
    leave nothing to compare."""
    if agent_steps < 1 or seeds < 1:
        raise UsageError(f"--agent-steps {agent_steps} --seeds {seeds} leave nothing to compare; give at least 1 each")
    experiment = experiment or Experiment(agent_steps=agent_steps)
    runs = []
    for seed in range(seeds):
        uniform = CurriculumTraining(experiment, UNIFORM, seed).run()
        gains = uniform.gains()
        others = [*ARMS[1:], *(HINDSIGHT if hindsight else ())]
        runs += [uniform, *(CurriculumTraining(experiment, arm, seed, gains).run() for arm in others)]
    return {"machine": describe_machine(), **compared(experiment, runs)}


def compared(experiment: Experiment, runs: Sequence[CurriculumRun]) -> dict[str, Any]:
    """Each arm with the same seeds, uniform sampling among them; JSON values."""
    gains = {run.seed: run.gains() for run in runs if run.arm == UNIFORM}
    arms = list(dict.fromkeys(run.arm for run in runs))
    pairs = [(arm, UNIFORM) for arm in arms if arm != UNIFORM]
    return {
        "experiment": _settings(experiment, runs[0]),
        "runs": [run.to_json() | coverage(run) | {"aim": aim(run, gains[run.seed])} for run in runs],
        "arms": {arm: float(_scores(runs, arm).mean()) for arm in arms},
        "differences": [difference(runs, *pair) for pair in [*pairs, (SHARED, PER_WORKER)]],
    }


def aim(run: CurriculumRun, gains: Array) -> float | None:
    """Mean gain of the tasks that were drawn over that of all: 1 for uniform sampling, more where a curriculum found
    those that gain most. None where nothing was gained."""
    if gains.mean() <= 0:
        return None
    return float((np.array(run.probabilities) @ gains).mean() / gains.mean())


def coverage(run: CurriculumRun) -> dict[str, Any]:
    """Shares of tasks with at least ``ENOUGH`` outcomes, of all workers together and known to the curriculum of one;
    the entropy of what is drawn from, as share of that of uniform sampling; when every task had been played once."""
    steps, workers, tasks, _ = run.outcome_arrays()
    count = len(run.task_ids)
    everyone = np.bincount(tasks, minlength=count)
    own = [np.bincount(tasks[workers == worker], minlength=count) for worker in range(run.num_workers)]
    first = [int(steps[tasks == task].min()) for task in np.unique(tasks)]
    entropies = _entropies(np.array(run.probabilities))
    return {
        "covered": float((everyone >= ENOUGH).mean()),
        "covered_by_one_worker": float(np.mean([(one >= ENOUGH).mean() for one in own])),
        "outcomes_per_task": {"fewest": int(everyone.min()), "mean": float(everyone.mean())},
        "entropy": {"mean": float(entropies.mean()), "last": float(entropies[-1])},
        "all_seen_after": max(first) if len(first) == count else None,
    }


def difference(runs: Sequence[CurriculumRun], one: str, other: str) -> dict[str, Any]:
    """Of the last scores of two arms."""
    pairs = _scores(runs, one) - _scores(runs, other)
    low, high = np.quantile(_drawn_means(pairs), [0.025, 0.975])
    return {
        "arms": [one, other],
        "mean": float(pairs.mean()),
        "low": float(low),
        "high": float(high),
        "by_seed": [float(value) for value in pairs.mean(axis=1)],
    }


def report(result: dict[str, Any]) -> str:
    """Markdown."""
    machine, experiment = result["machine"], result["experiment"]
    lines = [
        f"{machine['processor']}, {machine['cores']} cores; " + ", ".join(f"{k} {v}" for k, v in experiment.items()),
        "",
        "| arm | seed | score on held-out maps over time | covered (one worker) | entropy | aim | all seen after |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in result["runs"]:
        curve = ", ".join(f"{np.mean(scores):.3f}" for scores in row["scores"])
        aimed = "-" if row["aim"] is None else f"{row['aim']:.2f}"
        seen = "never" if row["all_seen_after"] is None else f"{row['all_seen_after']:,}"
        lines.append(
            f"| {row['arm']} | {row['seed']} | {curve} | {row['covered']:.0%} ({row['covered_by_one_worker']:.0%}) "
            f"| {row['entropy']['mean']:.3f} | {aimed} | {seen} |"
        )
    lines += ["", "| difference of last scores | mean | 95 % interval | by seed |", "| --- | --- | --- | --- |"]
    for row in result["differences"]:
        seeds = ", ".join(f"{value:+.3f}" for value in row["by_seed"])
        arms = " - ".join(row["arms"])
        lines.append(f"| {arms} | {row['mean']:+.3f} | [{row['low']:+.3f}, {row['high']:+.3f}] | {seeds} |")
    return "\n".join(lines)


def _scores(runs: Sequence[CurriculumRun], arm: str) -> Array:
    """``(seeds, maps)`` at the end."""
    return np.array([run.scores[-1] for run in runs if run.arm == arm], np.float64)


def _drawn_means(pairs: Array) -> Array:
    rng = np.random.default_rng(0)
    seeds, maps = pairs.shape
    return np.array(
        [pairs[np.ix_(rng.integers(seeds, size=seeds), rng.integers(maps, size=maps))].mean() for _ in range(RESAMPLES)]
    )


def _entropies(probabilities: Array) -> Array:
    """``(epochs, workers, tasks)`` → ``(epochs,)``, the mean over workers."""
    logs = np.log(np.where(probabilities > 0, probabilities, 1.0))
    entropies = -(probabilities * logs).sum(axis=2) / np.log(probabilities.shape[2])
    return np.asarray(entropies.mean(axis=1), np.float64)


def _settings(experiment: Experiment, run: CurriculumRun) -> dict[str, Any]:
    return {
        "agent_steps": experiment.agent_steps,
        "workers": experiment.workers,
        "tasks": len(run.task_ids),
        "max_steps": experiment.max_steps,
        **experiment.settings.model_dump(),
    }
