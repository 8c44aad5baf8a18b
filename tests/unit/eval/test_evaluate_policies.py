"""Players that meet the same episodes: scores, differences, opponents, and what is refused."""

import json

import pytest
import torch

from metta_ray import cli
from metta_ray.agent.factory import Agent
from metta_ray.agent.policy_metadata import PolicyMetadata
from metta_ray.agent.policy_store import PolicyStore
from metta_ray.common.errors import ConfigError, PolicyMismatchError
from metta_ray.envs.registry import resolve_env
from metta_ray.eval import score_tables
from metta_ray.eval.eval_stats_db import EvalStatsDB
from metta_ray.eval.evaluate_policies import evaluate_policies
from metta_ray.sim.simulation_config import SimulationSuiteConfig

CARTPOLE = SimulationSuiteConfig(name="cart", simulations={"gym/cart": {"env": "gym:CartPole-v1"}}, num_episodes=4)


def save(store: PolicyStore, epoch: int, env: str = "mettagrid:smoke", run: str = "first", **overrides) -> str:
    record = store.create_empty_policy_record(f"model_{epoch:04d}", store.data_dir / run / "checkpoints")
    spec = resolve_env(env, **overrides).spec()
    record.policy = Agent(spec, config={"architecture": "mlp", "hidden_sizes": [8]}, device="cpu")
    with torch.no_grad():
        for weights in record.policy.parameters():
            weights *= 10 * epoch  # decided, and each in its own way
    record.metadata = PolicyMetadata(epoch=epoch, agent_step=epoch * 100)
    return store.save(record).uri


@pytest.fixture
def store(tmp_path) -> PolicyStore:
    return PolicyStore(data_dir=tmp_path)


def test_the_references_are_0_and_1_and_the_policy_meets_their_episodes(store, tmp_path):
    uri = save(store, 3)
    with EvalStatsDB(tmp_path / "eval.sqlite") as db:
        table = evaluate_policies([uri], "smoke", episodes=6, stats_db=db, policy_store=store)

        assert table.labels == ("model_0003", "random", "scripted")
        assert table.score("scripted")["score"] == 1
        assert table.score("random")["score"] == 0
        row = table.score("model_0003", "smoke/altar")
        assert (row["episodes"], row["incomplete"], row["run"]) == (6, 0, "first")
        assert row["low"] <= row["score"] <= row["high"] < 1
        stored = {one["policy"]: one for one in score_tables.suite_scores(db, "smoke")}
        assert stored[uri]["score"] == row["score"]
        assert stored[uri]["agent_step"] == 300
    assert "0 = chance, 1 = scripted" in table.text()
    json.dumps(table.to_json())


def test_the_score_is_remembered_with_the_policy_and_selectors_see_it(store):
    torch.manual_seed(1)  # of two whose scores differ
    uris = [save(store, epoch) for epoch in (1, 2)]

    table = evaluate_policies(uris, "smoke", episodes=4, policy_store=store)

    scores = [table.score(label)["score"] for label in table.labels[:2]]
    best = store.policy_record(store.data_dir / "first", "top", metric="smoke/score")
    assert scores[0] != scores[1]
    assert best.metadata.epoch == 1 + scores.index(max(scores))
    assert best.metadata.score_of("smoke/score") == max(scores)
    assert best.metadata.score_of("smoke/score_low") <= max(scores) <= best.metadata.score_of("smoke/score_high")
    assert store.policy_records(store.data_dir / "first", "all", filters={"smoke/altar": "< 2"})
    assert not list(best.file_path.glob("pin.*"))


def test_policies_are_compared_over_the_same_episodes(store):
    one, other = save(store, 1), save(store, 1, run="second")

    table = evaluate_policies([one], "smoke", against=[other, "random", "scripted"], episodes=5, policy_store=store)

    assert table.labels == ("first/model_0001", "second/model_0001", "random", "scripted")
    *_, suite = table.differences
    assert suite["other_label"] == "second/model_0001"
    assert suite["episodes"] == 5
    expected = table.score("first/model_0001")["score"] - table.score("second/model_0001")["score"]
    assert suite["difference"] == pytest.approx(expected)
    assert "first/model_0001 less second/model_0001" in table.text()


def test_an_evaluation_cut_off_by_time_shows_what_there_is_and_says_so():
    table = evaluate_policies(["random"], "smoke", episodes=3, time_limit_s=1e-9)

    row = table.score("random")
    assert (row["episodes"], row["incomplete"], row["score"]) == (0, 3, None)
    assert "0 (incomplete: 3 cut off)" in table.text()


def test_other_agents_are_driven_by_the_opponent_and_have_results_of_their_own(tmp_path):
    suite = SimulationSuiteConfig(
        name="mixed",
        simulations={"smoke/four": {"env": "mettagrid:smoke", "env_overrides": {"num_agents": 4}}},
        num_episodes=3,
    )
    with EvalStatsDB(tmp_path / "eval.sqlite") as db:
        evaluate_policies(["random"], suite, against=[], npc="scripted", policy_agents_pct=0.25, stats_db=db)

        evaluated, other = sorted(score_tables.opponents(db), key=lambda row: row["role"])
        (row,) = score_tables.suite_scores(db, "mixed")
    assert (evaluated["policy"], evaluated["role"], evaluated["episodes"]) == ("random", "evaluated", 3)
    assert (other["policy"], other["role"]) == ("scripted", "other")
    assert evaluated["mean_return"] < 5 < 28 < other["mean_return"]
    assert row["score"] == evaluated["mean_return"]


def test_an_environment_without_a_script_is_measured_in_returns():
    table = evaluate_policies(["random"], CARTPOLE)
    assert (table.measure, table.labels) == ("return", ("random",))
    assert table.score("random")["score"] > 5


def test_policies_that_do_not_fit_are_refused_before_anything_is_played(store):
    narrow, wide = save(store, 1), save(store, 2, window=7)
    cart = save(store, 3, env="gym:CartPole-v1")
    told: list[str] = []

    with pytest.raises(PolicyMismatchError, match=r"windows of 5x5 cells .*7x7 cells .*evaluate them apart"):
        evaluate_policies([narrow, wide], "smoke", policy_store=store, on_played=lambda *one: told.append(one))
    with pytest.raises(PolicyMismatchError, match=r"gym:CartPole-v1 with observations \(4,\), but suite smoke"):
        evaluate_policies([cart], "smoke", policy_store=store, on_played=lambda *one: told.append(one))
    with pytest.raises(PolicyMismatchError, match="observations"):
        evaluate_policies(["random", narrow], CARTPOLE, policy_store=store, on_played=lambda *one: told.append(one))
    with pytest.raises(ConfigError, match="no policy to evaluate"):
        evaluate_policies([], "smoke")
    assert told == []


# ---- the command ----


def test_the_command_prints_a_table_and_writes_json(tmp_path, capsys):
    file = tmp_path / "out.json"

    assert cli.main(["evaluate", "random", "--suite", "smoke", "--episodes", "2", "--json", str(file)]) == 0

    assert "smoke/altar" in capsys.readouterr().out
    assert json.loads(file.read_text())["players"] == ["random", "scripted"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["random", "--suite", "smok"], "did you mean 'smoke'"),
        (["nowhere"], "nowhere"),
        (["random", "--episodes", "0"], "--episodes 0"),
        (["random", "--policy-share", "2"], "--policy-share 2.0"),
    ],
)
def test_the_command_refuses_in_one_line(words, message, capsys):
    assert cli.main(["evaluate", *words]) != 0

    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line
