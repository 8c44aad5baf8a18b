"""What is kept of weights is never older than the weights."""

import copy

import pytest
import torch
from torch import nn

from metta_ray.agent.derived import Derived


def doubled(weight, *, dtype):
    return (2 * weight).to(dtype)


def write_by_optimizer(weight):
    optimizer = torch.optim.Adam([weight], lr=1.0)
    weight.grad = torch.ones_like(weight)
    optimizer.step()


def write_by_copy(weight):
    with torch.no_grad():
        weight.copy_(torch.full_like(weight, 7.0))


def write_by_state_dict(weight):
    module = nn.Module()
    module.weight = weight
    module.load_state_dict({"weight": torch.full_like(weight, 7.0)})


def replace_data(weight):
    weight.data = torch.full_like(weight, 7.0)


def write_by_fused_optimizer_after_a_forward(weight):
    optimizer = torch.optim.Adam([weight], lr=1.0, fused=True)
    derived(weight, dtype=torch.float32).sum().backward()
    optimizer.step()


derived = Derived(doubled)


@pytest.mark.parametrize(
    "write",
    [
        write_by_optimizer,
        write_by_copy,
        write_by_state_dict,
        replace_data,
        write_by_fused_optimizer_after_a_forward,
    ],
)
def test_it_follows_the_weight(write):
    weight = nn.Parameter(torch.ones(3))
    with torch.no_grad():
        before = derived(weight, dtype=torch.float32)
        assert derived(weight, dtype=torch.float32) is before, "kept while nothing changes"
    write(weight)
    with torch.no_grad():
        after = derived(weight, dtype=torch.float32)
    assert not torch.equal(after, before)
    assert torch.equal(after, 2 * weight.detach())


def test_with_gradients_it_has_a_history():
    weight = nn.Parameter(torch.ones(3))
    with torch.no_grad():
        derived(weight, dtype=torch.float32)
    derived(weight, dtype=torch.float32).sum().backward()
    assert torch.equal(weight.grad, torch.full((3,), 2.0))


def test_another_type_is_another_value():
    weight = nn.Parameter(torch.ones(3))
    with torch.no_grad():
        for dtype in (torch.float32, torch.bfloat16, torch.float32):
            assert derived(weight, dtype=dtype).dtype == dtype


def test_a_copy_of_a_policy_keeps_nothing():
    weight = nn.Parameter(torch.ones(2, 3))
    transposed = Derived(lambda weight, dtype: weight.t())
    with torch.no_grad():
        transposed(weight, dtype=torch.float32)
    weight.detach().mul_(2)  # now torch refuses to copy the view

    copied = copy.deepcopy(transposed)
    other = nn.Parameter(torch.zeros(2, 3))
    with torch.no_grad():
        assert torch.equal(copied(other, dtype=torch.float32), torch.zeros(3, 2))


def test_what_is_kept_in_inference_mode_can_be_weights_again():
    first, second, weight = Derived(doubled), Derived(doubled), torch.ones(2)
    with torch.inference_mode():
        fourfold = second(first(weight, dtype=torch.float32), dtype=torch.float32)
    assert fourfold.tolist() == [4.0, 4.0]


def test_another_weight_at_the_address_of_one_that_is_gone_is_another():
    """What was cast once per version is itself a weight here, and its memory is used again."""
    kept = Derived(doubled)
    with torch.no_grad():
        for number in range(50):
            weight = torch.full((64, 64), float(number))
            assert (kept(weight, dtype=torch.float32) == 2 * number).all()
            del weight
