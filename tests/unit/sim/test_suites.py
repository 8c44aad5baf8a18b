"""Suites: their maps, and that the script is better than chance in each."""

import numpy as np
import pytest

from metta_ray.common.errors import ConfigError
from metta_ray.mettagrid.held_out import HELD_OUT_ENTROPY
from metta_ray.mettagrid.tasks import build_grid
from metta_ray.mettagrid.terrain import Cell
from metta_ray.sim.comparing import References, returns_of, score
from metta_ray.sim.players import RandomPlayer, ScriptedPlayer
from metta_ray.sim.simulation import Simulation, env_factory
from metta_ray.sim.simulation_config import SingleEnvSimulationConfig
from metta_ray.sim.simulation_suite import SimulationSuite
from metta_ray.sim.suites import known_suites, named_suite


def specs_of(config: SingleEnvSimulationConfig, num_envs: int = 1) -> list:
    return [template.spec for template in env_factory(config, num_envs).table.templates]


def test_an_unknown_suite_is_refused_with_the_nearest_and_all_known():
    with pytest.raises(ConfigError) as error:
        named_suite("navigatoin")
    assert "did you mean 'navigation'" in str(error.value)
    assert all(name in str(error.value) for name in known_suites())


def test_an_unknown_suite_like_none_is_told_what_is_known_once():
    with pytest.raises(ConfigError) as error:
        named_suite("chess")
    assert str(error.value) == f"suite 'chess' is unknown; known: {', '.join(known_suites())}"


def test_all_is_every_suite_but_smoke():
    parts = [named_suite(name).simulations for name in known_suites() if name not in ("all", "smoke")]
    assert named_suite("all").simulations == {name: one for part in parts for name, one in part.items()}
    assert {name.partition("/")[0] for name in named_suite("all").simulations} == {
        *("navigation", "memory", "navigation_sequence", "arena", "object_use")
    }


@pytest.mark.parametrize("window", [5, 11])
def test_every_map_is_seeded_and_no_two_simulations_share_one(window):
    seeds = set()
    simulations = named_suite("all", window=window).simulations | named_suite("smoke", window=window).simulations
    for config in simulations.values():
        specs = specs_of(config)
        assert len(specs) == config.num_episodes
        assert {spec.window for spec in specs} == {window}
        seeds |= {spec.map_seed for spec in specs}
        build_grid(specs[0], np.random.default_rng(0))
    assert len(seeds) == sum(config.num_episodes for config in simulations.values())
    assert all(seed[0] != HELD_OUT_ENTROPY for seed in seeds)


def test_more_episodes_are_the_same_maps_and_further_ones():
    few, many = (named_suite("memory", episodes=episodes).simulations["memory/far"] for episodes in (3, 5))
    assert specs_of(many)[:3] == specs_of(few)


@pytest.mark.parametrize("window", [5, 11])
@pytest.mark.parametrize("name", ["near", "medium", "far"])
def test_the_cue_is_out_of_sight_where_the_agent_must_choose(window, name):
    for spec in specs_of(named_suite("memory", window=window).simulations[f"memory/{name}"])[:4]:
        grid = build_grid(spec.model_copy(update={"num_agents": 1}), np.random.default_rng(0))
        cue = np.argwhere((grid == Cell.CUE_LEFT) | (grid == Cell.CUE_RIGHT))[0]
        crossing = np.argwhere(grid == Cell.GOOD_ALTAR)[0]
        assert cue[0] - crossing[0] > window // 2


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("smoke", {}),
        ("memory", {}),
        ("object_use", {"max_steps": 100}),
        ("navigation_sequence", {"max_steps": 150}),
        ("arena", {"max_steps": 60, "num_agents": 6}),
    ],
)
def test_the_script_is_better_than_chance_in_every_simulation(name, changes):
    suite = named_suite(name, window=5, episodes=2)
    simulations = {
        title: one.model_copy(update={"env_overrides": {**one.env_overrides, **changes}})
        for title, one in suite.simulations.items()
        if not title.endswith("_medium")
    }
    ready = SimulationSuite(suite.model_copy(update={"simulations": simulations}))

    random, scripted = (returns_of(ready.run(player)) for player in (RandomPlayer(), ScriptedPlayer()))

    for title in simulations:
        assert random[title].keys() == scripted[title].keys()
        assert np.mean(list(scripted[title].values())) > np.mean(list(random[title].values())) + 0.2, title
    references = References(random, scripted)
    assert score(scripted, references).value == 1
    assert score(random, references).value == 0


@pytest.mark.parametrize(
    ("title", "returns"),
    [
        ("navigation/cylinder-world_large", [32, 32]),
        ("memory/far", [4, 4]),
        ("navigation_sequence/dense_small", [36, 11]),
        ("arena/basic", [64, 69]),
        ("object_use/lasery", [40, 39]),
        ("smoke/altar", [30, 30]),
    ],
)
def test_the_script_gets_what_it_always_got(title, returns):
    config = named_suite(title.partition("/")[0], episodes=2).simulations[title]

    played = Simulation(title, config, seed=0).run(ScriptedPlayer())

    # Every score is relative to it: what makes the script quicker must not change a decision.
    assert [sum(agent["reward"] for agent in episode.agent_metrics) for episode in played.episodes] == returns


def test_fixed_maps_need_one_mettagrid_task():
    with pytest.raises(ConfigError, match="only MettaGrid has seeded maps"):
        Simulation("a/b", SingleEnvSimulationConfig(env="gym:CartPole-v1", num_episodes=1, fixed_maps=[1]))
    with pytest.raises(ConfigError, match="it has 64 tasks"):
        Simulation("a/b", SingleEnvSimulationConfig(env="mettagrid:bucketed", num_episodes=1, fixed_maps=[1]))
