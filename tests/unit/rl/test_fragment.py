"""A fragment carries everything that training needs from one Experience to another."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from metta_ray.agent.token_lookup import PADDING
from metta_ray.common.util.packed_arrays import PackedArrays
from metta_ray.envs.env_spec import TokenSpace
from metta_ray.rl.experience import Experience
from metta_ray.rl.fragment import Fragment, fault_of

TOKENS = 80
HORIZON = 4


def experience(agents: int, segments: int, space: gymnasium.Space[Any], **settings: Any) -> Experience:
    steps = segments * HORIZON
    return Experience(
        agents,
        steps,
        HORIZON,
        steps,
        steps,
        space,
        gymnasium.spaces.Discrete(5),
        "cpu",
        hidden_size=3,
        num_lstm_layers=1,
        **settings,
    )


def token_space() -> TokenSpace:
    return TokenSpace(TOKENS)


def tokens_of(agents: int, used: int, seed: int) -> torch.Tensor:
    obs = torch.full((agents, TOKENS, 3), PADDING, dtype=torch.uint8)
    obs[:, :used] = torch.from_numpy(np.random.default_rng(seed).integers(0, 200, (agents, used, 3), dtype=np.uint8))
    return obs


def fill(buffer: Experience, *, used: int = 10, seed: int = 0) -> None:
    """One rollout of chance."""
    rng = np.random.default_rng(seed)
    agents = buffer.total_agents

    def numbers(*shape: int) -> torch.Tensor:
        return torch.from_numpy(rng.normal(size=shape)).float()

    def flags() -> torch.Tensor:
        return torch.from_numpy(rng.random(agents) < 0.2)

    buffer.reset_for_rollout()
    step = 0
    while not buffer.ready_for_training:
        obs = tokens_of(agents, used, seed + step) if buffer._stores_tokens else numbers(agents, 2)
        state = {"lstm_h": numbers(1, agents, 3), "lstm_c": numbers(1, agents, 3)}
        actions = torch.from_numpy(rng.integers(0, 5, agents))
        arguments = (obs, actions, numbers(agents), numbers(agents), flags(), flags(), numbers(agents))
        buffer.store(*arguments, slice(0, agents), ~flags(), state, truncation_values=numbers(agents))
        step += 1
    buffer.close(numbers(agents), flags(), flags(), numbers(agents), slice(0, agents), ~flags())


def carried(buffer: Experience) -> dict[str, np.ndarray[Any, Any]]:
    """Through bytes that cannot be written to, as out of an object store."""
    packed = PackedArrays.pack(buffer.fragment_arrays())
    packed.buffer.flags.writeable = False
    return Fragment(packed).arrays()


@pytest.mark.parametrize("centered", [None, 0.1])
def test_rows_arrive_as_they_were_collected(centered: float | None):
    space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    source = experience(3, 6, space, reward_centering_rate=centered)
    target = experience(3, 12, space, reward_centering_rate=centered)
    fill(source)

    target.begin_batch()
    target.add_fragment(6, carried(source))

    expected, found = source.fragment_arrays(), target.fragment_arrays()
    assert expected.keys() == found.keys()
    for name, array in expected.items():
        assert np.array_equal(found[name][6:], array), name
        assert not found[name][:6].any(), "the other rows are untouched"
    assert torch.equal(target.mask[6:], source.mask)


@pytest.mark.parametrize(("first", "second"), [(10, 40), (40, 10), (10, 10), (70, 79)])
def test_fragments_of_different_token_widths_lie_side_by_side(first: int, second: int):
    """Observations are as wide as the longest list; the rest is padding, also where a wider one lay before."""
    sources = [experience(2, 2, token_space()) for _ in range(2)]
    target = experience(2, 4, token_space())
    widths = dict(zip(sources, (first, second), strict=True))
    for seed, (source, used) in enumerate(widths.items()):
        fill(source, used=used, seed=seed)

    for batch in (sources, sources[::-1]):
        target.begin_batch()
        for index, source in enumerate(batch):
            arrays = carried(source)
            assert arrays["obs"].shape[2] == widths[source]
            target.add_fragment(2 * index, arrays)

        for index, source in enumerate(batch):
            rows, width = target.obs[2 * index : 2 * index + 2], widths[source]
            assert torch.equal(rows[:, :, :width], source.obs[:, :, :width])
            assert (rows[:, :, width:] == PADDING).all()


def test_a_batch_forgets_the_ratios_of_the_one_before():
    target = experience(2, 2, token_space())
    target.update_ratio(torch.arange(2), torch.full((2, HORIZON), 3.0))

    target.begin_batch()

    assert (target.ratio == 1).all()


def test_a_fragment_is_of_its_rollout_though_the_next_one_overwrites_the_buffer():
    source = experience(2, 2, token_space())
    fill(source, seed=1)
    arrays = carried(source)
    before = {name: array.tobytes() for name, array in arrays.items()}

    fill(source, seed=2)

    assert {name: array.tobytes() for name, array in arrays.items()} == before


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_the_first_number_that_is_none_is_named(bad: float):
    arrays = {"obs": np.full((2, 3), 255, np.uint8), "values": np.zeros((2, 3), np.float32)}
    assert fault_of(arrays) is None

    arrays["values"][1, 2] = bad

    assert fault_of(arrays) == f"values[1, 2] is {bad}"


def test_numbers_whose_sum_is_infinite_are_no_fault():
    assert fault_of({"values": np.full(8, 3e38, np.float32)}) is None
