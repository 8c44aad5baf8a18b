"""An LSTM over whole segments whose state is zeroed inside the segment where a new episode starts.

Letters: L layers, B rows, T steps, F inputs, H hidden size, n pieces.

Where resets happen at few different steps, all rows run from one such step to the next (slices): the batch stays
whole and nothing is rearranged. Where they are many, the CPU goes step by step (``unrolled_lstm``).

A card, to which a step is too little work, has each row with resets fall into pieces; the first goes on from the
row's state, the others start from zero. Pieces have any length, but a fused LSTM wants equal ones. So each piece is
eaten in bites whose sizes are powers of two (its length in binary), and all bites of one size run as one batch: at
most log2(T) + 1 fused calls, no padding, and the state after each row's last step is exact. Rows without resets are
one bite.

One step without gradients, as a policy acts, is two matrix products and the gates, which for few rows is cheaper than
the fused LSTM.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from metta_ray.agent.derived import Derived
from metta_ray.agent.precision import compute_dtype, in_float32
from metta_ray.agent.unrolled_lstm import unrolled_lstm

# Every slice prepares the weights and sums up their gradients, H² numbers, for its B · H numbers per step. On a CPU
# slices and steps meet where resets happen at 4 steps (16 rows, H = 128), more than 8 (64, 128), 1 (16, 512), 4 to 8
# (64, 512); beyond, 16 rows of 64 steps take half again to twice as long in slices.
MAX_SLICES_PER_ROW_AND_UNIT = 32
# On a card: slices and pieces take as long where resets happen at 8 to 16 steps.
MAX_SLICES_ON_A_CARD = 8


class _Gates(NamedTuple):
    """One layer for row vectors: ``gates = x @ from_input + h @ from_state + bias``, each ``(…, 4·H)``."""

    from_input: Tensor
    from_state: Tensor
    bias: Tensor


def _gates(w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor, dtype: torch.dtype) -> _Gates:
    return _Gates(w_ih.t().to(dtype), w_hh.t().to(dtype), (b_ih + b_hh).to(dtype))


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
        if resets_BT is not None:
            keep_B1 = (~resets_BT[:, 0]).to(h_LBH.dtype).unsqueeze(-1)
            h_LBH, c_LBH = h_LBH * keep_B1, c_LBH * keep_B1
            if not is_one_step:
                later_resets = resets_BT[:, 1:].any(dim=0).nonzero().squeeze(1).tolist()
                if later_resets and x_BTF.device.type == "cpu" and not torch.compiler.is_compiling():
                    if len(later_resets) > MAX_SLICES_PER_ROW_AND_UNIT * len(x_BTF) // self.hidden_size:
                        return self._run_steps(x_BTF, h_LBH, c_LBH, resets_BT)
                elif len(later_resets) > MAX_SLICES_ON_A_CARD:
                    return self._run_pieces(x_BTF, h_LBH, c_LBH, resets_BT)
                if later_resets:
                    return self._run_slices(x_BTF, h_LBH, c_LBH, resets_BT, [step + 1 for step in later_resets])
        if is_one_step and not torch.is_grad_enabled():
            y_BH, h, c = self._step(x_BTF[:, 0], h_LBH, c_LBH)
            return y_BH.unsqueeze(1), h, c
        y_TBH, h, c = self._run(x_BTF.transpose(0, 1), h_LBH, c_LBH)
        return y_TBH.transpose(0, 1), h, c

    def _step(self, x_BF: Tensor, h_LBH: Tensor, c_LBH: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One step of all layers: outputs ``(B, H)`` and the next state."""
        dtype = compute_dtype(x_BF)
        next_h, next_c = torch.empty_like(h_LBH), torch.empty_like(c_LBH)
        H = self.hidden_size
        with in_float32(x_BF.device):
            layer_input = x_BF
            for layer, weights in enumerate(self.rnn.all_weights):
                matrices = self._step_gates[layer](*weights, dtype=dtype)
                gates = torch.addmm(matrices.bias, layer_input.to(dtype), matrices.from_input)
                gates = gates.addmm_(h_LBH[layer].to(dtype), matrices.from_state).float()
                input_and_forget, candidate, output = torch.split(gates, [2 * H, H, H], dim=1)
                input_and_forget.sigmoid_()
                cell = torch.mul(input_and_forget[:, H:], c_LBH[layer], out=next_c[layer])
                cell.addcmul_(input_and_forget[:, :H], candidate.tanh_())
                layer_input = torch.mul(output.sigmoid_(), cell.tanh(), out=next_h[layer])
        return next_h[-1], next_h, next_c

    def _run_steps(
        self, x_BTF: Tensor, h_LBH: Tensor, c_LBH: Tensor, resets_BT: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        y_BTH, last_h, last_c = x_BTF, [], []
        for weights, h, c in zip(self.rnn.all_weights, h_LBH, c_LBH, strict=True):
            y_BTH, h, c = unrolled_lstm(y_BTH, h, c, resets_BT, tuple(weights), compute_dtype(x_BTF))
            last_h.append(h)
            last_c.append(c)
        return y_BTH, torch.stack(last_h), torch.stack(last_c)

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

    def _run(self, x_TBF: Tensor, h_LBH: Tensor, c_LBH: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y_TBH, (h, c) = self.rnn(x_TBF, (h_LBH.to(x_TBF.dtype), c_LBH.to(x_TBF.dtype)))
        return y_TBH.float(), h.float(), c.float()

    def _run_pieces(
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


def _bite_sizes(steps: int) -> list[int]:
    """The whole row, then falling powers of two below it; each piece takes each size at most once."""
    powers = [1 << bit for bit in range(steps.bit_length()) if 1 << bit < steps]
    return [steps, *reversed(powers)]
