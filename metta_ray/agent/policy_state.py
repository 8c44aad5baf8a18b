"""What a policy reads beside the observation, and carries from one step to the next.

Letters: L LSTM layers, B rows (agents or segments), T steps, H hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Generator, Tensor


@dataclass
class PolicyState:
    """Recurrent state and side inputs of one forward pass.

    For one step per row the side inputs have shape ``(B, …)``; for whole segments ``(B, T, …)``.

    lstm_h, lstm_c: float32 ``(L, B, H)``, the state before the first step; None means zeros. The policy
        replaces them by the (detached) state after the last step.
    resets: bool ``(B,)`` or ``(B, T)``: True where the observation is the first of an episode. The policy
        zeroes the recurrent state there, before it reads the observation. None means no resets.
    last_actions: int64 or float32, shape of the action with the same leading axes: what the agent did to get
        here. Ignored where ``resets`` is True. None means no action yet anywhere.
    last_rewards: float32 ``(B,)`` or ``(B, T)``: the reward that came with this observation. Ignored where
        ``resets`` is True (it belongs to the episode before). None means zeros.
    generator: what actions are drawn with, on the policy's device. None means torch's default generator.
    """

    lstm_h: Tensor | None = None
    lstm_c: Tensor | None = None
    resets: Tensor | None = None
    last_actions: Tensor | None = None
    last_rewards: Tensor | None = None
    generator: Generator | None = None
