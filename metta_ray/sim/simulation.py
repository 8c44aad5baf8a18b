"""One policy plays one environment a number of times.

All episodes run side by side in one batch of environments. Each environment has a quota of episodes, the
first ones it finishes; what it plays beyond is not counted. (Taking the first ``n`` to end anywhere would
favour short episodes.) Seeds depend on the simulation's name and seed only: two policies meet the same
episodes.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import logging
import math
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from metta_ray.common.errors import ConfigError
from metta_ray.common.util import places
from metta_ray.envs.env_batch import EnvBatch, SeedRoot
from metta_ray.envs.env_spec import EnvSpec
from metta_ray.envs.registry import EnvFactory, MettaGridFactory, resolve_env
from metta_ray.envs.tasks import EpisodeResult, TaskTable
from metta_ray.mettagrid.held_out import fixed_table
from metta_ray.mettagrid.task_spec import TaskSpec
from metta_ray.sim.players import Acting, Player
from metta_ray.sim.replay import SUFFIX, ReplayRecorder
from metta_ray.sim.results import REWARD, PlayedEpisode, PolicyKey, SimulationResult
from metta_ray.sim.simulation_config import SingleEnvSimulationConfig

if TYPE_CHECKING:
    from metta_ray.mettagrid.mettagrid_env import Episode

logger = logging.getLogger(__name__)

MAX_ENVS = 64


class Simulation:
    """May be run by any number of players, one after the other; each meets the same episodes.

    name: ``category/short name``. suite: what it belongs to. tags: stored with every episode.
    seed: of episodes and of drawn actions. max_envs: environments side by side. clock: seconds, for tests.
    replay_dir: where replays of the first environment's episodes go (MettaGrid only); None for none.
    """

    def __init__(
        self,
        name: str,
        config: SingleEnvSimulationConfig,
        *,
        suite: str = "",
        tags: list[str] | None = None,
        seed: int = 0,
        replay_dir: str | Path | None = None,
        max_envs: int = MAX_ENVS,
        factory: EnvFactory | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.config = config
        self.suite = suite
        self.tags = tags or []
        self.seed = _seed_of(name, seed)
        self.replay_dir = str(replay_dir) if replay_dir is not None else None
        self.num_envs = min(config.num_episodes, max_envs)
        self._factory = factory if factory is not None else env_factory(config, self.num_envs)
        self._clock = clock

    @property
    def spec(self) -> EnvSpec:
        return self._factory.spec()

    def run(self, player: Player, npc: Player | None = None, time_limit_s: float = math.inf) -> SimulationResult:
        """Plays until every quota is met or the time is up: that of the configuration or ``time_limit_s``.

        npc: drives the agents that ``config.policy_agents_pct`` leaves to it. Raises ConfigError where it is
        needed and missing, PolicyMismatchError where a policy does not fit, EnvironmentFault where the
        environment fails.
        """
        for one in (player, npc):
            if one is not None:
                one.check_fits(self.spec)
        started_at, start = time.time(), self._clock()
        limit_s = min(self.config.max_time_s, time_limit_s)
        batch = self._factory.as_evaluated().build(self.num_envs)
        try:
            with _own_randomness(self.seed):
                batch.reset(SeedRoot(self.seed))
                episodes = self._play(batch, player, npc, deadline=start + limit_s)
        finally:
            batch.close()
        return SimulationResult(
            suite=self.suite,
            name=self.name,
            env=self.config.env,
            policy=player.key,
            episodes=tuple(sorted(episodes, key=lambda episode: (episode.number, episode.env_index))),
            incomplete=self.config.num_episodes - len(episodes),
            started_at=started_at,
            elapsed_s=self._clock() - start,
            settings=settings_text(self.config),
        )

    def _play(self, batch: EnvBatch, player: Player, npc: Player | None, deadline: float) -> list[PlayedEpisode]:
        own_rows, other_rows = self._split_rows(batch)
        keys = [player.key] * batch.num_agents
        acting = [player.start(batch, own_rows, self.seed)]
        if len(other_rows):
            if npc is None:
                raise ConfigError(
                    f"simulation {self.name}: {len(other_rows)} of {batch.num_agents} agents have no policy; "
                    "give npc_policy_uri, or set policy_agents_pct to 1"
                )
            acting.append(npc.start(batch, other_rows, self.seed + 1))
            for row in other_rows:
                keys[row] = npc.key
        book = _Book(self, batch, keys[: batch.spec.agents_per_env])
        while not book.is_full and self._clock() < deadline:
            for one in acting:
                one.act()
            book.before_step()
            results = batch.step()
            book.after_step(results, _expected(acting, (own_rows, other_rows), batch.spec.agents_per_env))
        return book.episodes

    def _split_rows(self, batch: EnvBatch) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows of the policy under evaluation (the first agents of each environment) and of the others."""
        agents = batch.spec.agents_per_env
        own = max(1, int(self.config.policy_agents_pct * agents))
        rows = np.arange(batch.num_agents)
        is_own = rows % agents < own
        return rows[is_own], rows[~is_own]


class _Book:
    """Keeps what counts: episodes within quota, their agents' numbers, and replays of environment 0."""

    def __init__(self, simulation: Simulation, batch: EnvBatch, agent_policies: list[PolicyKey]) -> None:
        self.episodes: list[PlayedEpisode] = []
        self._simulation = simulation
        self._batch = batch
        self._agent_policies = tuple(agent_policies)
        self._quotas = quotas(simulation.config.num_episodes, batch.num_envs)
        self._started_at = [time.time()] * batch.num_envs
        self._worlds: list[Episode] | None = None
        self._recorder: ReplayRecorder | None = None
        self._recorded: Episode | None = None

    @property
    def is_full(self) -> bool:
        return not any(self._quotas)

    def before_step(self) -> None:
        # The step that ends an episode replaces its world, so the world is looked up before.
        self._worlds = _running_episodes(self._batch)
        wants_replay = self._simulation.replay_dir is not None and self._quotas[0] > 0
        if self._worlds is not None and wants_replay and self._recorded is not self._worlds[0]:
            self._recorded = self._worlds[0]
            self._recorder = ReplayRecorder(_mettagrid("replay_source").ReplaySource(self._recorded))

    def after_step(self, results: list[EpisodeResult], values: NDArray[np.float32]) -> None:
        """values: of the first environment's agents, as they were estimated before the step."""
        arrays, agents = self._batch.arrays, self._batch.spec.agents_per_env
        if self._recorder is not None and arrays.masks[0]:  # a world that failed has nothing to show
            self._recorder.record(arrays.rewards[:agents], values)
        for result in results:
            if result.reported and self._quotas[result.env_index] > 0:
                self._quotas[result.env_index] -= 1
                self.episodes.append(self._played(result))
            self._started_at[result.env_index] = time.time()

    def _played(self, result: EpisodeResult) -> PlayedEpisode:
        episode_id = uuid.uuid4().hex
        return PlayedEpisode(
            id=episode_id,
            env_index=result.env_index,
            number=result.episode,
            task_id=result.task_id,
            seed=result.seed,
            steps=result.length,
            score=float(result.score),
            agent_metrics=tuple(self._agent_metrics(result)),
            agent_policies=self._agent_policies,
            created_at=self._started_at[result.env_index],
            completed_at=time.time(),
            attributes=self._attributes(result),
            replay_path=self._write_replay(episode_id) if result.env_index == 0 else None,
        )

    def _agent_metrics(self, result: EpisodeResult) -> Iterator[dict[str, float]]:
        """Each agent's own numbers: the engine's, or of a single agent those of its last info."""
        if self._worlds is not None:
            per_agent = _mettagrid("replay_source").agent_statistics(self._worlds[result.env_index])
        elif len(result.returns) == 1:
            per_agent = [dict(_flat_numbers(result.stats))]
        else:
            per_agent = [{} for _ in result.returns]
        for numbers, episode_return in zip(per_agent, result.returns, strict=True):
            yield {**numbers, REWARD: float(episode_return)}

    def _attributes(self, result: EpisodeResult) -> dict[str, str]:
        attributes = {name: str(value) for name, value in result.stats.get("attributes", {}).items()}
        if self._worlds is not None:
            task = self._worlds[result.env_index].task.model_dump(mode="json")
            attributes |= {f"config.{name}": str(value) for name, value in task.items()}
        attributes |= {f"tag.{tag}": "1" for tag in self._simulation.tags}
        return attributes

    def _write_replay(self, episode_id: str) -> str | None:
        recorder, self._recorder = self._recorder, None
        if recorder is None:
            return None
        assert self._simulation.replay_dir is not None
        folder = self._simulation.name.replace("/", "_")
        return str(recorder.write(places.inside(self._simulation.replay_dir, folder, f"{episode_id}{SUFFIX}")))


def _expected(acting: list[Acting], rows: tuple[NDArray[np.int64], ...], agents: int) -> NDArray[np.float32]:
    """Value estimates of the first ``agents`` rows; NaN for those whose player estimates none."""
    values = np.full(agents, np.nan, np.float32)
    for one, driven in zip(acting, rows, strict=False):
        if one.values is not None:
            of_first = driven < agents
            values[driven[of_first]] = one.values[of_first]
    return values


def settings_text(config: SingleEnvSimulationConfig) -> str:
    """What results must share to be compared, as JSON: not how many episodes there are and how long they may take."""
    settings = config.model_dump(mode="json", exclude={"num_episodes", "max_time_s"})
    return json.dumps(settings, sort_keys=True)


def quotas(num_episodes: int, num_envs: int) -> list[int]:
    """Episodes of each environment, as even as possible: ``quotas(5, 3) == [2, 2, 1]``."""
    return [num_episodes // num_envs + (env < num_episodes % num_envs) for env in range(num_envs)]


def env_factory(config: SingleEnvSimulationConfig, num_envs: int) -> EnvFactory:
    """The environment of a simulation with its overrides. ConfigError for an unknown one.

    A path such as ``/env/mettagrid/curriculum/navigation/bucketed`` means the tasks of that curriculum, drawn
    as a fresh one would.
    """
    is_path = config.env.startswith("/")
    factory = resolve_env(f"mettagrid:{config.env}" if is_path else config.env, **config.env_overrides)
    if config.fixed_maps is None:
        return factory
    if not isinstance(factory, MettaGridFactory):
        raise ConfigError(
            f"fixed_maps={config.fixed_maps} of {config.env}: only MettaGrid has seeded maps; leave it out"
        )
    return replace(factory, table=_fixed_table(factory, config, num_envs))


def _fixed_table(factory: MettaGridFactory, config: SingleEnvSimulationConfig, num_envs: int) -> TaskTable:
    """The task of a single-task environment on one map for each episode."""
    templates = factory.curriculum().task_table().templates
    if len(templates) > 1:
        raise ConfigError(f"fixed_maps of {config.env}: it has {len(templates)} tasks; choose an environment of one")
    task: TaskSpec = templates[0].draw(np.random.default_rng(0))
    words = tuple(config.fixed_maps or ())
    maps = [task.model_copy(update={"map_seed": (*words, number)}) for number in range(config.num_episodes)]
    return fixed_table(maps, num_envs)


@contextlib.contextmanager
def _own_randomness(seed: int) -> Iterator[None]:
    """Drawn actions depend on ``seed`` only, and training's generator is left where it was."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


def _seed_of(name: str, seed: int) -> int:
    """63 bits of the simulation's own, so that an evaluation never meets the episodes of training."""
    return int.from_bytes(hashlib.sha256(f"simulation/{name}/{seed}".encode()).digest()[:8], "big") >> 1


def _running_episodes(batch: EnvBatch) -> list[Episode] | None:
    if batch.spec.vocabulary is None:
        return None
    running: list[Episode] | None = _mettagrid("replay_source").running_episodes(batch)
    return running


def _mettagrid(module: str) -> Any:
    """A module that loads the engine, only when a MettaGrid environment is played."""
    return importlib.import_module(f"metta_ray.mettagrid.{module}")


def _flat_numbers(stats: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in stats.items():
        if isinstance(value, dict):
            yield from _flat_numbers(value, f"{prefix}{name}.")
        elif isinstance(value, int | float):
            yield f"{prefix}{name}", float(value)
