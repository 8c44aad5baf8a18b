"""Single-agent Gymnasium environments behind the batch interface, stepped in one plain loop.

Episodes are restarted in the same step (``final_obs`` keeps the true last observation), each with a seed of
its own, and can be replayed from that seed and their actions. So an environment must be a function of
``reset(seed=…)`` and its actions for ``restore`` to work; ``restore`` checks that it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, SupportsFloat

import gymnasium
import numpy as np
from numpy.typing import NDArray

from metta_ray.common.errors import CheckpointError, ConfigError, EnvironmentFault, UsageError
from metta_ray.envs.action_log import ActionLog
from metta_ray.envs.env_batch import BatchArrays, EnvBatch, SeedRoot
from metta_ray.envs.env_spec import EnvSpec
from metta_ray.envs.gymnasium_spaces import (
    action_decoder,
    observation_encoder,
    policy_action_space,
    policy_observation_space,
)
from metta_ray.envs.tasks import EpisodeResult

MakeEnv = Callable[[], "gymnasium.Env[Any, Any]"]


def gymnasium_spec(env: gymnasium.Env[Any, Any], name: str) -> EnvSpec:
    """What a policy must know about ``env``. ConfigError where a space is not supported."""
    return EnvSpec(
        name=name,
        observation_space=policy_observation_space(env.observation_space, name),
        action_space=policy_action_space(env.action_space, name),
    )


class GymnasiumBatch(EnvBatch):
    """``num_envs`` environments from one factory; a row is an environment.

    The seed of an episode is a 63-bit number drawn from its ``SeedRoot`` stream, so that no two episodes of a
    run share one; it is reported as ``EpisodeResult.seed``. The score is the return.
    """

    def __init__(
        self,
        make_env: MakeEnv,
        *,
        name: str,
        num_envs: int,
        first_env: int = 0,
        arrays: BatchArrays | None = None,
    ) -> None:
        self.num_envs = num_envs
        self.first_env = first_env
        self._envs = [make_env() for _ in range(num_envs)]
        self.spec = gymnasium_spec(self._envs[0], name)
        self.arrays = arrays if arrays is not None else BatchArrays.allocate(self.spec, num_envs)
        if self.arrays.obs.shape != (num_envs, *self.spec.obs_shape):
            raise ConfigError(
                f"{name}: observations of shape {self.spec.obs_shape} for {num_envs} environments do not fit "
                f"the given array {self.arrays.obs.shape}; the environments of a batch must have equal spaces"
            )
        self._encode = observation_encoder(self._envs[0].observation_space)
        self._decode = action_decoder(self._envs[0].action_space)
        self._step_calls = [env.step for env in self._envs]
        self._seeds: SeedRoot | None = None
        self._log = ActionLog(self.arrays.actions)
        self._episodes = [0] * num_envs
        self._episode_seeds = [0] * num_envs
        self._returns = np.zeros(num_envs)  # float64 sums of rewards of the running episodes

    def reset(self, seeds: SeedRoot) -> None:
        self._seeds = seeds
        self._log = ActionLog(self.arrays.actions)
        self._clear_outcome()
        for row in range(self.num_envs):
            self._start_episode(row, episode=0)

    def step(self) -> list[EpisodeResult]:
        if self._seeds is None:
            raise UsageError(f"{self.spec.name}: step before reset; call reset(SeedRoot(seed)) first")
        arrays, obs, encode = self.arrays, self.arrays.obs, self._encode
        self._log.append(arrays.actions)
        rewards: list[SupportsFloat] = []
        ended: list[tuple[int, bool, bool, dict[str, Any]]] = []
        row = 0
        try:
            for row, action in enumerate(self._decode(arrays.actions)):
                observation, reward, terminated, truncated, info = self._step_calls[row](action)
                obs[row] = observation if encode is None else encode(observation)
                rewards.append(reward)
                if terminated or truncated:
                    ended.append((row, bool(terminated), bool(truncated), info))
        except Exception as error:
            raise self._fault(row, f"step(action={arrays.actions[row].tolist()})", error) from error
        step_rewards = np.asarray(rewards, np.float64)
        self._returns += step_rewards
        arrays.rewards[:] = step_rewards
        arrays.terminals[:] = False
        arrays.truncations[:] = False
        return [self._end_episode(*end) for end in ended]

    def snapshot(self) -> dict[str, Any]:
        if self._seeds is None:
            raise UsageError(f"{self.spec.name}: snapshot before reset; there is no state yet")
        arrays = self.arrays
        return {
            "kind": "gymnasium",
            "name": self.spec.name,
            "run_seed": self._seeds.run_seed,
            "rank": self._seeds.rank,
            "episodes": list(self._episodes),
            "actions": [self._log.of(row) for row in range(self.num_envs)],
            "obs": arrays.obs.copy(),
            "final_obs": arrays.final_obs.copy(),
            "rewards": arrays.rewards.copy(),
            "terminals": arrays.terminals.copy(),
            "truncations": arrays.truncations.copy(),
            "masks": arrays.masks.copy(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        self._check_state_fits(state)
        self._seeds = SeedRoot(int(state["run_seed"]), int(state["rank"]))
        episodes = [np.asarray(actions, self.arrays.actions.dtype) for actions in state["actions"]]
        for row, actions in enumerate(episodes):
            self._start_episode(row, int(state["episodes"][row]))
            self._replay(row, actions, expected_obs=state["obs"][row])
        self._log = ActionLog.of_episodes(self.arrays.actions, episodes)
        for name in ("obs", "final_obs", "rewards", "terminals", "truncations", "masks"):
            getattr(self.arrays, name)[:] = state[name]

    def close(self) -> None:
        for env in self._envs:
            env.close()
        self._envs, self._step_calls = [], []

    def _start_episode(self, row: int, episode: int) -> None:
        assert self._seeds is not None
        words = self._seeds.episode(self.first_env + row, episode).generate_state(1, np.uint64)
        seed = int(words[0]) >> 1
        try:
            observation, _ = self._envs[row].reset(seed=seed)
            if self._encode is not None:
                observation = self._encode(observation)
            # numpy would broadcast a smaller observation silently
            if np.shape(observation) != self.spec.obs_shape:
                raise ValueError(f"observation of shape {np.shape(observation)}, its space says {self.spec.obs_shape}")
            self.arrays.obs[row] = observation
        except Exception as error:
            raise self._fault(row, f"reset(seed={seed})", error) from error
        self._log.start_episode(row)
        self._episodes[row] = episode
        self._episode_seeds[row] = seed
        self._returns[row] = 0.0

    def _end_episode(self, row: int, terminated: bool, truncated: bool, info: dict[str, Any]) -> EpisodeResult:
        """Records the outcome of the row's episode and starts the next one."""
        self.arrays.final_obs[row] = self.arrays.obs[row]
        self.arrays.terminals[row] = terminated
        self.arrays.truncations[row] = truncated
        result = EpisodeResult(
            env_index=self.first_env + row,
            episode=self._episodes[row],
            task_id=self.spec.name,
            returns=np.array([self._returns[row]], np.float32),
            length=self._log.length_of(row),
            score=float(self._returns[row]),
            terminated=terminated,
            truncated=truncated,
            seed=(self._episode_seeds[row],),
            stats=_numbers_of(info),
        )
        self._start_episode(row, self._episodes[row] + 1)
        return result

    def _replay(self, row: int, actions: NDArray[Any], expected_obs: NDArray[Any]) -> None:
        """Repeats a running episode. CheckpointError where it does not lead to ``expected_obs``."""
        where = f"{self.spec.name}: environment {self.first_env + row}, episode {self._episodes[row]}"
        obs = self.arrays.obs[row]
        for step in range(len(actions)):
            (action,) = self._decode(actions[step : step + 1])
            try:
                observation, reward, terminated, truncated, _ = self._step_calls[row](action)
            except Exception as error:
                raise self._fault(row, f"step(action={actions[step].tolist()}) during replay", error) from error
            obs[...] = observation if self._encode is None else self._encode(observation)
            self._returns[row] += float(reward)
            if terminated or truncated:
                raise CheckpointError(
                    f"{where}: ended at step {step + 1} of {len(actions)} when its saved actions were "
                    f"replayed; the environment is not deterministic given its seed, or has changed"
                )
        if not np.array_equal(obs, expected_obs, equal_nan=obs.dtype.kind == "f"):
            raise CheckpointError(
                f"{where}: replaying {len(actions)} saved actions led to another observation than the saved "
                f"one; the environment is not deterministic given its seed, or has changed"
            )

    def _check_state_fits(self, state: dict[str, Any]) -> None:
        saved = (state.get("kind"), state.get("name"), len(state.get("episodes", ())))
        here = ("gymnasium", self.spec.name, self.num_envs)
        if saved != here:
            raise CheckpointError(
                f"saved state (kind, name, environments) = {saved} does not fit {here}; "
                f"restore with the environment and sizes of the saved run"
            )
        if np.shape(state["obs"]) != self.arrays.obs.shape:
            raise CheckpointError(
                f"{self.spec.name}: saved observations of shape {np.shape(state['obs'])} do not fit "
                f"{self.arrays.obs.shape}; restore with the environment of the saved run"
            )

    def _clear_outcome(self) -> None:
        self.arrays.rewards[:] = 0.0
        self.arrays.terminals[:] = False
        self.arrays.truncations[:] = False
        self.arrays.masks[:] = True

    def _fault(self, row: int, call: str, error: Exception) -> EnvironmentFault:
        return EnvironmentFault(
            f"environment {self.first_env + row} ({self.spec.name}) failed in {call}, episode "
            f"{self._episodes[row]}, step {self._log.length_of(row)}: {type(error).__name__}: {error}"
        )


def _numbers_of(info: dict[str, Any]) -> dict[str, Any]:
    """The plain numbers of an episode's last ``info``, for monitoring."""
    numbers = {
        key: float(value) for key, value in info.items() if isinstance(value, (bool, int, float, np.number, np.bool_))
    }
    return {"info": numbers} if numbers else {}
