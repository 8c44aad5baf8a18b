"""The navigation curriculum: 16 terrains × 4 altar bins, chosen by learning progress."""

from __future__ import annotations

from typing import Any

from metta_ray.common.errors import ConfigError
from metta_ray.mettagrid.curriculum.bucketed import BucketedCurriculum
from metta_ray.mettagrid.curriculum.core import with_fields
from metta_ray.mettagrid.curriculum.learning_progress import LearningProgressConfig
from metta_ray.mettagrid.task_spec import TERRAINS, TaskSpec

ALTARS = {"range": (2, 18), "bins": 4}
"""[2, 6), [6, 10), [10, 14), [14, 18): 2 to 17 altars per room."""

# By learning progress alone a task that scored 0 in its first episodes is never drawn again. Large mazes do,
# under a policy that knows nothing; so a quarter of the episodes is drawn from all buckets.
_UNIFORM_SHARE = 0.25


class NavigationBucketedCurriculum(BucketedCurriculum):
    """64 buckets with ids like ``terrain=varied_terrain/maze_small;altar=[2,6)``.

    overrides: TaskSpec fields for every bucket, e.g. ``num_agents=8``, but not ``terrain`` and ``altars``:
        the buckets vary them. Score of an episode: hearts gathered / altars there are, in [0, 1].
    """

    def __init__(self, config: LearningProgressConfig | None = None, seed: int = 0, **overrides: Any) -> None:
        for field in {"terrain", "altars", "kind"} & set(overrides):
            raise ConfigError(
                f"{field}={overrides[field]!r} cannot be set for navigation/bucketed, which varies it; "
                f"use the single task /env/mettagrid/navigation"
            )
        super().__init__(
            base=with_fields(TaskSpec(kind="navigation"), overrides),
            buckets={"terrain": list(TERRAINS), "altars": ALTARS},
            config=config or LearningProgressConfig(uniform_share=_UNIFORM_SHARE),
            labels={"altars": "altar"},
            seed=seed,
        )
