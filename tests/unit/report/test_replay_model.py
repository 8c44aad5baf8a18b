"""Replay files of the versions that can be shown, read into series."""

import importlib.resources
from pathlib import Path

import pytest

from metta_ray.common.errors import CheckpointError
from metta_ray.report.replay_model import replay_of
from metta_ray.report.replay_page import replay_data
from metta_ray.report.text_player import screens
from metta_ray.sim.replay import read_replay

AGENT = {
    "id": 7,
    "type_name": "agent",
    "agent_id": 0,
    "is_agent": True,
    "location": [[0, [1, 1]], [2, [2, 1]]],
    "inventory": [[0, []], [2, [[1, 3]]]],
    "vision_size": 3,
    "action_id": [[0, 0], [2, 1]],
    "action_success": [[0, False], [1, True]],
    "current_reward": [[0, 0.0], [2, 1.5]],
    "total_reward": [[0, 0.0], [2, 1.5]],
    "value_estimate": [[0, 0.25], [1, 0.75]],
}
WALL = {"id": 1, "type_name": "wall", "location": [0, 0]}
ALTAR = {"id": 2, "type_name": "altar", "location": [3, 1], "inventory": [[0, 20], [1, 100]]}
RAW = {
    "version": 4,
    "action_names": ["noop", "move_east"],
    "item_names": ["ore", "heart"],
    "type_names": ["agent", "wall", "altar"],
    "map_size": [4, 3],
    "num_agents": 1,
    "max_steps": 4,
    "objects": [AGENT, WALL, ALTAR],
}


def test_series_hold_from_a_change_until_the_next():
    replay = replay_of(RAW, "r")
    (thing,) = replay.agents

    assert [thing.location.at(step) for step in range(4)] == [(1, 1), (1, 1), (2, 1), (2, 1)]
    assert [thing.agent.value.at(step) for step in range(4)] == [0.25, 0.75, 0.75, 0.75]
    assert [thing.agent.total_reward.at(step) for step in range(4)] == [0.0, 0.0, 1.5, 1.5]
    assert thing.inventory.at(3) == ((1, 3),)
    assert replay.action_name(thing.agent.action.at(2)) == "move_east"


def test_a_constant_list_is_told_from_a_series_by_its_first_entry():
    altar = replay_of(RAW, "r").things[2]

    assert altar.inventory.at(0) == ((0, 20), (1, 100))
    assert altar.location.at(3) == (3, 1)


def test_what_is_missing_has_its_default_and_what_starts_late_too():
    late = {**AGENT, "alive": [[2, True]], "total_reward": [[3, 2.0]]}
    del late["value_estimate"], late["action_success"]
    (thing,) = replay_of({**RAW, "version": 3, "objects": [late]}, "r").agents

    assert [thing.alive.at(step) for step in (0, 2)] == [True, True]
    assert thing.agent.total_reward.at(2) == 0.0
    assert thing.agent.value is None
    assert thing.agent.succeeded.at(0) is False


def test_types_may_be_numbers_and_places_may_have_layers():
    old = {key: value for key, value in AGENT.items() if key != "type_name"} | {"type_id": 0, "location": [6, 7, 0]}

    (thing,) = replay_of({**RAW, "objects": [old]}, "r").agents

    assert (thing.type_name, thing.location.at(0)) == ("agent", (6, 7))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": 2}, "r is a replay of version 2; versions 3 and 4 can be shown"),
        ({"version": None}, "a replay of version None"),
        ({"map_size": None}, "r is a damaged replay"),
        ({"objects": [{**AGENT, "location": [[2, [1, 1]], [1, [1, 2]]]}]}, "changes are not in the order of steps"),
        ({"objects": [{**AGENT, "location": "here"}]}, "r is a damaged replay"),
        ({"objects": [WALL]}, "r has no agent among its 1 objects"),
        ({"max_steps": 0}, "an episode without a step"),
    ],
)
def test_what_cannot_be_shown_is_refused_with_what_is_wrong(change, said):
    with pytest.raises(CheckpointError, match=said):
        replay_of({**RAW, **change}, "r")


def test_a_missing_part_is_named():
    with pytest.raises(CheckpointError, match="'objects' is missing"):
        replay_of({name: value for name, value in RAW.items() if name != "objects"}, "r")


@pytest.mark.parametrize(
    ("file", "version", "agents", "size"),
    [
        ("tests/data/replays/42c5386e-1ec2-4255-b81f-736f7fff5f3f.json.z", 3, 5, (98, 98)),
    ],
)
def test_the_engines_own_files_are_read(file, version, agents, size):
    path = Path(str(importlib.resources.files("mettagrid"))) / "nim" / "mettascope" / file

    replay = replay_of(read_replay(path), path.name)

    assert (replay.version, len(replay.agents), replay.steps) == (version, agents, 10_000)
    assert (replay.width, replay.height) == size
    assert replay.agents[0].location.at(0) == (52, 44)


def test_pages_keep_things_that_never_change_apart():
    data = replay_data(replay_of(RAW, "r"), "t", {"policy": "p"})

    assert data["types"] == ["agent", "altar", "wall"]
    assert data["still"] == [[2, [0, 0]]]
    altar, agent = sorted(data["things"], key=lambda thing: "agent" in thing)
    assert altar["items"] == [[0], [((0, 20), (1, 100))]]
    assert agent["at"] == [[0, 2], [1, 2], [1, 1]]
    assert agent["value"] == [[0, 1], [0.25, 0.75]]
    assert data["facts"] == [["policy", "p"]]


def test_screens_of_text_show_map_and_agent_at_each_step():
    first, last = screens(replay_of(RAW, "r"), every=3)

    assert first.splitlines() == [
        "step 0 of 3 · agent 0: noop (failed) · reward 0 · so far 0 · expected 0.25",
        "holds nothing",
        "#···",
        "·0·A",
        "····",
        "# wall  A altar  0-9a-z agents",
    ]
    assert last.splitlines()[:4] == [
        "step 3 of 3 · agent 0: move_east · reward 1.5 · so far 1.5 · expected 0.75",
        "holds heart 3",
        "#···",
        "··0A",
    ]


def test_a_small_terminal_shows_the_part_around_the_agent():
    (first, *_) = screens(replay_of(RAW, "r"), area=(2, 1))

    assert first.splitlines()[2:3] == ["·0"]


def test_of_a_task_what_its_kind_uses_is_told():
    task = {"kind": "arena", "num_agents": 24, "combat": True, "shaped": False, "station": "altar", "altars": 8}
    replay = replay_of({**RAW, "infos": {"attributes": {"seed": 5, "task": task}}}, "r")

    assert replay.facts == {"seed": 5, "kind": "arena", "num agents": 24, "combat": "yes"}
