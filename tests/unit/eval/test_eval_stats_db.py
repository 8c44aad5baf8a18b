"""Scores by hand; several writers; other files."""

import multiprocessing
import sqlite3

import pytest

from metta_ray.eval.eval_stats_db import SCHEMA_VERSION, EvalStatsDB, StatsDBError
from metta_ray.sim.results import PlayedEpisode, PolicyKey, SimulationResult

US, OTHERS = PolicyKey("file:///runs/a/model_0003", 3), PolicyKey("npc", 1)


def episode(name: str, metrics: list[dict[str, float]], *, score=0.0, steps=10, policies=None, replay=None):
    return PlayedEpisode(
        id=name,
        env_index=0,
        number=0,
        task_id="task-7",
        seed=(1, 2),
        steps=steps,
        score=score,
        agent_metrics=tuple(metrics),
        agent_policies=tuple(policies or [US] * len(metrics)),
        created_at=1.0,
        completed_at=2.0,
        attributes={"config.terrain": "maze"},
        replay_path=replay,
    )


def simulation(name: str, *episodes: PlayedEpisode, policy=US, incomplete=0) -> SimulationResult:
    return SimulationResult("suite", name, "mettagrid:navigation", policy, episodes, incomplete, 100.0, 5.0)


@pytest.fixture
def db(tmp_path):
    with EvalStatsDB(tmp_path / "stats" / "eval.sqlite") as database:
        yield database


def test_a_metric_that_an_agent_did_not_record_counts_as_zero(db):
    # two episodes × two agents: hearts 3, (none), 1, (none); rewards 1, 1, 1, 1
    first = episode("e1", [{"reward": 1.0, "hearts": 3.0}, {"reward": 1.0}])
    second = episode("e2", [{"reward": 1.0, "hearts": 1.0}, {"reward": 1.0}])
    db.record(simulation("navigation/maze", first, second))

    assert db.average_metric(US, "hearts") == (3 + 1) / 4
    assert db.average_metric(US, "reward") == 1.0
    assert db.average_metric(US, "never_seen") == 0.0
    assert db.average_metric(PolicyKey("unknown"), "hearts") is None
    assert db.sample_count(US) == 4


def test_k19_categories_are_compared_exactly(db):
    db.record(simulation("navigation/a", episode("e1", [{"reward": 2.0}])))
    db.record(simulation("navigation/b", episode("e2", [{"reward": 4.0}])))
    db.record(simulation("navigation_sequence/a", episode("e3", [{"reward": 100.0}])))

    assert db.category_scores(US, "reward") == {"navigation": 3.0, "navigation_sequence": 100.0}
    assert db.simulation_scores(US, "reward") == {
        ("navigation", "a"): 2.0,
        ("navigation", "b"): 4.0,
        ("navigation_sequence", "a"): 100.0,
    }


def test_the_environments_own_score_is_a_metric_of_every_agent(db):
    db.record(simulation("nav/a", episode("e1", [{"reward": 2.0}, {"reward": 0.0}], score=0.25)))

    assert db.average_metric(US) == 0.25
    assert db.metric_names(US) == ["reward", "score"]


def test_real_steps_are_stored_and_rows_exist_for_this_episodes_agents_only(db):
    mixed = episode("e1", [{"reward": 5.0}, {"reward": 1.0}, {"reward": 3.0}], steps=7, policies=[US, OTHERS, OTHERS])
    db.record(simulation("nav/a", mixed))

    assert db.query("SELECT step_count FROM episodes") == [{"step_count": 7}]
    assert db.query("SELECT agent_id, policy_key, policy_version FROM agent_policies ORDER BY agent_id") == [
        {"agent_id": 0, "policy_key": US.uri, "policy_version": 3},
        {"agent_id": 1, "policy_key": "npc", "policy_version": 1},
        {"agent_id": 2, "policy_key": "npc", "policy_version": 1},
    ]
    assert [row["group_id"] for row in db.query("SELECT group_id FROM agent_groups ORDER BY agent_id")] == [0, 1, 1]
    assert db.average_metric(US, "reward") == 5.0
    assert db.average_metric(OTHERS, "reward") == 2.0
    assert db.policies() == [US]


def test_attributes_and_replays_are_found_again(db):
    db.record(simulation("nav/a", episode("e1", [{"reward": 0.0}], replay="/r/e1.json.z"), incomplete=2))

    attributes = {row["attribute"]: row["value"] for row in db.query("SELECT * FROM episode_attributes")}
    assert attributes == {"config.terrain": "maze", "task_id": "task-7", "seed": "1 2"}
    assert db.replay_urls(US, "nav/a") == ["/r/e1.json.z"]
    (row,) = db.query("SELECT created_at, finished_at, incomplete_episodes FROM simulations")
    assert row == {"created_at": 100.0, "finished_at": 105.0, "incomplete_episodes": 2}


def test_a_simulation_is_stored_whole_or_not_at_all(db):
    broken = episode("e2", [{"reward": "many"}])

    with pytest.raises(ValueError, match="many"):
        db.record(simulation("nav/a", episode("e1", [{"reward": 1.0}]), broken))

    assert db.query("SELECT COUNT(*) AS n FROM simulations") == [{"n": 0}]
    assert db.query("SELECT COUNT(*) AS n FROM episodes") == [{"n": 0}]


def test_shards_are_merged_once(db, tmp_path):
    with EvalStatsDB(tmp_path / "shard.sqlite") as shard:
        shard.record(simulation("nav/a", episode("e1", [{"reward": 3.0}])))
    db.record(simulation("nav/a", episode("e2", [{"reward": 1.0}])))

    db.merge(tmp_path / "shard.sqlite")
    db.merge(tmp_path / "shard.sqlite")

    assert db.average_metric(US, "reward") == 2.0
    assert db.sample_count(US) == 2


def test_merging_a_file_that_is_not_there_is_an_error(db):
    with pytest.raises(StatsDBError, match=r"absent\.sqlite does not exist"):
        db.merge("absent.sqlite")


def write_many(path: str, writer: int) -> None:
    for number in range(5):
        with EvalStatsDB(path) as database:
            database.record(simulation(f"nav/{writer}", episode(f"{writer}-{number}", [{"reward": 1.0}])))


def test_several_processes_write_one_file(tmp_path):
    path = str(tmp_path / "eval.sqlite")
    processes = [multiprocessing.get_context("spawn").Process(target=write_many, args=(path, i)) for i in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()

    assert [process.exitcode for process in processes] == [0, 0, 0]
    with EvalStatsDB(path) as database:
        assert database.sample_count(US) == 15


def test_another_schema_version_is_refused_with_a_remedy(tmp_path):
    path = tmp_path / "eval.sqlite"
    EvalStatsDB(path).close()
    with sqlite3.connect(path) as raw:
        raw.execute("UPDATE schema_version SET version = 99")

    with pytest.raises(StatsDBError, match=f"schema version 99, .* {SCHEMA_VERSION}; move the file away"):
        EvalStatsDB(path)


def test_foreign_and_damaged_files_are_refused_by_name(tmp_path):
    foreign, damaged = tmp_path / "foreign.sqlite", tmp_path / "damaged.sqlite"
    with sqlite3.connect(foreign) as raw:
        raw.execute("CREATE TABLE recipes (id)")
    damaged.write_bytes(b"not a database" * 100)

    with pytest.raises(StatsDBError, match=r"foreign\.sqlite is an SQLite file of something else"):
        EvalStatsDB(foreign)
    with pytest.raises(StatsDBError, match=r"damaged\.sqlite cannot be used"):
        EvalStatsDB(damaged)
