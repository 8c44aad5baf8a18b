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

import numpy as np
import torch
from torch import Tensor

from metta_ray.rl.arrays import Array, as_tensor, library_of, native, quietly


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

    if last_values is not None:
        _require_shape("last_values", last_values, (rows,))
    result = generalized_advantages(
        native(values.to(device)),
        native(rewards.to(device)),
        native(dones.to(device)),
        native(importance_sampling_ratio.to(device)),
        None if last_values is None else native(last_values.to(device)),
        None if truncation_values is None else native(truncation_values.to(device)),
        gamma,
        gae_lambda,
        vtrace_rho_clip,
        vtrace_c_clip,
    )
    advantages[:, : columns - 1] = as_tensor(result)
    return advantages


def generalized_advantages(
    values: Array,
    rewards: Array,
    dones: Array,
    ratio: Array,
    last_values: Array | None,
    truncation_values: Array | None,
    gamma: float,
    gae_lambda: float,
    rho_clip: float,
    c_clip: float,
) -> Array:
    """``compute_advantage`` of ``arrays.native`` ones: ``(S, T)``, or ``(S, T - 1)`` without ``last_values``."""
    next_values = values[:, 1:]
    if last_values is not None:
        next_values = library_of(values).concatenate([next_values, last_values[:, None]], 1)
    steps = rewards.shape[1] - 1
    ratio = ratio[:, :steps]
    with quietly():
        continues = 1.0 - dones[:, 1:]
        bootstrap = continues * next_values
        if truncation_values is not None:
            bootstrap += truncation_values[:, 1:]
        delta = (rewards[:, 1:] + gamma * bootstrap - values[:, :steps]) * ratio.clip(max=rho_clip)
        decay = ratio.clip(max=c_clip) * continues * (gamma * gae_lambda)
        return _accumulated(delta, decay)


def _accumulated(delta: Array, decay: Array) -> Array:
    """``delta[:, t] + decay[:, t] · result[:, t + 1]``; both ``(S, T)``."""
    # Time runs along the first axis here, so that each step of the recurrence works on a dense row.
    if isinstance(delta, np.ndarray):
        delta_TS = np.ascontiguousarray(delta.T)
        rows, decays = list(delta_TS), list(np.ascontiguousarray(decay.T))
        for t in range(len(rows) - 2, -1, -1):
            decays[t] *= rows[t + 1]
            rows[t] += decays[t]
    else:
        delta_TS = delta.t().contiguous()
        on_device, decays_on_device = delta_TS.unbind(), decay.t().contiguous().unbind()
        for t in range(len(on_device) - 2, -1, -1):
            on_device[t].addcmul_(decays_on_device[t], on_device[t + 1])
    return delta_TS.T


def normalize_advantages(advantages: Array, mean: Array | float, std: Array | float, mask: Array) -> Array:
    """(A - mean) / (std + 1e-8) where ``mask`` is True, 0 elsewhere; all ``(S, T)``, mean and std scalars."""
    return library_of(advantages).where(mask, (advantages - mean) / (std + 1e-8), 0.0)


def _require_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {shape}")
