from pathlib import Path

import pytest
from pydantic import ValidationError

from metta_ray.agent.factory import Agent
from metta_ray.agent.policy_metadata import PolicyMetadata
from metta_ray.agent.policy_store import PolicyStore
from metta_ray.envs.registry import resolve_env
from metta_ray.eval.eval_request_config import EvalRequestConfig, EvalResults, EvalRewardSummary
from metta_ray.eval.eval_stats_db import EvalStatsDB
from metta_ray.eval.evaluation import run_evaluation
from metta_ray.sim.results import PolicyKey

SUITE = {"name": "s", "simulations": {"gym/cartpole": {"env": "gym:CartPole-v1", "num_episodes": 3}}}


def test_k25_a_summary_has_averages_and_items():
    summary = EvalRewardSummary(
        category_scores={"nav": 0.5, "mem": 1.0},
        simulation_scores={("nav", "a"): 0.2, ("nav", "b"): 0.8, ("mem", "a"): 1.0},
    )

    assert summary.avg_category_score == 0.75
    assert summary.avg_simulation_score == pytest.approx(2 / 3)
    assert dict(summary.items()) == {"nav/score": 0.5, "mem/score": 1.0, "nav/a": 0.2, "nav/b": 0.8, "mem/a": 1.0}
    assert EvalRewardSummary().avg_category_score is None


def test_results_travel_as_json():
    results = EvalResults(
        policy_uri="file:///p",
        scores=EvalRewardSummary(category_scores={"nav": 0.5}, simulation_scores={("nav", "a/b"): 0.5}),
        replay_urls={"nav/a/b": ["/r.json.z"]},
    )

    assert EvalResults.model_validate_json(results.model_dump_json()) == results


def test_an_unknown_key_of_a_request_is_refused():
    with pytest.raises(ValidationError, match="policy_uri"):
        EvalRequestConfig(policy_url="x", suite=SUITE)


def test_k15_an_evaluation_leaves_its_scores_with_the_policy_and_in_the_database(tmp_path: Path):
    store = PolicyStore(data_dir=tmp_path)
    for epoch in (1, 2):
        record = store.create_empty_policy_record(f"model_{epoch:04d}", tmp_path / "run" / "checkpoints")
        record.policy = Agent(resolve_env("gym:CartPole-v1").spec(), config={"architecture": "mlp"}, device="cpu")
        record.metadata = PolicyMetadata(epoch=epoch)
        store.save(record)
    request = EvalRequestConfig(
        policy_uri=str(tmp_path / "run"), suite=SUITE, stats_db_path=str(tmp_path / "eval.sqlite")
    )

    results = run_evaluation(request, store)

    latest = store.policy_record(tmp_path / "run", "latest")
    assert results.policy_uri == latest.uri
    assert latest.metadata.epoch == 2
    assert latest.metadata.score == pytest.approx(results.scores.category_scores["gym"])
    assert latest.metadata.eval_scores["eval_gym/cartpole"] == pytest.approx(latest.metadata.score)
    assert store.policy_record(tmp_path / "run", "top").metadata.epoch == 2
    assert not list(latest.file_path.glob("pin.*"))
    with EvalStatsDB(tmp_path / "eval.sqlite") as db:
        assert db.policies() == [PolicyKey(latest.uri, 2)]
