"""What a replay and the statistics tables want to know about worlds, in the replay format's own field names.

A world object outlives its episode: after the batch has started the next one, the old one can still be read.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metta_ray.envs.env_batch import EnvBatch
from metta_ray.mettagrid import tasks
from metta_ray.mettagrid.mettagrid_env import Episode, MettaGridBatch

STATIC_TYPES = ("wall",)
ANIMATION_NAMES = ("none", "bump")


def running_episodes(batch: EnvBatch) -> list[Episode] | None:
    """The episodes now running in a batch, by environment; None for environments other than MettaGrid's."""
    return list(batch.episodes) if isinstance(batch, MettaGridBatch) else None


def agent_statistics(episode: Episode) -> list[dict[str, float]]:
    """The engine's statistics of each agent; a key is absent until it is first touched."""
    agents: list[dict[str, float]] = episode.world.get_episode_stats()["agent"]
    return agents


class ReplaySource:
    """One episode's world, described for the replay format, version 4.

    What is constant is asked once (``header``); ``objects`` after every step.
    """

    static_types = STATIC_TYPES

    def __init__(self, episode: Episode) -> None:
        self.episode = episode
        self.num_agents = episode.task.num_agents
        blueprint = tasks.blueprint(episode.task)
        self._game = blueprint.game
        self._action_names = list(blueprint.action_names)
        self._tags = {name: index for index, name in enumerate(blueprint.vocabulary.tags)}
        limits = self._game.agent.inventory.limits
        self._capacity_names = sorted(limits)
        self._capacity_of_resource = {
            self._game.resource_names.index(resource): index
            for index, name in enumerate(self._capacity_names)
            for resource in limits[name].resources
        }

    def header(self) -> dict[str, Any]:
        """Everything of a replay but ``objects``, ``infos`` and the final ``max_steps``."""
        world = self.episode.world
        # Here, not above: the engine module must be the first to import mettagrid (it sets its log level).
        from mettagrid.config.mettagrid_config import MettaGridConfig
        from mettagrid.policy.policy_env_interface import PolicyEnvInterface

        config = MettaGridConfig(game=self._game)
        return {
            "version": 4,
            "action_names": self._action_names,
            "animation_names": list(ANIMATION_NAMES),
            "item_names": list(self._game.resource_names),
            "type_names": list(world.object_type_names),
            "capacity_names": self._capacity_names,
            "tags": self._tags,
            "map_size": [world.map_width, world.map_height],
            "num_agents": self.num_agents,
            "max_steps": self._game.max_steps,
            "mg_config": config.model_dump(mode="json"),
            "policy_env_interface": PolicyEnvInterface.from_mg_cfg(config).model_dump(mode="json"),
        }

    def objects(
        self,
        rewards: NDArray[np.float32],
        total_rewards: NDArray[np.float64],
        *,
        with_static: bool,
    ) -> Iterator[dict[str, Any]]:
        """The objects of the world as they are now; walls, which never change, only if asked for.

        rewards, total_rewards: of each agent, in the step just taken / since the episode's start.
        """
        world = self.episode.world
        ignored = [] if with_static else list(STATIC_TYPES)
        succeeded = world.action_success()
        for thing in world.grid_objects(-1, -1, -1, -1, ignored).values():
            described = self._describe(thing)
            if "agent_id" in thing:
                agent = thing["agent_id"]
                described |= self._describe_agent(thing, bool(succeeded[agent]))
                described["current_reward"] = float(rewards[agent])
                described["total_reward"] = float(total_rewards[agent])
            yield described

    def infos(self, total_rewards: NDArray[np.float64]) -> dict[str, Any]:
        """Statistics of the whole episode, agents averaged."""
        world, task = self.episode.world, self.episode.task
        stats = world.get_episode_stats()
        totals: dict[str, float] = {}
        for agent in stats["agent"]:
            for name, value in agent.items():
                totals[name] = totals.get(name, 0.0) + value
        return {
            "game": stats["game"],
            "agent": {name: total / self.num_agents for name, total in totals.items()},
            "attributes": {
                "seed": self.episode.engine_seed,
                "map_w": world.map_width,
                "map_h": world.map_height,
                "steps": world.current_step,
                "max_steps": task.max_steps,
                "task": task.model_dump(mode="json"),
            },
            "episode_rewards": [float(total) for total in total_rewards],
        }

    def _describe(self, thing: dict[str, Any]) -> dict[str, Any]:
        return {
            "id": thing["id"],
            "alive": True,
            "type_name": thing["type_name"],
            "location": list(thing["location"]),
            "orientation": 0,
            "inventory": [list(item) for item in sorted(thing["inventory"].items())],
            "inventory_max": 0,
            "inventory_capacities": self._capacities(thing["inventory_capacities"]),
            "color": 0,
            "tag_ids": list(thing["tag_ids"]),
        }

    def _describe_agent(self, thing: dict[str, Any], succeeded: bool) -> dict[str, Any]:
        return {
            "is_agent": True,
            "agent_id": thing["agent_id"],
            "vision_size": self._game.obs.width,
            "action_id": thing["last_action_id"],
            "action_param": 0,
            "action_success": succeeded,
            "animation_id": thing["last_animation_id"],
            "group_id": thing["group_id"],
            "vibe_id": thing["vibe"],
            "vibe": thing["vibe"],
            "monologue_append": "",
            "monologue_reset": False,
        }

    def _capacities(self, by_resource: dict[int, int]) -> list[list[int]]:
        """``[[capacity, limit], …]``: resources that share a limit are one capacity."""
        limits: dict[int, int] = {}
        for resource, limit in by_resource.items():
            if resource in self._capacity_of_resource:
                limits.setdefault(self._capacity_of_resource[resource], limit)
        return [list(item) for item in sorted(limits.items())]
