"""An LSTM over whole segments whose state is zeroed inside the segment where a new episode starts.

Letters: L layers, B rows, T steps, F inputs, H hidden size, n pieces.

A fused LSTM knows no resets. So one of four ways is taken, all to the same end; which, is a matter of speed alone:

* Slices: all rows run from one step at which anything is reset to the next. For few such steps.
* Pieces, for a processor to which more rows cost next to nothing: a row is run from its state, and once more from zero
  for each reset, with one more input that says where a piece has not begun: that shuts the input gate, so that the
  state stays zero, exactly, and so do the gradients. One fused call, over some more rows.
* Steps, on the CPU: ``unrolled_lstm``. For many resets.
* Bites, on a card, to which one step is too little work: pieces are cut out, each is eaten in bites whose sizes are
  powers of two (its length in binary), and all bites of one size run as one batch: at most log2(T) + 1 fused calls.

One step without gradients, as a policy acts, is two matrix products and the gates, which for few rows is cheaper than
the fused LSTM.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metta_ray.agent.derived import Derived
from metta_ray.agent.precision import compute_dtype, in_float32
from metta_ray.agent.unrolled_lstm import unrolled_lstm

# Every slice prepares the weights and sums up their gradients, H² numbers, for its B · H numbers per step. On a CPU
# slices and steps meet where resets happen at 4 steps (16 rows, H = 128), more than 8 (64, 128), 1 (16, 512), 4 to 8
# (64, 512); beyond, 16 rows of 64 steps take half again to twice as long in slices.
MAX_SLICES_PER_ROW_AND_UNIT = 32
# On a card: slices and bites take as long where resets happen at 8 to 16 steps.
MAX_SLICES_ON_A_CARD = 8
# In bfloat16 with AMX pieces take 4.5 µs per agent step where slices take 6.9 (16 rows, H = 128, 6 resets) and 3.6
# where they take 6.5 (64 rows, 16 resets), and steps as long as twice the rows. In float32 they lose to slices.
MAX_ROWS_FACTOR = 2
# What the input that says "not begun" adds to the input gate: σ of it is 0 in every precision.
SHUT = -1000.0
# One, and nothing: with an odd number of inputs oneDNN takes three times as long in bfloat16.
EXTRA_INPUTS = 32


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
                if later_resets:
                    return self._run_with_resets(x_BTF, h_LBH, c_LBH, resets_BT, [step + 1 for step in later_resets])
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

    def _run_with_resets(
        self, x_BTF: Tensor, h_LBH: Tensor, c_LBH: Tensor, resets_BT: Tensor, starts: list[int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """starts: the steps but the first at which any row is reset. See the module's text."""
        given = x_BTF, h_LBH, c_LBH, resets_BT
        rows = len(x_BTF)
        if x_BTF.device.type != "cpu" or torch.compiler.is_compiling():
            return self._run_bites(*given) if len(starts) > MAX_SLICES_ON_A_CARD else self._run_slices(*given, starts)
        most_slices = MAX_SLICES_PER_ROW_AND_UNIT * rows // self.hidden_size
        is_low = compute_dtype(x_BTF) != torch.float32
        if len(starts) <= (most_slices // 4 if is_low else most_slices):
            return self._run_slices(*given, starts)
        if is_low and rows + int(resets_BT[:, 1:].count_nonzero()) <= MAX_ROWS_FACTOR * rows:
            return self._run_pieces(*given)
        return self._run_steps(*given)

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
        self, x_BTF: Tensor, h_LBH: Tensor, c_LBH: Tensor, resets_BT: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        y_BTH, last_h, last_c = x_BTF, [], []
        for weights, h, c in zip(self.rnn.all_weights, h_LBH, c_LBH, strict=True):
            y_BTH, h, c = unrolled_lstm(y_BTH, h, c, resets_BT, tuple(weights), compute_dtype(x_BTF))
            last_h.append(h)
            last_c.append(c)
        return y_BTH, torch.stack(last_h), torch.stack(last_c)

    def _run_pieces(
        self, x_BTF: Tensor, h_LBH: Tensor, c_LBH: Tensor, resets_BT: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        (rows, steps), (row_n, waits_Tn, piece_BT) = resets_BT.shape, _pieces(resets_BT)
        count = len(row_n)
        state = h_LBH.new_zeros(2, self.num_layers, count, self.hidden_size)
        state[0, :, :rows], state[1, :, :rows] = h_LBH, c_LBH
        y_Tn = x_BTF.transpose(0, 1).index_select(1, row_n)
        waits = F.pad(waits_Tn.unsqueeze(2).to(y_Tn.dtype), (0, EXTRA_INPUTS - 1))
        last_h, last_c = [], []
        for (w_ih, w_hh, b_ih, b_hh), h, c in zip(self.rnn.all_weights, *state.to(y_Tn.dtype), strict=True):
            shut = w_ih.new_zeros(len(w_ih), EXTRA_INPUTS)
            shut[: self.hidden_size, 0] = SHUT
            weights = [torch.cat([w_ih, shut], dim=1), w_hh, b_ih, b_hh]
            inputs = torch.cat([y_Tn, waits], dim=2)
            y_Tn, h, c = torch.lstm(inputs, (h[None], c[None]), weights, True, 1, 0.0, True, False, False)
            last_h.append(h[0])
            last_c.append(c[0])
        chosen = torch.arange(steps, device=x_BTF.device) * count + piece_BT
        y_BTH = y_Tn.flatten(0, 1).index_select(0, chosen.flatten()).view(rows, steps, -1)
        last_piece = piece_BT[:, -1]
        h_LBH, c_LBH = (torch.stack(states)[:, last_piece].float() for states in (last_h, last_c))
        return y_BTH.float(), h_LBH, c_LBH

    def _run(self, x_TBF: Tensor, h_LBH: Tensor, c_LBH: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y_TBH, (h, c) = self.rnn(x_TBF, (h_LBH.to(x_TBF.dtype), c_LBH.to(x_TBF.dtype)))
        return y_TBH.float(), h.float(), c.float()

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


def _pieces(resets_BT: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Whose inputs each piece has ``(n,)``, the first B are the rows from their beginnings; where it has not begun
    ``(T, n)``; and the piece that each step of each row is taken from ``(B, T)``.

    Resets at the first step are not looked at: the state that is given has them.
    """
    rows, steps = resets_BT.shape
    begins_BT = resets_BT.clone()
    begins_BT[:, 0] = False
    row_k, step_k = begins_BT.nonzero(as_tuple=True)
    every_row = torch.arange(rows, device=resets_BT.device)
    first_n = torch.cat([torch.zeros_like(every_row), step_k])
    latest_BT = rows - 1 + begins_BT.flatten().cumsum(0).view(rows, steps)
    piece_BT = torch.where(begins_BT.cumsum(1) > 0, latest_BT, every_row.unsqueeze(1))
    waits_Tn = torch.arange(steps, device=resets_BT.device).unsqueeze(1) < first_n
    return torch.cat([every_row, row_k]), waits_Tn, piece_BT


def _bite_sizes(steps: int) -> list[int]:
    """The whole row, then falling powers of two below it; each piece takes each size at most once."""
    powers = [1 << bit for bit in range(steps.bit_length()) if 1 << bit < steps]
    return [steps, *reversed(powers)]
