"""A layer and its ReLU in one kernel: what comes out, and the gradient, are those of one after the other."""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from metta_ray.agent.agent_config import AgentConfig
from metta_ray.agent.networks.cnn import ConvStack
from metta_ray.agent.networks.fused_relu import LinearRelu, conv2d_relu
from metta_ray.agent.networks.layers import LinearStack
from metta_ray.agent.precision import is_onednn_used


def in_precision(is_low):
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_low)


@pytest.mark.parametrize(
    ("is_low", "stride", "padding", "is_wide"), list(itertools.product([False, True], [1, 2], [0, 1], [False, True]))
)
def test_convolution(is_low, stride, padding, is_wide):
    torch.manual_seed(0)
    form = torch.channels_last if is_wide else torch.contiguous_format
    image = torch.randn(6, 5, 7, 9).to(memory_format=form).requires_grad_()
    weight, bias = (torch.randn(8, 5, 3, 3) / 5).requires_grad_(), torch.randn(8).requires_grad_()
    found = []
    for compute in (conv2d_relu, lambda *inputs: F.relu(F.conv2d(*inputs))):
        with in_precision(is_low):
            y = compute(image, weight, bias, (stride, stride), (padding, padding))
        gradients = torch.autograd.grad(y.float().sin().sum(), (image, weight, bias))
        found.append((y.detach(), *gradients))

    assert (found[0][0] == 0).any()
    tolerance = 1e-2 if is_low else 1e-5
    for fused, apart in zip(*found, strict=True):
        assert fused.dtype == apart.dtype
        torch.testing.assert_close(fused, apart, atol=tolerance, rtol=tolerance)
    assert found[0][0].stride() == found[1][0].stride(), "the next layer meets the same layout"


def test_convolution_of_what_needs_no_gradient():
    weight, bias = torch.randn(8, 5, 3, 3, requires_grad=True), torch.zeros(8)
    y = conv2d_relu(torch.randn(2, 5, 7, 7), weight, bias, (1, 1), (1, 1))
    y.sum().backward()
    assert weight.grad is not None
    assert bias.grad is None


@pytest.mark.parametrize("is_low", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
def test_linear_layer_while_acting_and_while_learning(is_low, has_bias):
    torch.manual_seed(0)
    stack = LinearStack(nn.Linear(33, 17, bias=has_bias), nn.ReLU(inplace=True), nn.Linear(17, 4), nn.Tanh())
    x = torch.randn(50, 33)
    with in_precision(is_low):
        expected = nn.Sequential(*stack.children())(x)
        learning = stack(x)
        with torch.no_grad():
            acting = stack(x)
            assert (LinearRelu()(x, stack[0].weight, stack[0].bias) == 0).any()
    assert acting.dtype == expected.dtype
    torch.testing.assert_close(learning, expected, atol=0, rtol=0)
    torch.testing.assert_close(acting, expected, atol=1e-2 if is_low else 1e-6, rtol=0)


def test_acting_follows_weights_that_are_written_to_and_copies():
    stack, x = LinearStack(nn.Linear(8, 8), nn.ReLU()), torch.rand(3, 8)
    with torch.no_grad(), in_precision(True):
        before = stack(x)
        copied = copy.deepcopy(stack)
        stack[0].weight.mul_(2.0)
        stack[0].bias.mul_(2.0)
        torch.testing.assert_close(stack(x), 2 * before)
        torch.testing.assert_close(copied(x), before)


@pytest.mark.parametrize("index", [0, 1])
def test_a_layer_that_is_hooked_is_called(index):
    stack, seen = LinearStack(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), []
    stack[index].register_forward_hook(lambda *_: seen.append(index))
    with torch.no_grad(), in_precision(True):
        stack(torch.randn(2, 3))
    assert seen == [index]


def test_where_there_is_no_onednn_it_is_computed_apart(monkeypatch):
    monkeypatch.setattr("metta_ray.agent.precision._onednn_dtypes", lambda: ())
    image, weight, bias = torch.randn(2, 5, 7, 7), torch.randn(8, 5, 3, 3), torch.zeros(8)
    assert not is_onednn_used(image)
    expected = F.relu(F.conv2d(image, weight, bias, (1, 1), (1, 1)))
    torch.testing.assert_close(conv2d_relu(image, weight, bias, (1, 1), (1, 1)), expected)


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("part", ["convs.0", "convs.1", "activation"])
def test_a_convolution_or_activation_that_is_hooked_is_called(part, padding):
    config = AgentConfig(
        architecture="default",
        conv_channels=(4, 4),
        conv_kernels=(3, 2),
        conv_strides=(1, 1),
        conv_paddings=(padding, 0),
    )
    stack, image, seen = ConvStack(3, 6, 7, config), torch.rand(2, 3, 6, 7), []
    expected = stack(image)
    stack.get_submodule(part).register_forward_hook(lambda *_: seen.append(part))
    torch.testing.assert_close(stack(image), expected)
    assert part in seen
