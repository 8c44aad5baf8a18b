"""The fixed evaluation set of bucketed navigation: 256 maps that training never draws. Loads no engine.

Four maps for each of 64 buckets (16 terrains × altars 2-5, 6-9, 10-13, 14-17); the four maps of a bucket hold
each of its numbers of altars once, 9.5 in the mean. Training's map seeds are spawned from a run's
SeedSequence and never equal these.
"""

from __future__ import annotations

from metta_ray.envs.tasks import TaskList
from metta_ray.mettagrid.task_spec import TERRAINS, FixedTask, TaskSpec

HELD_OUT_ENTROPY = 777
MAPS_PER_BUCKET = 4
ALTAR_BINS = ((2, 5), (6, 9), (10, 13), (14, 17))


def held_out_tasks() -> list[TaskSpec]:
    """256 tasks of 4 agents, in the order terrain, altar bin, map."""
    return [
        TaskSpec(terrain=terrain, altars=fewest + number, map_seed=(HELD_OUT_ENTROPY, index, altar_bin, number))
        for index, terrain in enumerate(TERRAINS)
        for altar_bin, (fewest, _most) in enumerate(ALTAR_BINS)
        for number in range(MAPS_PER_BUCKET)
    ]


def held_out_table(num_envs: int) -> TaskList:
    """The set for a vecenv of so many environments; with 256 each plays one map."""
    return fixed_table(held_out_tasks(), num_envs)


def fixed_table(specs: list[TaskSpec], num_envs: int) -> TaskList:
    """Any tasks, in order. Task ids: the kind, or terrain and altars of navigation; and the position."""
    templates = [FixedTask(spec, f"{_name(spec)};map={index}") for index, spec in enumerate(specs)]
    return TaskList.of(templates, num_envs)


def _name(spec: TaskSpec) -> str:
    return f"terrain={spec.terrain};altar={spec.altars}" if spec.kind == "navigation" else spec.kind
