"""Tables of a statistics file, with returns chosen so that every number can be worked out by hand."""

import csv
import sqlite3

import pytest

from metta_ray.common.errors import ConfigError, StatsDBError
from metta_ray.eval import score_tables
from metta_ray.eval.eval_stats_db import SCHEMA_VERSION, EvalStatsDB, run_of
from metta_ray.eval.export import export, formats
from metta_ray.eval.promotion import choose_best, find_regression
from metta_ray.sim.comparing import References
from metta_ray.sim.results import PlayedEpisode, PolicyKey, SimulationResult

RANDOM, SCRIPTED = PolicyKey("random"), PolicyKey("scripted")
MAZE, OPEN = "navigation/maze", "navigation/open"


def version(number: int, run: str = "first") -> PolicyKey:
    return PolicyKey(f"file:///data/{run}/checkpoints/model_{number:04d}", number)


def result(policy: PolicyKey, simulation: str, returns: list[float], *, incomplete: int = 0, settings: str = ""):
    episodes = tuple(
        PlayedEpisode(
            id=f"{policy.uri}{policy.version}{simulation}{number}{settings}",
            env_index=number,
            number=0,
            task_id=f"map={number}",
            seed=(7, number),
            steps=10,
            score=0.0,
            agent_metrics=({"reward": value - 1}, {"reward": value + 1}),
            agent_policies=(policy, policy),
            created_at=1.0,
            completed_at=2.0,
        )
        for number, value in enumerate(returns)
    )
    return SimulationResult("navigation", simulation, "e", policy, episodes, incomplete, 100.0, 5.0, settings)


@pytest.fixture
def db(tmp_path):
    """Chance gets 0 to 2 and the script 10 more, on the same four maps, in two simulations."""
    with EvalStatsDB(tmp_path / "eval.sqlite") as database:
        for simulation in (MAZE, OPEN):
            database.record(result(RANDOM, simulation, [0, 1, 1, 2]))
            database.record(result(SCRIPTED, simulation, [10, 11, 11, 12]))
        for number, maze, open_room in ((1, 2, 3), (2, 6, 7), (3, 6, 4)):
            database.record(result(version(number), MAZE, [0 + maze, 1 + maze, 1 + maze, 2 + maze]))
            database.record(result(version(number), OPEN, [0 + open_room, 1 + open_room, 1 + open_room, 2 + open_room]))
            database.record_policy(version(number), number * 1000)
        yield database


def test_scores_are_shares_of_what_is_possible(db):
    rows = {(row["policy"], row["simulation"]): row for row in score_tables.simulation_scores(db, "navigation")}

    maze = rows[version(1).uri, MAZE]
    # (3 - 1) / (11 - 1); every episode is 2 above chance, but chance and script vary over episodes together.
    assert maze["score"] == pytest.approx(0.2)
    assert (maze["low"], maze["high"]) == (pytest.approx(0.2), pytest.approx(0.2))
    assert maze["mean_return"] == 3.0
    assert maze["measure"] == "share"
    assert (maze["episodes"], maze["incomplete"], maze["run"], maze["agent_step"]) == (4, 0, "first", 1000)
    assert rows["scripted", OPEN]["score"] == 1
    assert rows["random", OPEN]["score"] == 0


def test_a_suites_score_is_the_mean_of_its_simulations_best_first(db):
    rows = score_tables.suite_scores(db, "navigation")
    assert [(row["policy"], round(row["score"], 6)) for row in rows] == [
        ("scripted", 1),
        (version(2).uri, 0.65),
        (version(3).uri, 0.5),
        (version(1).uri, 0.25),
        ("random", 0),
    ]


def test_versions_of_a_run_in_order_and_which_is_best(db):
    rows = score_tables.scores_over_versions(db, "navigation", "first")
    assert [row["version"] for row in rows] == [1, 2, 3]
    assert [row["agent_step"] for row in rows] == [1000, 2000, 3000]
    assert [row["is_best"] for row in rows] == [False, True, False]
    assert [row["gain"] for row in rows] == [None, pytest.approx(0.4), pytest.approx(-0.15)]


def test_regressions_are_flagged_where_the_interval_excludes_zero(db):
    suite, room = score_tables.regressions(db, "navigation", "first")
    assert (suite["simulation"], suite["best_version"], suite["latest_version"]) == (None, 2, 3)
    assert suite["drop"] == pytest.approx(0.15)
    assert suite["is_regression"]
    assert (room["simulation"], room["drop"], room["is_regression"]) == (OPEN, pytest.approx(0.3), True)


def test_a_drop_within_its_interval_is_no_regression():
    best, latest = {"a": {"1": 5.0, "2": 0.0, "3": 4.0}}, {"a": {"1": 0.0, "2": 5.0, "3": 3.0}}
    found = find_regression([best, latest], References())
    assert found.drop.value == pytest.approx(1 / 3)
    assert not found.is_certain


def test_luck_promotes_nobody():
    steady = {"a": {str(i): 5.0 for i in range(6)}}
    lucky = {"a": {"0": 20.0, **{str(i): 4.0 for i in range(1, 6)}}}  # mean 6.67
    better = {"a": {str(i): 5.5 for i in range(6)}}
    assert choose_best([steady, lucky], References()).best == 0
    assert choose_best([steady, lucky, better], References()).best == 2
    with pytest.raises(ValueError, match="no policy"):
        choose_best([], References())


def test_head_to_head_over_the_episodes_that_both_met(db):
    maze, open_room, suite = score_tables.head_to_head(db, "navigation", version(2), version(3))
    assert (maze["simulation"], maze["difference"], maze["episodes"]) == (MAZE, 0, 4)
    assert open_room["difference"] == pytest.approx(0.3)
    assert (suite["simulation"], suite["episodes"]) == (None, 8)
    assert (suite["difference"], suite["difference_low"]) == (pytest.approx(0.15), pytest.approx(0.15))


def test_results_of_other_settings_are_not_compared(db):
    other = version(1, "second")
    db.record(result(other, MAZE, [9, 9, 9, 9], settings='{"max_steps": 5}'))
    (maze, _suite) = score_tables.head_to_head(db, "navigation", version(2), other)
    assert (maze["episodes"], maze["difference"]) == (0, None)


def test_without_references_scores_are_returns(tmp_path):
    with EvalStatsDB(tmp_path / "eval.sqlite") as db:
        db.record(result(version(1), MAZE, [1, 3], incomplete=2))
        (row,) = score_tables.suite_scores(db, "navigation")
    assert (row["measure"], row["score"], row["low"], row["high"]) == ("return", 2, 1, 3)
    assert row["incomplete"] == 2


def test_a_suite_without_a_finished_episode_has_no_score(tmp_path):
    with EvalStatsDB(tmp_path / "eval.sqlite") as db:
        db.record(result(version(1), MAZE, [], incomplete=4))
        (row,) = score_tables.suite_scores(db, "navigation")
    assert (row["score"], row["episodes"], row["incomplete"]) == (None, 0, 4)


def test_what_is_not_there_is_said(db, tmp_path):
    with pytest.raises(StatsDBError, match="no results of suite 'navigatoin'; did you mean 'navigation'"):
        score_tables.suite_scores(db, "navigatoin")
    with pytest.raises(ConfigError, match="run 'frist' was not evaluated in this suite; did you mean 'first'"):
        score_tables.scores_over_versions(db, "navigation", "frist")
    with pytest.raises(StatsDBError, match="has no results in suite"):
        score_tables.head_to_head(db, "navigation", version(9), version(1))
    with pytest.raises(StatsDBError, match=r"no evaluations in .*nothing\.sqlite"):
        EvalStatsDB.existing(tmp_path / "nothing.sqlite")


def test_episodes_and_policies_are_listed(db):
    rows = score_tables.episodes(db, "navigation", version(1))
    assert [(row["simulation"], row["task"], row["mean_return"]) for row in rows[:2]] == [
        (MAZE, "map=0", 2.0),
        (MAZE, "map=1", 3.0),
    ]
    assert len(rows) == 8
    assert [(row["run"], row["version"], row["episodes"]) for row in score_tables.policies(db)] == [
        *(("first", number, 8) for number in (1, 2, 3)),
        ("random", 0, 8),
        ("scripted", 0, 8),
    ]


def test_a_result_that_is_sent_twice_is_stored_once(db):
    again = result(version(4), MAZE, [1, 1, 1, 1])
    assert db.record(again, "same") == db.record(again, "same") == "same"
    assert len(score_tables.episodes(db, "navigation", version(4))) == 4


def test_tables_as_csv_and_where_possible_parquet(db, tmp_path):
    written = export(db, tmp_path / "out")

    assert {path.suffix for path in written} == {f".{name}" for name in formats()}
    with (tmp_path / "out" / "suite_scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["score"]) for row in rows] == pytest.approx([1, 0.65, 0.5, 0.25, 0])
    with (tmp_path / "out" / "episodes.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 40
    with pytest.raises(ConfigError, match="format 'xls' cannot be written here"):
        export(db, tmp_path, ["xls"])


def test_parquet_holds_the_same_rows_and_without_pyarrow_the_remedy_is_said(db, tmp_path, monkeypatch):
    parquet = pytest.importorskip("pyarrow.parquet")
    export(db, tmp_path, ["parquet"])

    assert parquet.read_table(tmp_path / "episodes.parquet").to_pylist() == db.query("SELECT * FROM episodes")
    scores = parquet.read_table(tmp_path / "suite_scores.parquet").to_pylist()
    assert [row["score"] for row in scores] == pytest.approx([1, 0.65, 0.5, 0.25, 0])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="install pyarrow"):
        export(db, tmp_path, ["parquet"])


def test_a_file_of_version_1_is_brought_up_to_date(db, tmp_path):
    path, rows = db.path, score_tables.suite_scores(db, "navigation")
    db.close()
    with sqlite3.connect(path) as raw:
        raw.execute("DROP TABLE policies")
        raw.execute("ALTER TABLE simulations DROP COLUMN settings")
        raw.execute("UPDATE schema_version SET version = 1")

    with EvalStatsDB(path) as newer:
        assert newer.query("SELECT version FROM schema_version") == [{"version": SCHEMA_VERSION}]
        assert score_tables.suite_scores(newer, "navigation") == [{**row, "agent_step": None} for row in rows]


def test_the_run_of_a_policy_is_read_from_where_it_lies():
    assert run_of("file:///data/first/checkpoints/model_0012") == "first"
    assert run_of("file:///data/kept/model_0012") == "kept"
    assert run_of("random") == "random"
