"""An LSTM over whole segments whose state is zeroed inside the segment where a new episode starts.

Letters: L layers, B rows, T steps, P steps with pauses, F inputs, S signals, H hidden size, n pieces.

A fused LSTM knows no resets. So one of these ways is taken, all to the same end; which, is a matter of speed alone:

* Pauses, on the CPU: a row gets one more step before each of its resets, in which two more inputs shut the input,
  forget and output gates: that leaves a state of zero, exactly, and lets no gradient through. Rows with fewer resets
  wait at the end, where the same inputs hold the cell as it is. One fused call, over a few more steps.
* Steps, on the CPU: ``unrolled_lstm``. For sizes at which the fused LSTM is slow.
* Slices, on a card: all rows run from one step at which anything is reset to the next. For few such steps.
* Bites, on a card, to which one step is too little work: pieces are cut out, each is eaten in bites whose sizes are
  powers of two (its length in binary), and all bites of one size run as one batch: at most log2(T) + 1 fused calls.

One step without gradients, as a policy acts, is one call of oneDNN's LSTM with weights that were prepared once; where
there is none, one matrix product and the gates.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metta_ray.agent.derived import Derived
from metta_ray.agent.precision import compute_dtype, in_float32, is_onednn_used
from metta_ray.agent.unrolled_lstm import unrolled_lstm

# On a card: slices and bites take as long where resets happen at 8 to 16 steps.
MAX_SLICES_ON_A_CARD = 8
# In bfloat16, in which the fused LSTM prepares the weights for long: steps where there are so few rows per unit. With
# AMX, 64 steps, µs per agent step: 4 rows of H = 256 30 against 43, 16 of 512 65 against 68, 4 of 128 15 against 11.
MAX_ROWS_PER_UNIT_IN_STEPS = 1 / 64
# In float32: steps, which go on where the cache is, from so many numbers in a state on. 64 rows of H = 128 7.6 against
# 8.5, 64 of 512 90 against 98, 32 of 128 7.7 against 6.5.
MIN_STATE_IN_STEPS = 8192
# Added to a gate it shuts it, or taken away opens it: σ of it is 0 or 1 in every precision.
SHUT = -1000.0
# oneDNN in bfloat16: with a number of inputs that is odd a whole pass takes two to three times as long, with one that
# is no multiple of 32 the backward pass a sixth longer.
LOW_PRECISION_INPUTS = 32
_LSTM = 2  # among oneDNN's kinds of recurrent layers, as torch counts them


def _gates(w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """One layer as one product: weight ``(4·H, F + H)`` and bias of ``gates = [x, h] @ weight.T + bias``."""
    return torch.cat([w_ih, w_hh], dim=1).to(dtype), (b_ih + b_hh).to(dtype)


class _OneDnnLayer(NamedTuple):
    """One layer as oneDNN has it: weights in its own layout, which it would else put them into at each step. weights:
    w_ih ``(4·H, F + Z)``, w_hh, b_ih, b_hh. zeros: Z."""

    weights: list[Tensor]
    zeros: int


def _onednn_layer(w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor, dtype: torch.dtype) -> _OneDnnLayer:
    zeros = 0 if dtype == torch.float32 else -w_ih.shape[1] % LOW_PRECISION_INPUTS
    matrices = F.pad(w_ih, (0, zeros)).to(dtype), w_hh.to(dtype)
    laid_out = torch.ops.mkldnn._reorder_mkldnn_rnn_layer_weight(*matrices, w_hh.shape[1], False, True, False)
    return _OneDnnLayer([*laid_out, b_ih.to(dtype), b_hh.to(dtype)], zeros)


class SequenceLSTM(nn.Module):
    """See the module's text. Weights are orthogonal; biases 0 except the forget gate's, 1 in sum.

    (The 2025 system set all biases to 1, which also opens the input gate and shifts every cell by tanh(2) per
    step; only the forget gate has a reason to start open.)
    """

    def __init__(self, input_size: int, hidden_size: int, num_layers: int, *, orthogonal: bool = True) -> None:
        super().__init__()
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.rnn = nn.LSTM(input_size, hidden_size, num_layers)
        self._step_gates = [Derived(_gates) for _ in range(num_layers)]
        self._onednn_layers = [Derived(_onednn_layer) for _ in range(num_layers)]
        if orthogonal:
            self._initialise()

    def _initialise(self) -> None:
        forget_gate = slice(self.hidden_size, 2 * self.hidden_size)
        for name, parameter in self.rnn.named_parameters():
            if name.startswith("weight"):
                nn.init.orthogonal_(parameter)
            else:
                nn.init.zeros_(parameter)
                if name.startswith("bias_ih"):
                    nn.init.ones_(parameter.data[forget_gate])

    def zero_state(self, rows: int, like: Tensor) -> Tensor:
        return torch.zeros(self.num_layers, rows, self.hidden_size, dtype=torch.float32, device=like.device)

    def forward(
        self, x_BTF: Tensor, h_LBH: Tensor, c_LBH: Tensor, resets_BT: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Outputs ``(B, T, H)`` and the state ``(L, B, H)`` after the last step, both float32.

        The caller sees to it that ``resets_BT`` is None where nothing is reset, which is cheaper.
        """
        is_one_step = x_BTF.shape[1] == 1
        starts: list[int] = []
        if resets_BT is not None:
            keep_B1 = (~resets_BT[:, 0]).to(h_LBH.dtype).unsqueeze(-1)
            h_LBH, c_LBH = h_LBH * keep_B1, c_LBH * keep_B1
            if not is_one_step:
                starts = [step + 1 for step in resets_BT[:, 1:].any(dim=0).nonzero().squeeze(1).tolist()]
        if is_one_step and not torch.is_grad_enabled():
            step = self._onednn_step if is_onednn_used(x_BTF) else self._step
            y_BH, h, c = step(x_BTF[:, 0], h_LBH, c_LBH)
            return y_BH.unsqueeze(1), h, c
        return self._run_segments(x_BTF, h_LBH, c_LBH, resets_BT, starts)

    def _step(self, x_BF: Tensor, h_LBH: Tensor, c_LBH: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One step of all layers: outputs ``(B, H)`` and the next state."""
        dtype = compute_dtype(x_BF)
        next_h, next_c = torch.empty_like(h_LBH), torch.empty_like(c_LBH)
        H = self.hidden_size
        with in_float32(x_BF.device):
            layer_input = x_BF
            for layer, weights in enumerate(self.rnn.all_weights):
                inputs = torch.cat([layer_input.to(dtype), h_LBH[layer].to(dtype)], dim=1)
                gates = F.linear(inputs, *self._step_gates[layer](*weights, dtype=dtype)).float()
                input_and_forget, candidate, output = torch.split(gates, [2 * H, H, H], dim=1)
                input_and_forget.sigmoid_()
                cell = torch.mul(input_and_forget[:, H:], c_LBH[layer], out=next_c[layer])
                cell.addcmul_(input_and_forget[:, :H], candidate.tanh_())
                layer_input = torch.mul(output.sigmoid_(), cell.tanh(), out=next_h[layer])
        return next_h[-1], next_h, next_c

    def _onednn_step(self, x_BF: Tensor, h_LBH: Tensor, c_LBH: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As ``_step``. ``torch.lstm`` makes the same call, but would round the cell to the type of the inputs."""
        dtype = compute_dtype(x_BF)
        next_h, next_c = [], []
        with in_float32(x_BF.device):
            y_1BH = x_BF[None]
            for layer, weights in enumerate(self.rnn.all_weights):
                held = self._onednn_layers[layer](*weights, dtype=dtype)
                inputs = F.pad(y_1BH.to(dtype), (0, held.zeros))
                h, c = h_LBH[layer : layer + 1].to(dtype), c_LBH[layer : layer + 1]
                y_1BH, _, c, _ = torch.ops.aten.mkldnn_rnn_layer(
                    inputs, *held.weights, h, c, False, [], _LSTM, self.hidden_size, 1, True, False, False, False
                )
                y_1BH = y_1BH.float()
                next_h.append(y_1BH)
                next_c.append(c)
        return y_1BH[0], torch.cat(next_h), torch.cat(next_c)

    def _run_segments(
        self, x_BTF: Tensor, h_LBH: Tensor, c_LBH: Tensor, resets_BT: Tensor | None, starts: list[int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """starts: the steps but the first at which any row is reset. See the module's text."""
        (rows, H), is_low = (len(x_BTF), self.hidden_size), compute_dtype(x_BTF) != torch.float32
        on_cpu = x_BTF.device.type == "cpu" and not torch.compiler.is_compiling()
        if on_cpu and is_low and rows <= MAX_ROWS_PER_UNIT_IN_STEPS * H:
            return self._run_steps(x_BTF, h_LBH, c_LBH, resets_BT)
        if resets_BT is None or not starts:
            y_TBH, h_LBH, c_LBH = self._run(x_BTF.transpose(0, 1), h_LBH, c_LBH)
            return y_TBH.transpose(0, 1), h_LBH, c_LBH
        given = x_BTF, h_LBH, c_LBH, resets_BT
        if not on_cpu:
            return self._run_bites(*given) if len(starts) > MAX_SLICES_ON_A_CARD else self._run_slices(*given, starts)
        return self._run_pauses(*given) if is_low or rows * H < MIN_STATE_IN_STEPS else self._run_steps(*given)

    def _run_slices(
        self, x_BTF: Tensor, h_LBH: Tensor, c_LBH: Tensor, resets_BT: Tensor, starts: list[int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """All rows together from each of ``0, *starts`` to the next; the states that begin anew are zeroed between."""
        x_TBF = x_BTF.transpose(0, 1)
        keep_TB1 = (~resets_BT).t().to(h_LBH.dtype).unsqueeze(-1)
        outputs = []
        for start, end in zip([0, *starts], [*starts, len(x_TBF)], strict=True):
            if start:
                h_LBH, c_LBH = h_LBH * keep_TB1[start], c_LBH * keep_TB1[start]
            y_TBH, h_LBH, c_LBH = self._run(x_TBF[start:end], h_LBH, c_LBH)
            outputs.append(y_TBH)
        return torch.cat(outputs).transpose(0, 1), h_LBH, c_LBH

    def _run_steps(
        self, x_BTF: Tensor, h_LBH: Tensor, c_LBH: Tensor, resets_BT: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        y_BTH, last_h, last_c = x_BTF, [], []
        for weights, h, c in zip(self.rnn.all_weights, h_LBH, c_LBH, strict=True):
            y_BTH, h, c = unrolled_lstm(y_BTH, h, c, resets_BT, tuple(weights), compute_dtype(x_BTF))
            last_h.append(h)
            last_c.append(c)
        return y_BTH, torch.stack(last_h), torch.stack(last_c)

    def _run_pauses(
        self, x_BTF: Tensor, h_LBH: Tensor, c_LBH: Tensor, resets_BT: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        (rows, steps), dtype = resets_BT.shape, compute_dtype(x_BTF)
        place_N, signals_PBS = _with_pauses(resets_BT, dtype)
        x_PBF = x_BTF.new_zeros(signals_PBS.shape[0] * rows, x_BTF.shape[2], dtype=dtype)
        x_PBF = x_PBF.index_copy(0, place_N, x_BTF.flatten(0, 1).to(dtype)).view(-1, rows, x_BTF.shape[2])
        outputs, c_LBH = self._run_layers(x_PBF, h_LBH, c_LBH, signals_PBS)
        y_BTH = [y_PBH.flatten(0, 1).index_select(0, place_N).view(rows, steps, -1).float() for y_PBH in outputs]
        return y_BTH[-1], torch.stack([y[:, -1] for y in y_BTH]), c_LBH

    def _run(self, x_TBF: Tensor, h_LBH: Tensor, c_LBH: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if x_TBF.device.type == "cpu" and compute_dtype(x_TBF) != torch.float32:
            outputs, c = self._run_layers(x_TBF, h_LBH, c_LBH, x_TBF.new_empty(*x_TBF.shape[:2], 0))
            y = outputs[-1].float()
            return y, torch.stack([y_TBH[-1].float() for y_TBH in outputs]), c
        y_TBH, (h, c) = self.rnn(x_TBF, (h_LBH.to(x_TBF.dtype), c_LBH.to(x_TBF.dtype)))
        return y_TBH.float(), h.float(), c.float()

    def _run_layers(
        self, x_TBF: Tensor, h_LBH: Tensor, c_LBH: Tensor, signals_TBS: Tensor
    ) -> tuple[list[Tensor], Tensor]:
        """What each layer puts out ``(T, B, H)``, and the cells after the last step, float32.

        signals: of ``_with_pauses``, or none (S = 0).
        """
        dtype, H, S = compute_dtype(x_TBF), self.hidden_size, signals_TBS.shape[2]
        outputs, cells = [x_TBF.to(dtype)], []
        for (w_ih, w_hh, b_ih, b_hh), h, c in zip(self.rnn.all_weights, h_LBH.to(dtype), c_LBH.to(dtype), strict=True):
            more = S if dtype == torch.float32 else S + -(w_ih.shape[1] + S) % LOW_PRECISION_INPUTS
            gates = w_ih.new_zeros(4, H, more)  # input, forget, candidate, output
            if S:
                gates[[0, 1, 3], :, 0] = SHUT
                gates[0, :, 1], gates[1, :, 1] = SHUT, -SHUT
            weights = [torch.cat([w_ih, gates.flatten(0, 1)], dim=1).to(dtype), w_hh, b_ih, b_hh]
            inputs = torch.cat([outputs[-1], F.pad(signals_TBS.to(dtype), (0, more - S))], dim=2)
            y_TBH, _, c = torch.lstm(inputs, (h[None], c[None]), weights, True, 1, 0.0, True, False, False)
            outputs.append(y_TBH)
            cells.append(c[0])
        return outputs[1:], torch.stack(cells).float()

    def _run_bites(
        self, x_BTF: Tensor, h_LBH: Tensor, c_LBH: Tensor, resets_BT: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        rows, steps, _ = x_BTF.shape
        begins_BT = resets_BT.clone()
        begins_BT[:, 0] = True
        # Positions are flat, row·T + step. Every row begins a piece, so pieces never cross rows.
        position_n = begins_BT.flatten().nonzero().squeeze(1)
        end = position_n.new_tensor([rows * steps])
        length_n = torch.diff(position_n, append=end)
        is_first_n = position_n % steps == 0
        h = h_LBH.new_zeros(self.num_layers, len(position_n), self.hidden_size).index_copy(
            1, is_first_n.nonzero()[:, 0], h_LBH
        )
        c = c_LBH.new_zeros(self.num_layers, len(position_n), self.hidden_size).index_copy(
            1, is_first_n.nonzero()[:, 0], c_LBH
        )

        x_flat = x_BTF.reshape(rows * steps, -1)
        outputs, sources = [], []
        for size in _bite_sizes(steps):
            eats_n = (length_n >= size).nonzero().squeeze(1)
            if not len(eats_n):
                continue
            source = position_n[eats_n] + torch.arange(size, device=x_BTF.device).unsqueeze(1)
            y, h_bite, c_bite = self._run(x_flat[source], h[:, eats_n], c[:, eats_n])
            h, c = h.index_copy(1, eats_n, h_bite), c.index_copy(1, eats_n, c_bite)
            outputs.append(y.flatten(0, 1))
            sources.append(source.flatten())
            position_n = position_n.index_add(0, eats_n, torch.full_like(eats_n, size))
            length_n = length_n.index_add(0, eats_n, torch.full_like(eats_n, -size))

        source = torch.cat(sources)
        back = torch.empty_like(source)
        back[source] = torch.arange(len(source), device=source.device)
        y_BTH = torch.cat(outputs)[back].view(rows, steps, self.hidden_size)
        is_last_n = torch.cat([is_first_n[1:], is_first_n.new_ones(1)])
        return y_BTH, h[:, is_last_n], c[:, is_last_n]


def _with_pauses(resets_BT: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Where each step of each row comes to lie among P steps of B rows ``(B · T,)``, flat; and two signals
    ``(P, B, 2)``: 1 in the step before a reset, and 1 after a row's last step.

    Resets at the first step are not looked at: the state that is given has them.
    """
    rows, steps = resets_BT.shape
    begins_BT = resets_BT.clone()
    begins_BT[:, 0] = False
    pauses_BT = begins_BT.cumsum(1)
    longest = steps + int(pauses_BT[:, -1].max())
    every_row, every_step = (torch.arange(size, device=resets_BT.device) for size in (rows, steps))
    place_BT = (every_step + pauses_BT) * rows + every_row.unsqueeze(1)
    signals_NS = torch.tensor([0.0, 1.0], dtype=dtype, device=resets_BT.device).repeat(longest * rows, 1)
    signals_NS[place_BT.flatten()] = 0.0
    signals_NS[place_BT[begins_BT] - rows] = signals_NS.new_tensor([1.0, 0.0])
    return place_BT.flatten(), signals_NS.view(longest, rows, 2)


def _bite_sizes(steps: int) -> list[int]:
    """The whole row, then falling powers of two below it; each piece takes each size at most once."""
    powers = [1 << bit for bit in range(steps.bit_length()) if 1 << bit < steps]
    return [steps, *reversed(powers)]
