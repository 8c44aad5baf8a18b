"""Curricula of curricula: one chooses among them, each chooses among its tasks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metta_ray.common.errors import ConfigError
from metta_ray.envs.tasks import TaskTemplate
from metta_ray.mettagrid.curriculum.core import Curriculum
from metta_ray.mettagrid.task_spec import TaskSpec


@dataclass(frozen=True)
class NamedTask:
    """A template under a longer name."""

    task_id: str
    template: TaskTemplate

    def draw(self, rng: np.random.Generator) -> TaskSpec:
        task: TaskSpec = self.template.draw(rng)
        return task


class NestedCurriculum(Curriculum):
    """Task ids are ``child/task``. P(task) = P(child) by ``chooser`` · P(task within the child). A result is learned
    from twice: by the child about its task, and by the chooser about the child.

    chooser: a curriculum whose task ids are the children's names; its templates are never drawn from.
    """

    def __init__(self, chooser: Curriculum, children: Mapping[str, Curriculum], seed: int = 0) -> None:
        if chooser.task_ids != tuple(children):
            raise ConfigError(f"the chooser's tasks {chooser.task_ids} are not the children {tuple(children)}")
        for name, child in children.items():
            if child.task_table().weights.numbers is not None:
                raise ConfigError(
                    f"{name!r} is a pool of tasks, which come and go; it cannot be part of another curriculum"
                )
        self.chooser = chooser
        self.children = dict(children)
        self._parts = [(name, child, task_id) for name, child in children.items() for task_id in child.task_ids]
        templates = [
            NamedTask(f"{name}/{template.task_id}", template)
            for name, child in children.items()
            for template in child.task_table().templates
        ]
        super().__init__(templates, self._products(), seed)

    def get_curriculum_stats(self) -> dict[str, float]:
        chosen = self.chooser.get_task_probs()
        return {**super().get_curriculum_stats(), **{f"nested/{name}": share for name, share in chosen.items()}}

    def _learn(self, index: int, score: float) -> None:
        name, child, task_id = self._parts[index]
        before = self.chooser.task_table(), child.task_table()
        child.complete_task(task_id, score)
        self.chooser.complete_task(name, score)
        if (self.chooser.task_table(), child.task_table()) != before:
            self._set_probabilities(self._products())

    def _products(self) -> NDArray[np.float64]:
        shares = self.chooser.task_table().probabilities
        parts = [
            share * child.task_table().probabilities
            for share, child in zip(shares, self.children.values(), strict=True)
        ]
        products = np.concatenate(parts)
        return np.asarray(products / products.sum(), dtype=np.float64)

    def _progress(self) -> NDArray[np.float64] | None:
        parts = [child._progress() for child in self.children.values()]
        if all(part is None for part in parts):
            return None
        filled = [
            np.zeros(len(child.task_ids)) if part is None else part
            for part, child in zip(parts, self.children.values(), strict=True)
        ]
        return np.concatenate(filled)

    def _learner_state(self) -> dict[str, Any]:
        return {
            "chooser": self.chooser.state_dict(),
            "children": {name: child.state_dict() for name, child in self.children.items()},
        }

    def _load_learner_state(self, state: dict[str, Any]) -> None:
        self.chooser.load_state_dict(state["chooser"])
        for name, child in self.children.items():
            child.load_state_dict(state["children"][name])
