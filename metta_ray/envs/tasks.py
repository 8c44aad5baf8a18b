"""Tasks as the environments see them: a table of weighted templates, and what came out of an episode.

The curriculum lives with the trainer, the environments elsewhere (in this process, in worker processes, on
other machines). What travels is the table, one way, and results, the other way; environments draw their own
tasks from the table, so that the end of an episode costs no round trip.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class TaskTemplate(Protocol):
    """A family of tasks. ``draw`` turns it into one concrete task with the episode's own randomness."""

    @property
    def task_id(self) -> str:
        """Stable name under which results are reported, e.g. ``terrain=…;altar=…``."""
        ...

    def draw(self, rng: np.random.Generator) -> Any:
        """The concrete task, a picklable value that the environment understands."""
        ...


@dataclass(frozen=True)
class TaskWeights:
    """What changes of a table, and so all of it that travels: templates are built from the configuration everywhere.

    numbers: int64, which generated task each place of a pool holds; None for a fixed set of tasks.
    """

    version: int
    probabilities: NDArray[np.float64]
    numbers: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class TaskTable:
    """Versioned sampling weights over task templates.

    templates: fixed for the life of a curriculum in the simple case; may change with the version.
    probabilities: float64, same length, sum 1.
    """

    version: int
    templates: tuple[TaskTemplate, ...]
    probabilities: NDArray[np.float64]

    @property
    def weights(self) -> TaskWeights:
        return TaskWeights(self.version, self.probabilities)

    def with_weights(self, weights: TaskWeights) -> TaskTable:
        """This table as another process has it now."""
        return TaskTable(weights.version, self.templates, weights.probabilities)

    def draw(self, rng: np.random.Generator, env_index: int = 0, episode: int = 0) -> tuple[str, Any]:
        """(task id, concrete task) for an environment's episode, drawn with ``rng``."""
        del env_index, episode  # chance alone decides here
        index = 0 if len(self.templates) == 1 else int(rng.choice(len(self.templates), p=self.probabilities))
        template = self.templates[index]
        return template.task_id, template.draw(rng)


@dataclass(frozen=True)
class TaskList(TaskTable):
    """Tasks that are played in order instead of drawn: a fixed evaluation set.

    Environment ``i`` plays template ``i`` first, then ``i + num_envs``, and so on, around the list's end.
    num_envs: environments of the whole vecenv; with as many as templates each plays its own one for ever.
    """

    num_envs: int = 1

    @classmethod
    def of(cls, templates: Sequence[TaskTemplate], num_envs: int) -> TaskList:
        count = len(templates)
        return cls(0, tuple(templates), np.full(count, 1 / count), num_envs)

    def draw(self, rng: np.random.Generator, env_index: int = 0, episode: int = 0) -> tuple[str, Any]:
        template = self.templates[(env_index + episode * self.num_envs) % len(self.templates)]
        return template.task_id, template.draw(rng)


@dataclass(frozen=True)
class EpisodeResult:
    """One finished episode of one environment.

    env_index: global index of the environment in its vecenv. episode: its running number there, from 0.
    returns: float32 ``(agents,)``, sum of rewards per agent. length: env steps.
    score: what the curriculum learns from; the environment's own measure in [0, 1] where it has one
        (hearts gathered / hearts there are), else the mean return.
    reported: False for an episode cut short on purpose (staggered starts); such results count nowhere.
    terminated, truncated: how it ended. seed: entropy words that reproduce the episode.
    stats: nested numbers for monitoring (``agent/…``, ``game/…``, ``attributes/…``).
    """

    env_index: int
    episode: int
    task_id: str
    returns: NDArray[np.float32]
    length: int
    score: float
    terminated: bool
    truncated: bool
    reported: bool = True
    seed: tuple[int, ...] = ()
    stats: dict[str, Any] = field(default_factory=dict)


class Curriculum(Protocol):
    """Who chooses tasks. Implementations: ``metta_ray.mettagrid.curriculum``; vecenvs know only this."""

    def task_table(self) -> TaskTable:
        """The current table. Cheap when nothing changed: the same object is returned for the same version."""
        ...

    def complete_task(self, task_id: str, score: float) -> None:
        """Learn from one finished episode."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """JSON values and numpy arrays only."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...
