"""The evaluator as a plain object: what it answers, and that nothing it writes is written twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from metta_ray.agent.factory import Agent
from metta_ray.agent.policy_metadata import PolicyMetadata
from metta_ray.agent.policy_pins import fingerprint
from metta_ray.agent.policy_store import PolicyStore
from metta_ray.control.evaluation_queue import EvaluationRequest
from metta_ray.envs.registry import resolve_env
from metta_ray.eval.eval_stats_db import EvalStatsDB
from metta_ray.service.evaluator import Evaluator
from metta_ray.service.identity import Identity
from tests.fakes import small_config


def policy_in(run_dir: Path, epoch: int, env: str = "gym:CartPole-v1") -> Path:
    store = PolicyStore(data_dir=run_dir)
    record = store.create_empty_policy_record(f"model_{epoch:04d}", run_dir / "checkpoints")
    record.policy = Agent(resolve_env(env).spec(), config={"architecture": "mlp", "hidden_sizes": [8]}, device="cpu")
    record.metadata = PolicyMetadata(epoch=epoch, agent_step=100 * epoch)
    return store.save(record).file_path


def evaluator_of(run_dir: Path, **settings: Any) -> Evaluator:
    config = small_config(2, 10, **settings)
    return Evaluator(Identity("fake", "evaluator", 0, "life", 0), config.model_dump(), str(run_dir))


def request_for(path: Path, number: int = 0, **more: Any) -> EvaluationRequest:
    version = int(path.name.rpartition("_")[2])
    return EvaluationRequest(number, f"file://{path}", fingerprint(path), version, **{"episodes": 3, **more})


def rows(run_dir: Path, table: str) -> int:
    with EvalStatsDB.existing(run_dir / "stats" / "evaluations.sqlite") as db:
        return int(db.query(f"SELECT count(*) AS n FROM {table}")[0]["n"])


def test_a_result_has_scores_a_standing_and_a_table(tmp_path: Path):
    path = policy_in(tmp_path, 3)

    result = evaluator_of(tmp_path).evaluate(request_for(path))

    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert (result["version"], result["agent_step"], result["episodes"]) == (3, 300, 3)
    assert result["low"] <= result["score"] <= result["high"]
    assert (result["standing"]["compared"], result["standing"]["best"]["version"]) == (1, 3)
    assert "evaluation of model_0003" in result["text"]
    record = PolicyStore(data_dir=tmp_path).load_from_uri(path)
    assert record.metadata.score_of("score") == pytest.approx(result["score"])


def test_a_second_try_by_another_evaluator_leaves_no_duplicates(tmp_path: Path):
    path = policy_in(tmp_path, 1)
    first = evaluator_of(tmp_path).evaluate(request_for(path))
    before = [rows(tmp_path, table) for table in ("simulations", "episodes", "agent_metrics")]

    again = evaluator_of(tmp_path).evaluate(request_for(path))

    assert [rows(tmp_path, table) for table in ("simulations", "episodes", "agent_metrics")] == before
    assert (again["score"], again["standing"]) == (first["score"], first["standing"])


def test_asked_again_it_answers_from_memory(tmp_path: Path):
    path = policy_in(tmp_path, 1)
    evaluator = evaluator_of(tmp_path)

    assert evaluator.evaluate(request_for(path)) is evaluator.evaluate(request_for(path))


def test_references_are_played_once_per_run(tmp_path: Path):
    evaluator = evaluator_of(tmp_path)
    evaluator.evaluate(request_for(policy_in(tmp_path, 1)))
    assert rows(tmp_path, "simulations") == 2, "the policy and chance"

    result = evaluator.evaluate(request_for(policy_in(tmp_path, 2), 1))

    assert rows(tmp_path, "simulations") == 3
    assert result["standing"]["compared"] == 2
    assert result["standing"]["gain"] is not None, "both met the same episodes"


def test_a_policy_that_was_replaced_since_is_refused(tmp_path: Path):
    path = policy_in(tmp_path, 1)
    request = request_for(path)
    policy_in(tmp_path, 1)  # other weights, at the same place

    assert "another policy" in evaluator_of(tmp_path).evaluate(request)["refused"]


def test_a_policy_that_is_gone_or_does_not_fit_is_refused_with_the_reason(tmp_path: Path):
    path = policy_in(tmp_path, 1)
    evaluator = evaluator_of(tmp_path)
    missing = EvaluationRequest(5, f"file://{tmp_path}/checkpoints/model_0009", "", 9)

    assert "does not exist" in evaluator.evaluate(missing)["refused"]
    assert "suite smoke" in evaluator.evaluate(request_for(path, suite="smoke"))["refused"]


def test_a_named_suite_is_scored_as_share_between_chance_and_script(tmp_path: Path):
    path = policy_in(tmp_path, 1, "mettagrid:smoke")
    evaluator = evaluator_of(tmp_path, trainer__env="mettagrid:smoke")

    result = evaluator.evaluate(request_for(path, suite="smoke", episodes=2))

    assert (result["suite"], result["measure"]) == ("smoke", "share")
    assert [row["simulation"] for row in result["simulations"]] == ["smoke/altar"]
    assert rows(tmp_path, "simulations") == 3
    record = PolicyStore(data_dir=tmp_path).load_from_uri(path)
    assert record.metadata.score_of("score") is None, "what `top` sorts by is the run's own suite"
