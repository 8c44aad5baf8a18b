import json
import math
from functools import partial

import pytest

from metta_ray.agent.factory import Agent
from metta_ray.agent.policy_store import PolicyStore
from metta_ray.mettagrid.held_out import held_out_tasks
from metta_ray.mettagrid.task_spec import MIXED_TERRAIN, TaskSpec
from metta_ray.sim import held_out
from metta_ray.sim.held_out import HeldOutResult, play_held_out
from metta_ray.sim.players import RandomPlayer, ScriptedPlayer
from metta_ray.sim.results import PlayedEpisode, PolicyKey, SimulationResult


def episode(number: int, terrain: str, altars: int, hearts: list[float]) -> PlayedEpisode:
    return PlayedEpisode(
        id=str(number),
        env_index=number,
        number=0,
        task_id="",
        seed=(),
        steps=999,
        score=sum(hearts) / altars,
        agent_metrics=tuple({"reward": heart} for heart in hearts),
        agent_policies=(PolicyKey("p"),) * len(hearts),
        created_at=0,
        completed_at=0,
        attributes={"config.terrain": terrain, "config.altars": str(altars)},
    )


def test_hearts_and_shares_by_group_by_hand():
    episodes = (
        episode(0, "varied_terrain/maze_small", 4, [1.0, 3.0]),  # 2 of 4
        episode(1, "varied_terrain/maze_large", 16, [4.0, 8.0]),  # 6 of 16
        episode(2, "varied_terrain/cylinder-world_small", 10, [10.0, 10.0]),  # 10 of 10
        episode(3, MIXED_TERRAIN, 10, [1.0, 1.0]),  # 1 of 10
    )

    result = HeldOutResult.of("p", SimulationResult("", "n/h", "e", PolicyKey("p"), episodes, 0, 0.0, 12.0))

    means = {group: estimate.mean for group, estimate in result.hearts.items()}
    assert means == {
        "all": 4.75,
        "maze": 4.0,
        "cylinder-world": 10.0,
        "mixed": 1.0,
        "large": 6.0,
        "small": 6.0,
        "2-5 altars": 2.0,
        "10-13 altars": 5.5,
        "14-17 altars": 6.0,
    }
    assert result.share["all"] == pytest.approx(19 / 40)
    assert result.share["maze"] == pytest.approx(8 / 20)
    # mean 4.75, squared deviations 7.5625 + 1.5625 + 27.5625 + 14.0625 = 50.75
    assert result.hearts["all"].standard_error == pytest.approx(math.sqrt(50.75 / 3 / 4))
    lines = held_out.table([result]).splitlines()
    assert lines[1].split() == ["all", "4.75", "(48%)"]


@pytest.fixture
def two_small_maps(monkeypatch) -> list[TaskSpec]:
    monkeypatch.setattr(held_out, "play_maps", partial(held_out.play_maps, max_steps=200))
    small = [task for task in held_out_tasks() if task.terrain.endswith("sparse_small") and task.altars <= 3]
    return small[:2]


def test_every_map_is_played_once_and_the_script_takes_every_altar(two_small_maps):
    result = play_held_out(ScriptedPlayer(), "scripted", tasks=two_small_maps)

    assert result.share["all"] == 1.0
    assert result.hearts["all"].mean == sum(task.altars for task in two_small_maps) / 2


def test_chance_is_repeatable(two_small_maps):
    first, second = (play_held_out(RandomPlayer(), "random", tasks=two_small_maps).hearts for _ in range(2))

    assert first == second


def test_the_command_prints_json_for_every_variant(two_small_maps, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(held_out, "held_out_tasks", lambda: two_small_maps)
    store = PolicyStore()
    record = store.create_empty_policy_record("model_0001", tmp_path / "checkpoints")
    spec = held_out.MettaGridFactory("mettagrid:navigation").spec()
    record.policy = Agent(spec, config={"architecture": "light"}, device="cpu")
    store.save(record)

    assert held_out.main([str(tmp_path), "--json", "--reference", "--variants"]) == 0

    results = json.loads(capsys.readouterr().out)
    assert [result["player"] for result in results] == ["model_0001", "greedy", "no memory", "random", "scripted"]
    assert results[-1]["share"]["all"] == 1.0


def test_a_missing_policy_is_exit_code_2_and_one_line(tmp_path, capsys):
    assert held_out.main([str(tmp_path / "nowhere")]) == 2

    assert "nowhere" in capsys.readouterr().err
