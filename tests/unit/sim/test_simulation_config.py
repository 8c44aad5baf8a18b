import pytest
from pydantic import ValidationError

from metta_ray.sim.simulation_config import (
    SimulationConfig,
    SimulationSuiteConfig,
    SingleEnvSimulationConfig,
)
from metta_ray.sim.simulation_suite import create_evaluation_config_suite, create_replay_config


def test_defaults_are_those_of_the_reference():
    config = SimulationConfig(num_episodes=3)

    assert config.model_dump() == {
        "num_episodes": 3,
        "max_time_s": 120.0,
        "env_overrides": {},
        "npc_policy_uri": None,
        "policy_agents_pct": 1.0,
    }


def test_suite_values_are_defaults_of_the_children_and_the_child_wins():
    suite = SimulationSuiteConfig(
        name="s",
        num_episodes=7,
        max_time_s=10,
        env_overrides={"max_steps": 50, "altars": 3},
        simulations={
            "a/x": {"env": "mettagrid:navigation"},
            "a/y": {"env": "mettagrid:navigation", "num_episodes": 2, "env_overrides": {"altars": 5}},
            "b/z": SingleEnvSimulationConfig(env="gym:CartPole-v1", num_episodes=1, max_time_s=99),
        },
    )

    x, y, z = suite.simulations.values()
    assert (x.num_episodes, x.max_time_s, x.env_overrides) == (7, 10, {"max_steps": 50, "altars": 3})
    assert (y.num_episodes, y.max_time_s, y.env_overrides) == (2, 10, {"max_steps": 50, "altars": 5})
    assert (z.num_episodes, z.max_time_s) == (1, 99)


def test_agents_without_a_policy_are_refused():
    with pytest.raises(ValidationError, match=r"policy_agents_pct=0\.5 leaves agents without a policy"):
        SimulationConfig(num_episodes=1, policy_agents_pct=0.5)


@pytest.mark.parametrize(
    "bad", [{"num_episodes": 0}, {"max_time_s": 0}, {"policy_agents_pct": 0}, {"policy_agents_pct": 1.5}]
)
def test_values_out_of_range_are_refused(bad):
    with pytest.raises(ValidationError):
        SimulationConfig(**{"num_episodes": 1, **bad})


def test_an_unknown_key_suggests_the_nearest():
    with pytest.raises(ValidationError, match="num_episodes"):
        SingleEnvSimulationConfig(env="gym:CartPole-v1", num_episode=1)


def test_the_evaluation_suite_is_navigation_in_three_sizes():
    suite = create_evaluation_config_suite()

    assert list(suite.simulations) == [f"navigation/terrain_{size}" for size in ("small", "medium", "large")]
    for name, simulation in suite.simulations.items():
        assert (simulation.num_episodes, simulation.max_time_s) == (5, 30)
        assert simulation.env_overrides == {"terrain": f"varied_terrain/balanced_{name.rpartition('_')[2]}"}


def test_the_replay_config_is_one_episode_of_a_minute():
    config = create_replay_config("varied_terrain/maze_small")

    assert (config.num_episodes, config.max_time_s) == (1, 60)
    assert config.env_overrides == {"terrain": "varied_terrain/maze_small"}
    assert create_replay_config().env_overrides == {"terrain": "varied_terrain/balanced_medium"}
