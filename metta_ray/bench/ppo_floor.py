"""The floor of acting and learning: the least that must be done around the network of policy_floor.py.

Imports nothing else of this package. Letters as there: W tokens, A actions, B segments, T steps, H hidden size.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from metta_ray.bench.policy_floor import FloorNetwork


class FloorActor:
    """Acts for so many rows, carrying their recurrent state."""

    def __init__(self, network: FloorNetwork, rows: int) -> None:
        self.network = network
        network.hold(network.way.dtype)
        self._h = torch.zeros(1, rows, network.shape.lstm, device=network.cell.device)
        self._c = self._h.clone()

    @torch.inference_mode()
    def act(self, obs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(actions, log-probabilities, values) of ``(rows, W, 3)`` on the network's device."""
        logits, values, self._h, self._c = self.network(obs, 1, self._h, self._c)
        log_probs = logits.log_softmax(1)
        # The exponential race: the winner is distributed as the probabilities say.
        actions = (log_probs.exp() / torch.empty_like(logits).exponential_()).argmax(1)
        return actions, log_probs.gather(1, actions.unsqueeze(1)).squeeze(1), values


class FloorMinibatch(NamedTuple):
    """obs ``(B, T, W, 3)`` uint8; actions int64, logprobs, advantages, returns float32 ``(B, T)``; h, c ``(1, B,
    H)``."""

    obs: Tensor
    actions: Tensor
    logprobs: Tensor
    advantages: Tensor
    returns: Tensor
    h: Tensor
    c: Tensor


class FloorLearner:
    """Forward, PPO loss, backward, clipping, Adam. ``capturable``: for CUDA graphs."""

    def __init__(self, network: FloorNetwork, *, capturable: bool = False) -> None:
        self.network = network
        # The plain formulation is what a script writes without a thought of speed.
        fused = network.way.tokens != "all"
        self.optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, fused=fused, capturable=capturable)

    def step(self, batch: FloorMinibatch) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        self.update()
        return loss

    def update(self) -> None:
        nn.utils.clip_grad_norm_(self.network.parameters(), 0.5, foreach=True)
        self.optimizer.step()

    def loss(self, batch: FloorMinibatch) -> Tensor:
        segments, steps = batch.actions.shape
        dtype = self.network.way.dtype
        with torch.autocast(batch.obs.device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            logits, values, _, _ = self.network(batch.obs.flatten(0, 1), steps, batch.h, batch.c)
        log_probs = logits.log_softmax(1)
        chosen = log_probs.gather(1, batch.actions.view(-1, 1)).view(segments, steps)
        advantages = (batch.advantages - batch.advantages.mean()) / (batch.advantages.std() + 1e-8)
        ratio = (chosen - batch.logprobs).exp()
        policy_loss = torch.max(-advantages * ratio, -advantages * ratio.clamp(0.8, 1.2)).mean()
        value_loss = 0.5 * (values.view(segments, steps) - batch.returns).square().mean()
        entropy = -(log_probs.exp() * log_probs).sum(1).mean()
        loss: Tensor = policy_loss + 0.5 * value_loss - 0.01 * entropy
        return loss
