"""Generalised advantage estimation with V-trace clips, over rows of experience.

Letters: S rows (segments), T columns (the horizon), K = T + 1.

Column t holds observation t, the action and value computed from it, and the reward and done flag that arrived
*with* it, which belong to action t - 1. With ρ = min(ratio, ρ̄), c = min(ratio, c̄) and n = 1 - done[t+1]:

    δ[t] = ρ · (reward[t+1] + γ · (n · value[t+1] + truncation_value[t+1]) - value[t])
    A[t] = δ[t] + γ · λ · c · n · A[t+1]

Sources: GAE, Schulman et al. 2016, eq. 16; clips, Espeholt et al. 2018 (IMPALA), eq. 1, applied to GAE's
recurrence as PufferLib does: ρ scales the whole TD error.
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def compute_advantage(
    values: Tensor,
    rewards: Tensor,
    dones: Tensor,
    importance_sampling_ratio: Tensor,
    advantages: Tensor,
    gamma: float,
    gae_lambda: float,
    vtrace_rho_clip: float,
    vtrace_c_clip: float,
    device: torch.device | str,
    *,
    last_values: Tensor | None = None,
    truncation_values: Tensor | None = None,
) -> Tensor:
    """Writes advantages in place and returns them; no gradient flows through the result.

    values, importance_sampling_ratio, advantages: float32 ``(S, T)``.
    rewards, dones: float32 ``(S, T)``. The last column of ``advantages`` is then left as it is: its action's
        reward is not known.
    last_values: float32 ``(S,)``, value of the observation after the last column. If given, ``rewards`` and
        ``dones`` (and ``truncation_values``) have T + 1 columns and all T advantages are computed.
    truncation_values: like ``rewards``; where an episode was cut by a limit rather than ended by its task,
        the value of its true final observation, elsewhere 0.

    Raises ValueError for shapes that do not fit.
    """
    rows, horizon = values.shape
    columns = horizon if last_values is None else horizon + 1
    _require_shape("importance_sampling_ratio", importance_sampling_ratio, (rows, horizon))
    _require_shape("advantages", advantages, (rows, horizon))
    _require_shape("rewards", rewards, (rows, columns))
    _require_shape("dones", dones, (rows, columns))
    if truncation_values is not None:
        _require_shape("truncation_values", truncation_values, (rows, columns))

    next_values = values[:, 1:]
    if last_values is not None:
        _require_shape("last_values", last_values, (rows,))
        next_values = torch.cat([next_values, last_values.unsqueeze(1)], dim=1)

    steps = columns - 1
    values, ratio = values[:, :steps].to(device), importance_sampling_ratio[:, :steps].to(device)
    continues = 1.0 - dones[:, 1:].to(device)
    bootstrap = continues * next_values.to(device)
    if truncation_values is not None:
        bootstrap = bootstrap + truncation_values[:, 1:].to(device)

    td_error = rewards[:, 1:].to(device) + gamma * bootstrap - values
    delta = ratio.clamp(max=vtrace_rho_clip) * td_error
    decay = gamma * gae_lambda * ratio.clamp(max=vtrace_c_clip) * continues

    # Time runs along the first axis here, so that each step of the recurrence is one operation on a dense row.
    delta_TS, decay_TS = delta.t().contiguous(), decay.t().contiguous()
    delta_by_step, decay_by_step = delta_TS.unbind(), decay_TS.unbind()
    for t in range(steps - 2, -1, -1):
        delta_by_step[t].addcmul_(decay_by_step[t], delta_by_step[t + 1])
    advantages[:, :steps] = delta_TS.t()
    return advantages


def normalize_advantages(advantages: Tensor, mean: Tensor, std: Tensor, mask: Tensor) -> Tensor:
    """(A - mean) / (std + 1e-8) where ``mask`` is True, 0 elsewhere; all ``(S, T)``, mean and std scalars."""
    return torch.where(mask, (advantages - mean) / (std + 1e-8), 0.0)


def _require_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {shape}")
