"""The LSTM over segments equals the LSTM step by step, whatever the resets."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metta_ray.agent.lstm import SequenceLSTM
from metta_ray.agent.unrolled_lstm import unrolled_lstm

patterns = st.integers(1, 5).flatmap(
    lambda rows: st.integers(1, 13).flatmap(
        lambda steps: st.lists(st.lists(st.booleans(), min_size=steps, max_size=steps), min_size=rows, max_size=rows)
    )
)


def step_by_step(lstm, x, h, c, resets):
    outputs = []
    for t in range(x.shape[1]):
        y, h, c = lstm(x[:, t : t + 1], h, c, resets[:, t : t + 1])
        outputs.append(y)
    return torch.cat(outputs, dim=1), h, c


@settings(max_examples=40, deadline=None)
@given(patterns, st.integers(1, 2))
def test_k1_sequence_with_resets_equals_step_by_step(pattern, layers):
    torch.manual_seed(0)
    resets = torch.tensor(pattern)
    rows, steps = resets.shape
    lstm = SequenceLSTM(3, 5, layers)
    x, h, c = torch.randn(rows, steps, 3), torch.randn(layers, rows, 5), torch.randn(layers, rows, 5)

    whole = lstm(x, h, c, resets)
    single = step_by_step(lstm, x, h, c, resets)

    for got, expected in zip(whole, single, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("way", ["_run_slices", "_run_pauses", "_run_steps", "_run_bites"])
@pytest.mark.parametrize("layers", [1, 2])
def test_every_way_gives_the_outputs_and_gradients_of_single_steps(way, layers):
    torch.manual_seed(0)
    lstm = SequenceLSTM(3, 5, layers)
    x, state = torch.randn(4, 11, 3, requires_grad=True), torch.randn(2, layers, 4, 5)
    resets = torch.rand(4, 11) < 0.3
    resets[:, 0] = False  # is done before the ways part

    def in_this_way(x, h, c, resets):
        starts = [[step for step in range(1, 11) if resets[:, step].any()]] if way == "_run_slices" else []
        return getattr(lstm, way)(x, h, c, resets, *starts)

    found = []
    for run in (in_this_way, lambda *inputs: step_by_step(lstm, *inputs)):
        lstm.zero_grad()
        x.grad = None
        y, h, c = run(x, *state, resets)
        (y.square().sum() + h.sin().sum() + c.pow(3).sum()).backward()
        found.append([y, h, c, x.grad, *(parameter.grad for parameter in lstm.parameters())])
        found[-1] = [tensor.detach().clone() for tensor in found[-1]]

    for whole, single in zip(*found, strict=True):
        torch.testing.assert_close(whole, single, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("is_low", [False, True])
@pytest.mark.parametrize(("inputs", "layers"), [(17, 1), (64, 2)])
def test_a_step_through_onednn_is_the_plain_step(is_low, inputs, layers, monkeypatch):
    """In bfloat16 too the cell keeps its precision from step to step."""
    torch.manual_seed(0)
    lstm = SequenceLSTM(inputs, 32, layers)
    lstm.rnn.bias_hh_l0.data[32:64] = 5.0  # forgets little
    x, resets = torch.randn(24, 200, inputs), torch.rand(24, 200) < 0.01
    found = []
    for has_onednn in (True, False):
        monkeypatch.setattr("metta_ray.agent.lstm.is_onednn_used", lambda _, answer=has_onednn: answer)
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_low):
            found.append(step_by_step(lstm, x, *torch.zeros(2, layers, 24, 32), resets))

    for onednn, plain in zip(*found, strict=True):
        assert onednn.dtype == plain.dtype == torch.float32
        assert (onednn - plain).norm() < (0.02 if is_low else 5e-6) * plain.norm()


def test_gradients_of_the_state_that_was_given_are_those_of_torchs_lstm():
    torch.manual_seed(0)
    lstm, x = torch.nn.LSTM(3, 5), torch.randn(6, 9, 3)
    found = []
    for is_ours in (True, False):
        h, c = (torch.linspace(-1, 1, 30).view(6, 5).requires_grad_() for _ in range(2))
        if is_ours:
            y, _, _ = unrolled_lstm(x, h, c, None, tuple(lstm.all_weights[0]), torch.float32)
        else:
            y = lstm(x.transpose(0, 1), (h[None], c[None]))[0].transpose(0, 1)
        y.square().sum().backward()
        found.append((y.detach(), h.grad, c.grad))

    for ours, torchs in zip(*found, strict=True):
        torch.testing.assert_close(ours, torchs, atol=1e-5, rtol=1e-5)


def test_bfloat16_steps_are_those_of_float32_to_their_precision():
    """So many numbers that the steps' products are in bfloat16 too; and so many steps that they come in blocks."""
    torch.manual_seed(0)
    lstm = torch.nn.LSTM(64, 64)
    x, resets = torch.randn(64, 40, 64), torch.rand(64, 40) < 0.1
    zeros, gradients, outputs = torch.zeros(64, 64), [], []
    for dtype in (torch.float32, torch.bfloat16):
        lstm.zero_grad()
        y, _, _ = unrolled_lstm(x, zeros, zeros, resets, tuple(lstm.all_weights[0]), dtype)
        y.square().mean().backward()
        outputs.append(y.detach())
        gradients.append([parameter.grad.clone() for parameter in lstm.parameters()])

    torch.testing.assert_close(*outputs, atol=0.02, rtol=0)
    for exact, low in zip(*gradients, strict=True):
        assert low.dtype == torch.float32
        assert (low - exact).norm() < 0.02 * exact.norm()


def test_k2_nothing_of_the_state_survives_a_reset():
    lstm = SequenceLSTM(3, 5, 1)
    x, zeros = torch.randn(2, 6, 3), torch.zeros(1, 2, 5)
    resets = torch.zeros(2, 6, dtype=torch.bool)
    resets[:, 3] = True

    y, _, _ = lstm(x, torch.randn(1, 2, 5), torch.randn(1, 2, 5), resets)
    fresh, _, _ = lstm(x[:, 3:], zeros, zeros, None)

    torch.testing.assert_close(y[:, 3:], fresh, atol=1e-6, rtol=0)


def test_only_the_forget_gate_starts_open():
    lstm = SequenceLSTM(3, 5, 1)
    bias = (lstm.rnn.bias_ih_l0 + lstm.rnn.bias_hh_l0).detach()

    assert bias[5:10].tolist() == [1.0] * 5
    assert bias.sum() == 5


def test_pauses_in_bfloat16_are_those_of_float32_to_its_precision():
    """The inputs that shut gates do so in bfloat16 too: nothing of what came before a reset is left."""
    torch.manual_seed(0)
    lstm = SequenceLSTM(17, 32, 2)
    x, state = torch.randn(8, 20, 17), 3 * torch.randn(2, 2, 8, 32)
    resets = torch.rand(8, 20) < 0.04
    assert resets[:, 1:].any()
    found = []
    for is_low in (False, True):
        lstm.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_low):
            y, h, c = lstm(x.to(torch.bfloat16) if is_low else x, *state, resets)
        y.square().mean().backward()
        found.append((y.detach(), h.detach(), c.detach(), lstm.rnn.weight_hh_l0.grad.clone()))

    for exact, low in zip(*found, strict=True):
        assert (low - exact).norm() < 0.03 * exact.norm()
