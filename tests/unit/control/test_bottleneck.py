from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metta_ray.control.bottleneck import Bottleneck, EpochTimes, verdict


def judged(**changes: Any) -> Bottleneck:
    """Four workers, 10 s each: 62 % environments; the learner waited 41 % of its 10 s."""
    times: dict[str, Any] = {
        "env_s": 24.8,
        "inference_s": 10.0,
        "transport_s": 4.0,
        "no_ticket_s": 1.2,
        "training_s": 5.5,
        "staging_s": 0.4,
        "no_data_s": 4.1,
        "num_workers": 4,
        "useful_workers": 16,
    }
    result = verdict(EpochTimes(**{**times, **changes}))
    assert result is not None
    return result


def test_environments_limit_while_the_learner_waits_for_them():
    result = judged()

    assert result.name == "environments"
    assert result.text == (
        "limited by environments (62 % of worker time; learner waited 41 %): "
        "add rollout workers (4 now, up to 16 are useful)"
    )


def test_shares_are_of_the_time_of_each_side():
    assert judged().shares == pytest.approx(
        {
            "environments": 0.62,
            "inference": 0.25,
            "transport": 0.10,
            "no_ticket": 0.03,
            "training": 0.55,
            "staging": 0.04,
            "no_data": 0.41,
        }
    )


def test_when_all_useful_workers_are_there_more_must_become_useful_first():
    result = judged(num_workers=16)

    assert result.lever == (
        "raise batch_size or lower rollout.fragment_steps, so that more than 16 rollout workers are useful, "
        "and add some"
    )


def test_inference_is_named_where_it_takes_most_of_the_workers_time():
    result = judged(inference_s=30.0)

    assert result.name == "inference"
    assert result.lever.startswith("add rollout workers")
    assert judged(inference_s=30.0, num_workers=16).lever.startswith("give the workers more environments")


def test_transport_is_named_on_the_side_where_it_costs():
    assert judged(transport_s=30.0).text.startswith("limited by transport (45 % of worker time")
    of_learner = judged(no_data_s=0.0, staging_s=9.0)
    assert of_learner.text.startswith("limited by transport (staging 62 % of learner time; workers waited 3 %)")
    assert "make fragments longer" in of_learner.lever


def test_the_learner_limits_while_workers_wait_for_it():
    result = judged(no_ticket_s=20.0, no_data_s=0.1)

    assert result.name == "learner"
    assert result.text == (
        "limited by learner (training 92 % of learner time; workers waited 34 %): "
        "add learner replicas (1 now), raise minibatch_size or lower update_epochs"
    )


def test_taking_turns_is_named_as_such():
    in_turns = {"no_ticket_s": 20.0, "target_staleness": 0}

    assert judged(**in_turns).name == "environments", "collecting takes longer than training"
    assert judged(**in_turns).lever == "set pacing.target_staleness to 1, so that collecting and training overlap"
    assert "target_staleness" not in judged(target_staleness=0).lever, "workers hardly wait: nothing to overlap"


def test_what_both_sides_wait_for_is_on_its_way():
    idle = {"env_s": 2.0, "inference_s": 1.0, "transport_s": 1.0, "no_ticket_s": 36.0}
    result = judged(**idle, training_s=1.0, staging_s=0.0, no_data_s=9.0)

    assert result.name == "transport"
    assert result.text.startswith("limited by transport (workers waited 90 %, the learner 90 %): make fragments longer")


def test_workers_beyond_the_useful_number_hide_nothing():
    """Of eight workers two can be busy, and are; the others wait."""
    times = {"env_s": 18.0, "inference_s": 1.0, "transport_s": 1.0, "no_ticket_s": 60.0}
    result = judged(**times, num_workers=8, useful_workers=2, training_s=4.0, staging_s=0.0, no_data_s=6.0)

    assert result.name == "environments"
    assert result.shares["no_ticket"] == 0.0
    assert "more than 2 rollout workers" in result.lever


def test_nothing_is_said_before_anything_was_measured():
    nothing = EpochTimes(0, 0, 0, 0, 0, 0, 0, num_workers=1, useful_workers=1)

    assert verdict(nothing) is None


@given(seconds=st.lists(st.floats(0.001, 1e6), min_size=7, max_size=7), workers=st.integers(1, 20))
def test_shares_of_each_side_add_up_and_the_sentence_is_one_line(seconds: list[float], workers: int):
    result = verdict(EpochTimes(*seconds, num_workers=workers, useful_workers=8))

    assert result is not None
    shares = result.shares
    assert shares["environments"] + shares["inference"] + shares["transport"] + shares["no_ticket"] == pytest.approx(1)
    assert shares["training"] + shares["staging"] + shares["no_data"] == pytest.approx(1)
    assert result.text.startswith(f"limited by {result.name} (")
    assert result.text.endswith(result.lever)
    assert "\n" not in result.text
