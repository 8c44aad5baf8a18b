"""MettaGrid as an EnvBatch: raw engine worlds that share one slab of arrays.

A step is one call into the engine per world and a handful of vector operations for all of them. The engine
has no reset: an episode is a new world, bound to the rows of the old one. Binding clears rewards and end
flags, hence flags of our own, and the rewards are put back. The engine holds the GIL: threads cannot help,
processes do.
"""

from __future__ import annotations

import logging
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from metta_ray.common.errors import CheckpointError, ConfigError, EngineFault, EnvironmentFault, UsageError
from metta_ray.envs.env_batch import BatchArrays, EnvBatch, SeedRoot
from metta_ray.envs.env_spec import EnvSpec, TokenSpace
from metta_ray.envs.tasks import EpisodeResult, TaskTable
from metta_ray.mettagrid import tasks
from metta_ray.mettagrid.task_spec import TaskSpec
from metta_ray.mettagrid.terrain import Grid

logger = logging.getLogger(__name__)

MAX_FAULTS_IN_A_ROW = 3
PADDING = 0xFF


def mettagrid_spec(table: TaskTable | TaskSpec) -> EnvSpec:
    """Spaces, agents and vocabulary of a task, or of any one task of a table; builds no world."""
    task = table if isinstance(table, TaskSpec) else table.draw(np.random.default_rng(0))[1]
    blueprint = tasks.blueprint(task)
    return EnvSpec(
        name=f"mettagrid:{task.kind}",
        observation_space=TokenSpace(blueprint.num_tokens),
        action_space=gymnasium.spaces.Discrete(len(blueprint.action_names)),
        agents_per_env=task.num_agents,
        vocabulary=blueprint.vocabulary,
        action_names=blueprint.action_names,
    )


@dataclass
class Episode:
    """One running world and where it came from.

    end: env steps after which it ends; less than ``task.max_steps`` where it is cut short to stagger resets.
    grid: the map in the codes of ``terrain``.
    """

    number: int
    task_id: str
    task: TaskSpec
    end: int
    engine_seed: int = 0
    grid: Grid = field(default_factory=lambda: np.zeros((0, 0), np.uint8))
    world: Any = None


class MettaGridBatch(EnvBatch):
    """``num_envs`` worlds whose tasks are drawn from a table at each episode's start.

    All tasks of the table have the same agents, window and tokens; rules, maps and lengths may differ.

    stagger: the first episode of each environment ends after a number of steps drawn uniformly from
        [1, max_steps], so that later resets spread over time; such an episode is truncated and not reported.
    faults: environments that were rebuilt after an engine fault, so far.
    """

    def __init__(
        self,
        table: TaskTable,
        *,
        num_envs: int,
        first_env: int = 0,
        arrays: BatchArrays | None = None,
        stagger: bool = True,
    ) -> None:
        self.spec = mettagrid_spec(table)
        self.num_envs = num_envs
        self.first_env = first_env
        self.arrays = arrays or BatchArrays.allocate(self.spec, num_envs * self.spec.agents_per_env)
        self.faults = 0
        self.episodes: list[Episode] = []

        agents = self.spec.agents_per_env
        self._table = table
        self._stagger = stagger
        self._seeds: SeedRoot | None = None
        self._rows = [slice(i * agents, (i + 1) * agents) for i in range(num_envs)]
        self._engine_terminals = np.zeros(num_envs * agents, np.bool_)
        self._engine_truncations = np.zeros(num_envs * agents, np.bool_)
        self._world_steps: list[Callable[[], None]] = []
        self._steps = np.zeros(num_envs, np.int64)  # env steps of the running episode
        self._ends = np.zeros(num_envs, np.int64)
        self._env_range = np.arange(num_envs)
        # Actions of the running episodes, (envs, steps, agents): what a restore replays.
        self._history = np.zeros((num_envs, 0, agents), np.uint8)
        self._faults_in_a_row: Counter[str] = Counter()
        self._unreported_faults = np.zeros(num_envs, np.int64)

    # --- EnvBatch ------------------------------------------------------------------------------------------

    def reset(self, seeds: SeedRoot) -> None:
        self._seeds = seeds
        self.close()
        for env in range(self.num_envs):
            self._begin_episode(env, number=0)
        self.arrays.rewards.fill(0)
        self.arrays.terminals.fill(False)
        self.arrays.truncations.fill(False)
        self.arrays.masks.fill(True)

    def step(self) -> list[EpisodeResult]:
        """Raises ValueError for an action that does not exist, before anything has moved, and
        EnvironmentFault when a task's worlds keep failing."""
        if not self.episodes:
            raise UsageError("step before reset: there is no episode yet; call reset first")
        arrays = self.arrays
        self._record_actions(arrays.actions)
        broken = self._step_worlds()
        self._steps += 1
        np.copyto(arrays.terminals, self._engine_terminals)
        np.copyto(arrays.truncations, self._engine_truncations)
        arrays.masks.fill(True)

        agents = self.spec.agents_per_env
        ended = (arrays.terminals | arrays.truncations)[::agents] | (self._steps >= self._ends)
        for env, fault in broken:
            ended[env] = False
            self._rebuild(env, fault)
        if not ended.any():
            return []
        return [self._end_episode(int(env)) for env in np.flatnonzero(ended)]

    def set_tasks(self, table: TaskTable) -> None:
        self._table = table

    def snapshot(self) -> dict[str, Any]:
        if self._seeds is None:
            raise UsageError("snapshot before reset: there is no episode yet; call reset first")
        arrays = self.arrays
        ended = np.flatnonzero(arrays.terminals | arrays.truncations)
        return {
            "run_seed": self._seeds.run_seed,
            "rank": self._seeds.rank,
            "episodes": [self._episode_state(env) for env in range(self.num_envs)],
            "actions": arrays.actions.copy(),
            "rewards": arrays.rewards.copy(),
            "terminals": arrays.terminals.copy(),
            "truncations": arrays.truncations.copy(),
            "masks": arrays.masks.copy(),
            "final_obs_rows": ended,
            "final_obs": arrays.final_obs[ended],
            "obs_crc": zlib.crc32(arrays.obs.data),
            "faults": self.faults,
            "faults_in_a_row": dict(self._faults_in_a_row),
            "unreported_faults": self._unreported_faults.copy(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        if len(state["episodes"]) != self.num_envs or len(state["rewards"]) != self.num_agents:
            raise CheckpointError(
                f"the checkpoint holds {len(state['episodes'])} environments and {len(state['rewards'])} "
                f"agents, this batch {self.num_envs} and {self.num_agents}; restore with the same layout"
            )
        self._seeds = SeedRoot(int(state["run_seed"]), int(state["rank"]))
        self.close()
        for env, episode in enumerate(state["episodes"]):
            self._replay_episode(env, episode)
        arrays = self.arrays
        for name in ("actions", "rewards", "terminals", "truncations", "masks"):
            np.copyto(getattr(arrays, name), state[name])
        arrays.final_obs[state["final_obs_rows"]] = state["final_obs"]
        self.faults = int(state["faults"])
        self._faults_in_a_row = Counter({task: int(count) for task, count in state["faults_in_a_row"].items()})
        self._unreported_faults[:] = state["unreported_faults"]
        if zlib.crc32(arrays.obs.data) != int(state["obs_crc"]):
            raise CheckpointError(
                "replaying the checkpoint's actions led to other observations: it was made with another "
                "version of the engine or of the map generator; continue it with that version"
            )

    def close(self) -> None:
        """Forgets all worlds."""
        self.episodes = []
        self._world_steps = []

    # --- one step ------------------------------------------------------------------------------------------

    def _record_actions(self, actions: NDArray[np.int32]) -> None:
        # As unsigned numbers negative actions are huge: one comparison finds both kinds of stray.
        if actions.view(np.uint32).max() >= len(self.spec.action_names):
            row = int(actions.view(np.uint32).argmax())
            raise ValueError(
                f"action {actions[row]} of row {row} does not exist; the actions are 0 to "
                f"{len(self.spec.action_names) - 1}: {', '.join(self.spec.action_names)}"
            )
        self._history[self._env_range, self._steps] = actions.reshape(self.num_envs, -1)

    def _step_worlds(self) -> list[tuple[int, Exception]]:
        """Steps every world; returns those whose engine failed."""
        broken: list[tuple[int, Exception]] = []
        env = 0
        while env < self.num_envs:
            try:
                for step in self._world_steps[env:] if env else self._world_steps:
                    step()
                    env += 1
            except Exception as error:
                broken.append((env, error))
                env += 1
        return broken

    # --- episodes ------------------------------------------------------------------------------------------

    def _begin_episode(self, env: int, number: int) -> None:
        """Starts the episode, or the next one that the engine accepts. Overwrites the rows' observations, and
        clears their rewards and the engine's flags."""
        while True:
            assert self._seeds is not None
            streams = self._seeds.episode(self.first_env + env, number).spawn(2)
            rng = np.random.default_rng(streams[0])
            task_id, task = self._table.draw(rng, self.first_env + env, number)
            self._check_fits(task_id, task)
            is_cut = self._stagger and number == 0
            end = int(rng.integers(1, task.max_steps + 1)) if is_cut else task.max_steps
            try:
                self._start_world(env, Episode(number, task_id, task, end), streams[1])
                return
            except EngineFault as fault:
                self._count_fault(env, task_id, fault)
                number += 1

    def _start_world(self, env: int, episode: Episode, stream: np.random.SeedSequence) -> None:
        """stream: randomness of map and engine."""
        blueprint = tasks.blueprint(episode.task)
        rng = np.random.default_rng(stream)
        episode.engine_seed = int(rng.integers(2**32))
        episode.grid = tasks.build_grid(episode.task, rng)
        episode.world = world = blueprint.start(episode.grid, episode.engine_seed)
        rows, arrays = self._rows[env], self.arrays
        blueprint.bind(
            world,
            arrays.obs[rows],
            self._engine_terminals[rows],
            self._engine_truncations[rows],
            arrays.rewards[rows],
            arrays.actions[rows],
        )
        # As slices: the first episodes of a batch are appended, later ones replace.
        self.episodes[env : env + 1] = [episode]
        self._world_steps[env : env + 1] = [world.step]
        self._steps[env] = 0
        self._ends[env] = episode.end
        if episode.task.max_steps > self._history.shape[1]:
            more = episode.task.max_steps - self._history.shape[1]
            self._history = np.pad(self._history, ((0, 0), (0, more), (0, 0)))

    def _check_fits(self, task_id: str, task: TaskSpec) -> None:
        vocabulary = self.spec.vocabulary
        assert vocabulary is not None
        wanted = (self.spec.agents_per_env, vocabulary.width, self.spec.obs_shape[0])
        given = (task.num_agents, task.window, tasks.num_tokens(task))
        if given != wanted:
            raise ConfigError(
                f"task {task_id} has (agents, window, tokens) = {given}, but this batch was built for "
                f"{wanted}; tasks of one curriculum must agree on them"
            )

    def _end_episode(self, env: int) -> EpisodeResult:
        """Reports the episode and starts the next one in its rows (same-step reset)."""
        arrays, rows = self.arrays, self._rows[env]
        is_terminal = bool(arrays.terminals[rows.start])
        arrays.truncations[rows] = not is_terminal
        arrays.final_obs[rows] = arrays.obs[rows]
        rewards = arrays.rewards[rows].copy()
        episode = self.episodes[env]
        result = self._result(env, episode, is_terminal)
        self._faults_in_a_row.pop(episode.task_id, None)
        self._begin_episode(env, episode.number + 1)
        arrays.rewards[rows] = rewards
        return result

    def _result(self, env: int, episode: Episode, is_terminal: bool) -> EpisodeResult:
        assert self._seeds is not None
        world, length = episode.world, int(self._steps[env])
        stats = world.get_episode_stats()
        agent_stats = tasks.mean_agent_stats(episode.task, stats["agent"])
        attributes = {
            "seed": episode.engine_seed,
            "map_w": world.map_width,
            "map_h": world.map_height,
            "steps": length,
            "max_steps": episode.task.max_steps,
            "env_faults": int(self._unreported_faults[env]),
        }
        self._unreported_faults[env] = 0
        return EpisodeResult(
            env_index=self.first_env + env,
            episode=episode.number,
            task_id=episode.task_id,
            returns=np.array(world.get_episode_rewards(), np.float32),
            length=length,
            score=tasks.score(episode.task, agent_stats),
            terminated=is_terminal,
            truncated=not is_terminal,
            reported=is_terminal or length >= episode.task.max_steps,
            seed=(self._seeds.run_seed, self._seeds.rank, self.first_env + env, episode.number),
            stats={"agent": agent_stats, "game": tasks.game_stats(stats["game"]), "attributes": attributes},
        )

    # --- faults --------------------------------------------------------------------------------------------

    def _rebuild(self, env: int, error: Exception) -> None:
        """Replaces a failed world. Its rows say: truncated, reward 0, nothing seen, not to be learned."""
        rows, episode = self._rows[env], self.episodes[env]
        self._count_fault(env, episode.task_id, error)
        self._begin_episode(env, episode.number + 1)
        arrays = self.arrays
        arrays.final_obs[rows] = PADDING
        arrays.rewards[rows] = 0
        arrays.terminals[rows] = False
        arrays.truncations[rows] = True
        arrays.masks[rows] = False

    def _count_fault(self, env: int, task_id: str, error: Exception) -> None:
        """Raises EnvironmentFault at the third fault of a task without a finished episode of it between."""
        self.faults += 1
        self._unreported_faults[env] += 1
        self._faults_in_a_row[task_id] += 1
        logger.warning("environment %d, task %s: %s", self.first_env + env, task_id, error)
        if self._faults_in_a_row[task_id] >= MAX_FAULTS_IN_A_ROW:
            raise EnvironmentFault(
                f"task {task_id} failed {MAX_FAULTS_IN_A_ROW} times in a row, last: {error}; "
                f"take it out of the curriculum or make its window or its maps smaller"
            ) from error

    # --- snapshots -----------------------------------------------------------------------------------------

    def _episode_state(self, env: int) -> dict[str, Any]:
        episode = self.episodes[env]
        return {
            "number": episode.number,
            "task_id": episode.task_id,
            "task": episode.task.model_dump(mode="json"),
            "end": episode.end,
            "actions": self._history[env, : self._steps[env]].copy(),
        }

    def _replay_episode(self, env: int, state: dict[str, Any]) -> None:
        assert self._seeds is not None
        number, task_id = int(state["number"]), str(state["task_id"])
        task = TaskSpec.model_validate(state["task"])
        try:
            self._check_fits(task_id, task)
            stream = self._seeds.episode(self.first_env + env, number).spawn(2)[1]
            self._start_world(env, Episode(number, task_id, task, int(state["end"])), stream)
            actions, rows = np.asarray(state["actions"], np.uint8), self._rows[env]
            for action in actions:
                self.arrays.actions[rows] = action
                self._world_steps[env]()
            self._history[env, : len(actions)] = actions
            self._steps[env] = len(actions)
        except Exception as error:
            raise CheckpointError(
                f"environment {self.first_env + env}, episode {number}, task {task_id} cannot be replayed: {error}"
            ) from error
