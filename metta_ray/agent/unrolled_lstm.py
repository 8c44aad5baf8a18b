"""One LSTM layer over whole segments on the CPU, step by step, with a backward pass of its own.

Steps depend on each other only through ``h @ W_hh``. All else is done for many steps at once: the products with the
inputs, the slopes of the gates, the gradients of the weights. What is left per step is seven small operations forward
and five backward, and two more where an episode begins. For sizes at which that is faster than torch's fused LSTM (see
``lstm``).

Letters: B rows, T steps, N = T · B, F inputs, H hidden size, G = 4 · H. The gates are in the order o, i, f, g (torch:
i, f, g, o): so the three sigmoids lie side by side, and so do the three that the gradient of the cell goes to.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# With fewer numbers in a state, one step's product takes longer in bfloat16 than in float32: with AMX 16 rows of
# H = 128 take 27 µs against 12, 64 rows 35 against 43.
LOW_PRECISION_STATE = 4096
# The backward pass prepares steps together whose gates have so many numbers each: they stay in a core's cache.
BLOCK = 1 << 15


def unrolled_lstm(
    x_BTF: Tensor,
    h_BH: Tensor,
    c_BH: Tensor,
    resets_BT: Tensor | None,
    weights: tuple[Tensor, ...],
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs ``(B, T, H)`` and the state ``(B, H)`` after the last step, all float32.

    resets_BT: before which steps a row's state becomes zero. weights: w_ih ``(4·H, F)``, w_hh ``(4·H, H)``, b_ih and
    b_hh ``(4·H,)`` of ``torch.nn.LSTM``, whose equations these are. dtype: of the matrix products; all else is float32.
    """
    x_TBF, resets_TB = x_BTF.transpose(0, 1), None if resets_BT is None else resets_BT.t()
    y_TBH: Tensor
    y_TBH, h_BH, c_BH = _UnrolledLSTM.apply(x_TBF, h_BH, c_BH, resets_TB, dtype, *weights)  # type: ignore[no-untyped-call]
    return y_TBH.transpose(0, 1), h_BH, c_BH


class _UnrolledLSTM(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_TBF: Tensor,
        h_BH: Tensor,
        c_BH: Tensor,
        resets_TB: Tensor | None,
        dtype: torch.dtype,
        *weights: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        (T, B, _), H = x_TBF.shape, h_BH.shape[1]
        step_dtype = dtype if B * H >= LOW_PRECISION_STATE else torch.float32
        w_ih, w_hh, b_ih, b_hh = weights
        w_ih, w_hh, bias = _rolled(w_ih, H, dtype), _rolled(w_hh, H, step_dtype), _rolled(b_ih + b_hh, H, dtype)
        keep_TB1, starts = _kept(resets_TB)

        x_NF = x_TBF.reshape(T * B, -1).to(dtype)
        with torch.autocast(x_TBF.device.type, enabled=False):
            gates_TBG = F.linear(x_NF, w_ih, bias).float().view(T, B, 4 * H)
            # What each step puts out, after the state given; not yet zero where the next begins anew.
            h_TBH, c_TBH = x_TBF.new_empty(2, T + 1, B, H, dtype=torch.float32)
            tanh_TBH = torch.empty_like(h_TBH[1:])
            h_TBH[0], c_TBH[0] = h_BH, c_BH
            from_state = w_hh.t().contiguous()
            o, i, f, g = (gate.unbind() for gate in torch.split(gates_TBG, H, dim=2))
            gates, sigmoids = gates_TBG.unbind(), gates_TBG[..., : 3 * H].unbind()
            h, c, tanh = h_TBH.unbind(), c_TBH.unbind(), tanh_TBH.unbind()
            for t in range(T):
                h_t, c_t = (h[t] * keep_TB1[t], c[t] * keep_TB1[t]) if t in starts else (h[t], c[t])
                if step_dtype == torch.float32:
                    gates[t].addmm_(h_t, from_state)
                else:
                    gates[t].add_(h_t.to(step_dtype) @ from_state)
                sigmoids[t].sigmoid_()
                torch.mul(f[t], c_t, out=c[t + 1]).addcmul_(i[t], g[t].tanh_())
                torch.mul(o[t], torch.tanh(c[t + 1], out=tanh[t]), out=h[t + 1])

        ctx.save_for_backward(x_NF, w_ih, w_hh, gates_TBG, h_TBH, c_TBH, tanh_TBH, keep_TB1)
        ctx.starts, ctx.x_shape, ctx.x_dtype = starts, x_TBF.shape, x_TBF.dtype
        ctx.set_materialize_grads(False)
        return h_TBH[1:], h[T].clone(), c[T].clone()

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, dy_TBH: Tensor | None, dh_BH: Tensor | None, dc_BH: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        x_NF, w_ih, w_hh, gates_TBG, h_TBH, c_TBH, tanh_TBH, keep_TB1 = ctx.saved_tensors
        (T, B, H), starts = tanh_TBH.shape, ctx.starts
        h_TBH, c_TBH = h_TBH[:-1], c_TBH[:-1]
        if starts:
            h_TBH, c_TBH = h_TBH * keep_TB1, c_TBH * keep_TB1
        dy_TBH = torch.zeros_like(tanh_TBH) if dy_TBH is None else dy_TBH.contiguous()
        dgates_TBG = torch.empty_like(gates_TBG, dtype=w_ih.dtype)
        is_low = dgates_TBG.dtype != torch.float32
        dh = torch.zeros_like(tanh_TBH[0]) if dh_BH is None else dh_BH.clone()
        dc = torch.zeros_like(dh) if dc_BH is None else dc_BH.clone()
        dc_B1H = dc.unsqueeze(1)
        dy, dgates, f = dy_TBH.unbind(), dgates_TBG.unbind(), gates_TBG[..., 2 * H : 3 * H].unbind()
        for end in range(T, 0, -_block(B * H)):
            block = slice(max(0, end - _block(B * H)), end)
            # The gradients of a step's gates are the slopes times dh (o) and dc (i, f, g), which replace them in place.
            slopes_TBG = torch.empty_like(gates_TBG[block]) if is_low else dgates_TBG[block]
            dc_dh = _slopes(gates_TBG[block], c_TBH[block], tanh_TBH[block], slopes_TBG).unbind()
            slopes, to_o = slopes_TBG.unbind(), slopes_TBG[..., :H].unbind()
            to_ifg = slopes_TBG.view(-1, B, 4, H)[:, :, 1:].unbind()
            for t in range(end - 1, block.start - 1, -1):
                k = t - block.start
                dh.add_(dy[t])
                dc.addcmul_(dh, dc_dh[k])
                to_o[k].mul_(dh)
                to_ifg[k].mul_(dc_B1H)
                if is_low:
                    dgates[t].copy_(slopes[k])
                dc.mul_(f[t])
                if w_hh.dtype == torch.float32:
                    torch.mm(slopes[k], w_hh, out=dh)
                else:
                    dh.copy_(dgates[t] @ w_hh)
                if t in starts:
                    dh.mul_(keep_TB1[t])
                    dc.mul_(keep_TB1[t])

        dgates_NG = dgates_TBG.view(T * B, 4 * H)
        dx = (dgates_NG @ w_ih).view(ctx.x_shape).to(ctx.x_dtype) if ctx.needs_input_grad[0] else None
        dw_ih = dgates_NG.t() @ x_NF
        dw_hh = dgates_NG.t() @ h_TBH.reshape(T * B, H).to(dgates_NG.dtype)
        db = dgates_NG.sum(0, dtype=torch.float32)
        dw_ih, dw_hh, db = (_rolled(gradient, -H, torch.float32) for gradient in (dw_ih, dw_hh, db))
        return dx, dh, dc, None, None, dw_ih, dw_hh, db, db


def _rolled(weights: Tensor, rows: int, dtype: torch.dtype) -> Tensor:
    """As ``weights.roll(rows, 0).to(dtype)``, in one pass."""
    rolled = torch.empty_like(weights, dtype=dtype)
    rolled[:rows], rolled[rows:] = weights[-rows:], weights[:-rows]
    return rolled


def _kept(resets_TB: Tensor | None) -> tuple[Tensor, frozenset[int]]:
    """1 where a state goes on, 0 where it begins anew: ``(T, B, 1)`` float32. And the steps at which any does."""
    if resets_TB is None:
        return torch.empty(0), frozenset()
    starts = resets_TB.any(dim=1).nonzero().squeeze(1).tolist()
    return (~resets_TB).float().unsqueeze(2), frozenset(starts)


def _block(numbers: int) -> int:
    """Steps that are prepared together, with so many numbers in a state."""
    return max(1, BLOCK // numbers)


def _slopes(gates_TBG: Tensor, c_TBH: Tensor, tanh_TBH: Tensor, out: Tensor) -> Tensor:
    """By how much the loss grows with what goes into each gate, per gradient of the output (o) or of the cell (i, f,
    g), into ``out``; and the gradient of the cell per gradient of the output, ``(T, B, H)``. c: before the step.
    """
    H = tanh_TBH.shape[2]
    o, i, _, g = torch.split(gates_TBG, H, dim=2)
    to_o, to_i, to_f, to_g = torch.split(out, H, dim=2)
    sigmoids = gates_TBG[..., : 3 * H]
    torch.addcmul(sigmoids, sigmoids, sigmoids, value=-1, out=out[..., : 3 * H])  # σ' = σ − σ²
    to_o.mul_(tanh_TBH)
    to_i.mul_(g)
    to_f.mul_(c_TBH)
    torch.addcmul(i, i * g, g, value=-1, out=to_g)  # i · tanh' = i − i · g²
    return torch.addcmul(o, o * tanh_TBH, tanh_TBH, value=-1)
