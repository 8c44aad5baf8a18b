"""Numbers worked out by hand."""

import math

import pytest

from metta_ray.sim.results import Estimate, PlayedEpisode, PolicyKey, SimulationResult, SuiteResult

US, NPC = PolicyKey("file:///p", 3), PolicyKey("npc", 0)


def episode(number: int, score: float, rewards: list[float], policies=None) -> PlayedEpisode:
    return PlayedEpisode(
        id=f"e{number}",
        env_index=0,
        number=number,
        task_id="t",
        seed=(1,),
        steps=10,
        score=score,
        agent_metrics=tuple({"reward": reward} for reward in rewards),
        agent_policies=tuple(policies or [US] * len(rewards)),
        created_at=0.0,
        completed_at=1.0,
    )


def simulation(name: str, *episodes: PlayedEpisode, incomplete: int = 0) -> SimulationResult:
    return SimulationResult("suite", name, "env", US, episodes, incomplete, 0.0, 1.0)


def test_standard_error_by_hand():
    # mean 2, squared deviations 1 + 0 + 1, variance 2 / 2 = 1, error 1 / sqrt(3)
    estimate = Estimate.of([1.0, 2.0, 3.0])

    assert estimate == (2.0, pytest.approx(1 / math.sqrt(3)))


def test_too_few_values_have_no_error():
    assert math.isnan(Estimate.of([]).mean)
    assert Estimate.of([4.0]).mean == 4.0
    assert math.isnan(Estimate.of([4.0]).standard_error)


def test_the_return_counts_only_agents_of_the_policy_under_evaluation():
    result = simulation("a/b", episode(0, 0.5, [1.0, 3.0, 100.0], [US, US, NPC]), episode(1, 0.5, [4.0, 4.0, 0.0]))

    # episode 0: (1 + 3) / 2 = 2; episode 1: (4 + 4 + 0) / 3
    assert result.returns.mean == pytest.approx((2 + 8 / 3) / 2)


def test_k19_a_category_is_the_exact_text_before_the_slash():
    suite = SuiteResult(
        "s",
        (
            simulation("navigation/a", episode(0, 0.2, [0.0])),
            simulation("navigation/b", episode(0, 0.4, [0.0])),
            simulation("navigation_sequence/a", episode(0, 1.0, [0.0])),
        ),
    )

    assert suite.category_scores == pytest.approx({"navigation": 0.3, "navigation_sequence": 1.0})
    assert suite.score == pytest.approx(0.65)
    assert suite.simulation_scores[("navigation", "a")] == 0.2


def test_a_category_is_a_mean_over_agent_episodes_as_in_the_database():
    lonely, crowd = episode(0, 0.2, [0.0]), episode(1, 0.4, [0.0] * 4, [US, US, US, NPC])
    suite = SuiteResult("s", (simulation("nav/a", lonely), simulation("nav/b", crowd)))

    assert suite.category_scores == {"nav": pytest.approx((0.2 + 3 * 0.4) / 4)}


def test_k25_a_summary_is_plain_numbers_by_name():
    suite = SuiteResult("s", (simulation("nav/a", episode(0, 0.2, [0.0])), simulation("nav/b", episode(0, 0.4, [0.0]))))

    assert dict(suite.metrics().items()) == pytest.approx(
        {
            "eval_nav/a": 0.2,
            "eval_nav/b": 0.4,
            "eval_nav/score": 0.3,
            "overview/nav_score": 0.3,
            "overview/avg_category_score": 0.3,
            "overview/avg_simulation_score": 0.3,
        }
    )


def test_a_simulation_that_was_cut_off_entirely_counts_nowhere():
    suite = SuiteResult("s", (simulation("nav/a", incomplete=5),))

    assert suite.metrics() == {}
    assert math.isnan(suite.score)
    assert "0 (+5 cut off)" in suite.table()


def test_the_table_has_a_line_per_simulation_and_a_column_per_reference():
    ours = SuiteResult("s", (simulation("nav/a", episode(0, 0.25, [2.0]), episode(1, 0.75, [4.0])),))

    lines = ours.table(references=[ours]).splitlines()

    assert lines[0].split() == ["simulation", "episodes", "mean", "return", "score", "file:///p"]
    assert lines[1].split() == ["nav/a", "2", "3.000", "0.500", "[0.250,", "0.750]", "3.000"]
