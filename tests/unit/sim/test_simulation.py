"""Playing: what counts, who acts, what a policy is given."""

from __future__ import annotations

import itertools
import logging
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from metta_ray.agent.factory import Agent
from metta_ray.agent.policy_metadata import PolicyMetadata
from metta_ray.agent.policy_record import PolicyRecord
from metta_ray.agent.policy_store import PolicyStore
from metta_ray.common.errors import ConfigError, PolicyMismatchError
from metta_ray.envs.env_batch import BatchArrays, EnvBatch
from metta_ray.envs.env_spec import EnvSpec
from metta_ray.envs.gymnasium_env import GymnasiumBatch, gymnasium_spec
from metta_ray.envs.registry import EnvFactory, resolve_env
from metta_ray.eval.eval_stats_db import EvalStatsDB
from metta_ray.sim.players import PolicyPlayer, RandomPlayer, ScriptedPlayer, as_player
from metta_ray.sim.replay import read_replay
from metta_ray.sim.results import PolicyKey
from metta_ray.sim.simulation import Simulation, quotas
from metta_ray.sim.simulation_config import SimulationSuiteConfig, SingleEnvSimulationConfig
from metta_ray.sim.simulation_suite import SimulationSuite, evaluate_policy


class Tally(gymnasium.Env):
    """Every episode is short (2 steps, return 0) or long (20 steps, return 1) with equal probability; the
    observation is (steps so far, its kind)."""

    observation_space = gymnasium.spaces.Box(0, 100, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.is_long = bool(self.np_random.integers(2))
        self.steps = 0
        return self._obs(), {}

    def step(self, action):
        self.steps += 1
        is_over = self.steps == (20 if self.is_long else 2)
        return self._obs(), float(is_over and self.is_long), is_over, False, {"steps": self.steps}

    def _obs(self):
        return np.array([self.steps, self.is_long], np.float32)


@dataclass(frozen=True)
class TallyFactory(EnvFactory):
    def check(self) -> None:
        pass

    def spec(self) -> EnvSpec:
        return gymnasium_spec(Tally(), "tally")

    def build(self, num_envs: int, first_env: int = 0, arrays: BatchArrays | None = None) -> EnvBatch:
        return GymnasiumBatch(Tally, name="tally", num_envs=num_envs, first_env=first_env, arrays=arrays)


def tally(num_episodes: int, *, max_envs: int = 8, **changes: Any) -> Simulation:
    config = SingleEnvSimulationConfig(env="tally", num_episodes=num_episodes, **changes.pop("config", {}))
    return Simulation("toy/tally", config, factory=TallyFactory("tally"), max_envs=max_envs, **changes)


def recurrent_policy(spec: EnvSpec, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    config = {"architecture": "mlp", "hidden_sizes": [8], "lstm_hidden_size": 8, "side_inputs": True}
    return Agent(spec, config=config, device="cpu")


SMOKE = {"env": "mettagrid:smoke", "env_overrides": {"num_agents": 4, "max_steps": 16}}


# ---- what counts ----


def test_quotas_are_as_even_as_possible():
    assert quotas(5, 3) == [2, 2, 1]
    assert quotas(4, 4) == [1, 1, 1, 1]


def test_short_episodes_are_not_over_represented():
    result = tally(200, max_envs=10).run(RandomPlayer())

    per_env = [[e.number for e in result.episodes if e.env_index == env] for env in range(10)]
    assert per_env == [list(range(20))] * 10
    # The first 200 episodes to end anywhere would be 10 short ones for a long one; here it is a fair coin:
    # 0.5 within 4 standard errors of sqrt(0.25 / 200).
    assert abs(result.score.mean - 0.5) < 4 * (0.25 / 200) ** 0.5
    assert result.incomplete == 0


def test_steps_returns_and_attributes_are_those_of_the_episode():
    for episode in tally(12).run(RandomPlayer()).episodes:
        is_long = episode.score == 1.0
        assert episode.steps == (20 if is_long else 2)
        assert episode.agent_metrics[0]["reward"] == float(is_long)
        assert episode.agent_metrics[0]["info.steps"] == episode.steps
        assert episode.agent_policies == (PolicyKey("random"),)


def test_episodes_unfinished_when_time_is_up_leave_no_record():
    ticks = itertools.count()

    result = tally(8, clock=lambda: next(ticks), config={"max_time_s": 6.5}).run(RandomPlayer())

    # The clock starts at 0 and is read once before each of 6 steps: only 2-step episodes can end.
    assert {episode.steps for episode in result.episodes} == {2}
    assert result.incomplete == 8 - len(result.episodes) > 0


def test_the_same_seed_means_the_same_episodes_for_every_policy():
    policy = recurrent_policy(TallyFactory("tally").spec())

    first, second = tally(9).run(RandomPlayer()), tally(9).run(PolicyPlayer(policy))
    other_seed = tally(9, seed=1).run(RandomPlayer())

    assert [e.seed for e in first.episodes] == [e.seed for e in second.episodes]
    assert [e.score for e in first.episodes] == [e.score for e in second.episodes]
    assert [e.seed for e in first.episodes] != [e.seed for e in other_seed.episodes]


# ---- what a policy is given ----


class Watched:
    """Keeps what a policy was given at each step. (A hook is deep-copied with the policy; the list is shared.)"""

    def __init__(self, policy: torch.nn.Module) -> None:
        seen = self.seen = []

        class Hook:
            def __call__(self, module, args):
                obs, state = args
                h = None if state.lstm_h is None else state.lstm_h.clone()
                last = None if state.last_actions is None else state.last_actions.clone()
                seen.append((obs.clone(), state.resets.clone(), last, state.last_rewards.clone(), h))

            def __deepcopy__(self, memo):
                return self

        policy.register_forward_pre_hook(Hook())


def test_k2_recurrent_state_is_reset_where_an_episode_ended():
    policy = recurrent_policy(TallyFactory("tally").spec())
    watched = Watched(policy)

    tally(6, max_envs=3).run(PolicyPlayer(policy))

    for obs, resets, *_ in watched.seen:
        # In this environment an observation with 0 steps is the first of an episode, and no other is.
        assert resets.tolist() == (obs[:, 0] == 0).tolist()
    assert sum(int(resets.sum()) for _, resets, *_ in watched.seen) >= 6


def test_last_action_and_last_reward_are_given():
    policy = recurrent_policy(TallyFactory("tally").spec())
    watched = Watched(policy)

    tally(4, max_envs=2).run(PolicyPlayer(policy))

    assert watched.seen[0][2] is None
    assert all(last.dtype == torch.int64 and last.shape == (2,) for _, _, last, _, _ in watched.seen[1:])
    # A reward arrives together with the first observation of the next episode.
    rewards = torch.stack([reward for *_, reward, _ in watched.seen])
    resets = torch.stack([resets for _, resets, *_ in watched.seen])
    assert rewards.sum() > 0
    assert bool(resets[rewards > 0].all())


def test_a_policy_without_memory_starts_every_step_from_nothing():
    policy = recurrent_policy(TallyFactory("tally").spec())
    watched = Watched(policy)

    tally(2, max_envs=1).run(PolicyPlayer(policy, has_memory=False))

    assert all(h is None for *_, h in watched.seen)


def test_evaluation_changes_neither_policy_nor_torchs_generator():
    policy = recurrent_policy(TallyFactory("tally").spec()).train()
    weights = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    random_state, spec = torch.get_rng_state(), policy.env_spec

    tally(4).run(PolicyPlayer(policy))

    assert torch.equal(torch.get_rng_state(), random_state)
    assert policy.training
    assert policy.env_spec is spec
    assert all(torch.equal(tensor, weights[name]) for name, tensor in policy.state_dict().items())


def test_greedy_actions_are_the_likeliest_and_drawn_ones_repeat_by_seed():
    spec = resolve_env("gym:CartPole-v1").spec()
    policy = recurrent_policy(spec)
    config = SingleEnvSimulationConfig(env="gym:CartPole-v1", num_episodes=3)

    def returns(greedy: bool, seed: int = 0) -> list[int]:
        result = Simulation("gym/cartpole", config, seed=seed).run(PolicyPlayer(policy, greedy=greedy))
        return [episode.steps for episode in result.episodes]

    assert returns(greedy=False) == returns(greedy=False)
    assert returns(greedy=True) == returns(greedy=True)
    # An untrained policy that does the same thing over and over falls at once.
    assert max(returns(greedy=True)) < 15


# ---- several policies, MettaGrid ----


class Constant:
    """Always the same action."""

    key = PolicyKey("constant", 2)

    def check_fits(self, spec):
        pass

    def start(self, batch, rows, seed):
        class Acting:
            values = None

            def act(self):
                batch.arrays.actions[rows] = 0

        self.rows = rows.tolist()
        return Acting()


def test_the_policy_drives_the_first_agents_of_every_environment_and_the_npc_the_rest():
    npc = Constant()
    config = SingleEnvSimulationConfig(**SMOKE, num_episodes=2, policy_agents_pct=0.6, npc_policy_uri="npc")

    result = Simulation("smoke/mixed", config).run(RandomPlayer(), npc)

    assert npc.rows == [2, 3, 6, 7]
    assert len(result.episodes) == 2
    for episode in result.episodes:
        assert [key.uri for key in episode.agent_policies] == ["random", "random", "constant", "constant"]
        assert len(episode.agent_metrics) == 4
        assert [metrics["reward"] for metrics in episode.agent_metrics[2:]] == [0.0, 0.0]
        assert episode.agent_metrics[2]["action.noop.success"] == 16


def test_agents_left_without_a_policy_are_an_error():
    config = SingleEnvSimulationConfig(**SMOKE, num_episodes=1, policy_agents_pct=0.5, npc_policy_uri="npc")

    with pytest.raises(ConfigError, match="2 of 4 agents have no policy"):
        Simulation("smoke/mixed", config).run(RandomPlayer())


def test_the_scripted_policy_beats_chance():
    config = SingleEnvSimulationConfig(env="mettagrid:smoke", num_episodes=4)
    suite = SimulationSuiteConfig(name="s", simulations={"smoke/one": config})

    scripted, chance = (evaluate_policy(player, suite) for player in (ScriptedPlayer(), RandomPlayer()))

    assert scripted.simulations[0].returns.mean > 28
    assert chance.simulations[0].returns.mean < 5
    assert "scripted" in chance.table(references=[scripted])


def test_a_curriculums_tasks_can_be_played(tmp_path):
    overrides = {"num_agents": 1, "max_steps": 8, "terrain": "varied_terrain/sparse_small"}
    path = "/env/mettagrid/curriculum/simple"
    config = SingleEnvSimulationConfig(env=path, num_episodes=2, env_overrides=overrides)

    (result,) = evaluate_policy(RandomPlayer(), config, replay_dir=tmp_path).simulations

    assert [episode.steps for episode in result.episodes] == [8, 8]
    assert result.episodes[0].attributes["config.terrain"] == "varied_terrain/sparse_small"


def test_replays_are_those_of_the_first_environments_episodes(tmp_path):
    config = SingleEnvSimulationConfig(env="mettagrid:smoke", num_episodes=5)

    (result,) = evaluate_policy(
        RandomPlayer(),
        SimulationSuiteConfig(name="s", simulations={"smoke/one": config}),
        replay_dir=tmp_path,
        max_envs=2,
    ).simulations

    with_replay = [episode for episode in result.episodes if episode.replay_path]
    assert [(e.env_index, e.number) for e in with_replay] == [(0, 0), (0, 1), (0, 2)]
    for episode in with_replay:
        replay = read_replay(episode.replay_path)
        assert replay["max_steps"] == episode.steps == 32
        assert replay["infos"]["episode_rewards"] == [episode.agent_metrics[0]["reward"]]
    assert len(list(tmp_path.rglob("*.json.z"))) == 3


# ---- suites ----


def test_results_are_stored_with_the_records_uri_and_epoch(tmp_path):
    policy = recurrent_policy(resolve_env("gym:CartPole-v1").spec())
    record = PolicyRecord("m", "file:///somewhere/m", PolicyMetadata(epoch=7), policy=policy)
    suite = SimulationSuiteConfig(
        name="both",
        episode_tags=["nightly"],
        simulations={name: {"env": "gym:CartPole-v1", "num_episodes": 2} for name in ("gym/a", "gym_b/a")},
    )

    with EvalStatsDB(tmp_path / "eval.sqlite") as db:
        result = evaluate_policy(record, suite, stats_db=db)

        key = PolicyKey("file:///somewhere/m", 7)
        assert db.policies() == [key]
        assert db.category_scores(key) == pytest.approx(result.category_scores)
        assert db.average_metric(key, "reward") == pytest.approx(result.score)
        assert db.query("SELECT COUNT(*) AS n FROM episode_attributes WHERE attribute = 'tag.nightly'") == [{"n": 4}]


def test_a_policy_that_does_not_fit_is_refused_before_anything_is_played(tmp_path):
    policy = recurrent_policy(resolve_env("gym:CartPole-v1").spec())
    suite = SimulationSuiteConfig(
        name="both",
        simulations={"gym/a": {"env": "gym:CartPole-v1"}, "smoke/a": {"env": "mettagrid:smoke"}},
    )

    with EvalStatsDB(tmp_path / "eval.sqlite") as db:
        with pytest.raises(PolicyMismatchError):
            evaluate_policy(policy, suite, stats_db=db)
        assert db.policies() == []


def test_a_simulation_whose_npc_does_not_fit_is_left_out_with_a_warning(tmp_path, caplog):
    store = PolicyStore(data_dir=tmp_path)
    record = store.create_empty_policy_record("npc", tmp_path)
    record.policy = recurrent_policy(resolve_env("gym:CartPole-v1").spec())
    store.save(record)
    half = {"policy_agents_pct": 0.5, "npc_policy_uri": str(tmp_path / "npc"), "num_episodes": 1}
    suite = SimulationSuiteConfig(name="s", simulations={"smoke/npc": {**SMOKE, **half}, "smoke/alone": SMOKE})

    with caplog.at_level(logging.WARNING):
        result = SimulationSuite(suite, policy_store=store).run(RandomPlayer())

    assert [simulation.name for simulation in result.simulations] == ["smoke/alone"]
    assert "smoke/npc is left out" in caplog.text
    only_npc = SimulationSuiteConfig(name="s", simulations={"smoke/npc": {**SMOKE, **half}})
    with pytest.raises(PolicyMismatchError, match="no simulation could be played"):
        SimulationSuite(only_npc, policy_store=store).run(RandomPlayer())


def test_an_unknown_environment_is_refused_before_anything_is_played():
    suite = SimulationSuiteConfig(
        name="s", simulations={"gym/a": {"env": "gym:CartPole-v1"}, "x/a": {"env": "mettagrid:navigatoin"}}
    )

    with pytest.raises(ConfigError, match="navigation"):
        SimulationSuite(suite)


def test_a_module_that_is_no_policy_cannot_play():
    with pytest.raises(ConfigError, match="a Linear cannot play"):
        as_player(torch.nn.Linear(1, 1))
