"""Whether a run is long enough for its curriculum to learn anything, told before it starts."""

from __future__ import annotations

from typing import Any

import numpy as np

from metta_ray.mettagrid.task_spec import TaskSpec

ADVISED = 2
"""So many times the outcomes that the weights need, so that they move from the middle of the run on."""


def curriculum_note(curriculum: Any, total_timesteps: int, agents_per_env: int) -> str | None:
    """A sentence for people where the curriculum's probabilities will stay as they are; None where they move, or where
    that cannot be told (a curriculum of another kind, tasks that are not of MettaGrid).

    total_timesteps: agent steps of the whole run. agents_per_env: how many of them an env step takes; where several
    ranks have a curriculum each, of all ranks together.
    """
    needed = getattr(curriculum, "outcomes_to_move", None)  # of each task, on average
    if not needed:
        return None
    rng = np.random.default_rng(0)
    drawn = [template.draw(rng) for template in curriculum.task_table().templates]
    if not all(isinstance(task, TaskSpec) for task in drawn):
        return None
    steps = agents_per_env * float(np.mean([task.max_steps for task in drawn]))  # of an episode
    episodes, tasks = total_timesteps / steps, len(drawn)
    if episodes / tasks >= needed:
        return None
    advised = ADVISED * needed * tasks
    short = int(total_timesteps / (agents_per_env * advised))
    shorter = f"episodes of at most {short} env steps (--trainer.env-overrides.max_steps {short}), or " if short else ""
    return (
        f"the curriculum will draw its {tasks} tasks alike: in {total_timesteps:,} agent steps at most {episodes:,.0f} "
        f"episodes end, {episodes / tasks:.1f} of each task, and its weights need about {needed} of each before they "
        f"move; {shorter}{round(advised * steps):,} agent steps let them move from the middle of the run on"
    )
