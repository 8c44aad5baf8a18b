"""An LSTM over whole segments whose state is zeroed inside the segment where a new episode starts.

Letters: L layers, B rows, T steps, F inputs, H hidden size, n pieces.

A row with resets falls into pieces; the first goes on from the row's state, the others start from zero.
Pieces have any length, but a fused LSTM wants equal ones. So each piece is eaten in bites whose sizes are
powers of two (its length in binary), and all bites of one size run as one batch: at most log2(T) + 1 fused
calls, no padding, and the state after each row's last step is exact. Rows without resets are one bite.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


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
        if resets_BT is None:
            y_TBH, h, c = self._run(x_BTF.transpose(0, 1), h_LBH, c_LBH)
            return y_TBH.transpose(0, 1), h, c
        keep_B1 = (~resets_BT[:, 0]).to(h_LBH.dtype).unsqueeze(-1)
        h_LBH, c_LBH = h_LBH * keep_B1, c_LBH * keep_B1
        if x_BTF.shape[1] == 1 or not bool(resets_BT[:, 1:].any()):
            return self.forward(x_BTF, h_LBH, c_LBH, None)
        return self._run_pieces(x_BTF, h_LBH, c_LBH, resets_BT)

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
