"""The advantage recurrence against numbers worked out by hand (γ = 0.9, λ = 0.8)."""

import numpy as np
import pytest
import torch

from metta_ray.rl.advantage import compute_advantage, generalized_advantages, normalize_advantages

VALUES = [0.5, 0.4, 0.3, 0.2, 0.1]
REWARDS = [9.0, 1.0, 0.0, 2.0, 0.5]
OFF_POLICY = [0.5, 2.0, 1.5, 0.25, 3.0]


def advantage(dones, ratio, rho_clip=1.0, c_clip=1.0, values=VALUES, rewards=REWARDS, **bootstrap):
    values = torch.tensor([values], requires_grad=True)
    ratio = torch.tensor([ratio], requires_grad=True)
    result = compute_advantage(
        values,
        torch.tensor([rewards]),
        torch.tensor([dones], dtype=torch.float32),
        ratio,
        torch.zeros(1, values.shape[1]),
        0.9,
        0.8,
        rho_clip,
        c_clip,
        "cpu",
        **{name: torch.tensor(value) for name, value in bootstrap.items()},
    )
    assert not result.requires_grad, "k5: no gradient may flow through advantages"
    return result[0].tolist()


@pytest.mark.parametrize(
    ("dones", "ratio", "rho_clip", "expected"),
    [
        ([0, 0, 1, 0, 0], [1.0] * 5, 1.0, [0.572, -0.4, 2.1608, 0.39, 0.0]),
        ([0, 0, 1, 0, 0], OFF_POLICY, 1.0, [0.286, -0.4, 1.9502, 0.0975, 0.0]),
        ([0] * 5, OFF_POLICY, 1.2, [0.97679104, 1.518864, 2.3262, 0.0975, 0.0]),
    ],
)
def test_reference_vectors(dones, ratio, rho_clip, expected):
    assert advantage(dones, ratio, rho_clip) == pytest.approx(expected, abs=1e-6)


def test_last_column_is_trained_when_it_is_known_what_followed():
    # δ₁ = r₂ + γ·V₂ - V₁ = 3 + 0.9·0.7 - 0.4 = 3.23;  δ₀ = 1 + 0.9·0.4 - 0.5 = 0.86
    # A₁ = 3.23;  A₀ = 0.86 + 0.9·0.8·3.23 = 3.1856
    result = advantage([0, 0, 0], [1.0, 1.0], values=[0.5, 0.4], rewards=[9.0, 1.0, 3.0], last_values=[0.7])

    assert result == pytest.approx([3.1856, 3.23], abs=1e-6)


def test_truncation_is_bootstrapped_from_the_final_observation_and_stops_the_recurrence():
    # The episode is cut after action 0: δ₀ = 1 + 0.9·5 - 0.5 = 5.0 and nothing of A₁ flows back.
    # δ₁ = 3 + 0.9·0.7 - 0.4 = 3.23
    result = advantage(
        [0, 1, 0],
        [1.0, 1.0],
        values=[0.5, 0.4],
        rewards=[9.0, 1.0, 3.0],
        last_values=[0.7],
        truncation_values=[[0.0, 5.0, 0.0]],
    )

    assert result == pytest.approx([5.0, 3.23], abs=1e-6)


def test_termination_is_not_bootstrapped():
    # δ₀ = 1 - 0.5
    result = advantage([0, 1, 0], [1.0, 1.0], values=[0.5, 0.4], rewards=[9.0, 1.0, 3.0], last_values=[0.7])

    assert result[0] == pytest.approx(0.5)


def test_k4_time_runs_along_the_second_axis():
    row = torch.tensor([VALUES])
    two = compute_advantage(
        row.repeat(2, 1),
        torch.tensor([REWARDS, REWARDS]),
        torch.zeros(2, 5),
        torch.ones(2, 5),
        torch.zeros(2, 5),
        0.9,
        0.8,
        1.0,
        1.0,
        "cpu",
    )

    assert two[0].tolist() == pytest.approx(advantage([0] * 5, [1.0] * 5))
    assert two[0].tolist() == two[1].tolist()


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"rewards has shape \(1, 5\), expected \(1, 6\)"):
        advantage([0] * 6, [1.0] * 5, last_values=[0.0])


def test_normalisation_leaves_out_masked_elements():
    advantages = torch.tensor([[1.0, 3.0, 100.0]])
    mask = torch.tensor([[True, True, False]])

    result = normalize_advantages(advantages, torch.tensor(2.0), torch.tensor(1.0), mask)

    assert result[0].tolist() == pytest.approx([-1.0, 1.0, 0.0])


def test_arrays_on_the_host_and_tensors_on_a_device_give_the_same():
    generator = torch.Generator().manual_seed(0)
    values, ratio = torch.randn(5, 7, generator=generator), torch.rand(5, 7, generator=generator) * 2
    rewards, truncation_values = torch.randn(2, 5, 8, generator=generator)
    dones = (torch.rand(5, 8, generator=generator) < 0.2).float()
    given = [values, rewards, dones, ratio, torch.randn(5, generator=generator), truncation_values]

    by_torch = generalized_advantages(*given, 0.9, 0.8, 1.0, 1.2)
    by_numpy = generalized_advantages(*[tensor.numpy() for tensor in given], 0.9, 0.8, 1.0, 1.2)

    np.testing.assert_allclose(by_numpy, by_torch.numpy(), atol=1e-6, rtol=1e-6)
