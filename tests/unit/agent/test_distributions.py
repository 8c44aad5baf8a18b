"""Log-probabilities and entropies against numbers worked out by hand."""

import math

import pytest
import torch

from metta_ray.agent.distributions import Categorical, DiagonalGaussian, MultiCategorical


def logits_of(*probabilities: float) -> torch.Tensor:
    return torch.tensor([probabilities]).log() + 5.0  # a constant does not matter


def test_categorical_log_prob_and_entropy_of_a_half_and_two_quarters():
    distribution = Categorical(logits_of(0.5, 0.25, 0.25))

    assert distribution.log_prob(torch.tensor([1])).item() == pytest.approx(math.log(0.25))
    assert distribution.entropy().item() == pytest.approx(1.5 * math.log(2))
    assert distribution.log_probs.exp().tolist()[0] == pytest.approx([0.5, 0.25, 0.25])


def test_categorical_draws_with_its_probabilities():
    torch.manual_seed(0)
    drawn = Categorical(logits_of(0.5, 0.3, 0.2).expand(100_000, 3)).sample()

    assert drawn.dtype == torch.int32
    # Three standard errors of 0.5 at 100,000 draws are 0.0047.
    assert (torch.bincount(drawn) / len(drawn)).tolist() == pytest.approx([0.5, 0.3, 0.2], abs=0.005)


def test_impossible_choice_is_never_drawn_and_has_finite_entropy_and_gradient():
    logits = torch.tensor([[0.0, -math.inf, 0.0]]).expand(1000, 3).clone().requires_grad_()
    distribution = Categorical(logits)
    distribution.entropy().sum().backward()

    assert set(distribution.sample().tolist()) == {0, 2}
    assert distribution.entropy()[0].item() == pytest.approx(math.log(2))
    assert torch.isfinite(logits.grad).all()


def test_multi_categorical_sums_log_probs_and_entropies_of_its_components():
    logits = torch.cat([logits_of(0.5, 0.5), logits_of(0.25, 0.25, 0.5)], dim=1)
    distribution = MultiCategorical(logits, [2, 3])

    assert distribution.log_prob(torch.tensor([[0, 2]])).item() == pytest.approx(math.log(0.25))
    assert distribution.entropy().item() == pytest.approx(2.5 * math.log(2))
    assert distribution.log_probs.shape == (1, 5)
    assert distribution.sample().shape == (1, 2)


def test_gaussian_log_prob_and_entropy_of_two_components():
    distribution = DiagonalGaussian(torch.tensor([[1.0, 0.0]]), torch.tensor([0.0, math.log(2.0)]))

    # First: standard normal at one deviation. Second: deviation 2 at its mean.
    expected = (-0.5 - 0.5 * math.log(2 * math.pi)) + (-math.log(2) - 0.5 * math.log(2 * math.pi))
    assert distribution.log_prob(torch.tensor([[2.0, 0.0]])).item() == pytest.approx(expected)
    assert distribution.entropy().item() == pytest.approx(math.log(2 * math.pi * math.e) + math.log(2))
    assert distribution.log_probs.shape == (1, 0)


def test_sampling_draws_from_torchs_default_generator():
    logits = torch.zeros(50, 7)
    saved = torch.get_rng_state()
    first = Categorical(logits).sample()
    torch.set_rng_state(saved)

    assert torch.equal(first, Categorical(logits).sample())


def test_the_host_draws_what_a_device_draws(monkeypatch):
    distribution = Categorical(torch.randn(200, 5, generator=torch.Generator().manual_seed(0)))
    on_host = distribution.sample(torch.Generator().manual_seed(1))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)  # then without numpy

    assert torch.equal(distribution.sample(torch.Generator().manual_seed(1)), on_host)
