"""The LSTM over segments equals the LSTM step by step, whatever the resets."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metta_ray.agent.lstm import SequenceLSTM

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


def test_gradients_through_pieces_equal_gradients_through_steps():
    torch.manual_seed(0)
    lstm = SequenceLSTM(3, 5, 1)
    x, state = torch.randn(4, 11, 3), torch.randn(1, 4, 5)
    resets = torch.rand(4, 11) < 0.3
    gradients = []

    for run in (lstm, lambda *inputs: step_by_step(lstm, *inputs)):
        lstm.zero_grad()
        run(x, state, state, resets)[0].square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in lstm.parameters()])

    for whole, single in zip(*gradients, strict=True):
        torch.testing.assert_close(whole, single, atol=1e-5, rtol=1e-5)


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
