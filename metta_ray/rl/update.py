"""From a full buffer to a better policy: advantages → minibatches → losses → gradient steps.

Letters: S segments, T steps, M segments of a minibatch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from metta_ray.agent.metta_agent import MettaAgent
from metta_ray.agent.policy_state import PolicyState
from metta_ray.common.profiling.stopwatch import Stopwatch
from metta_ray.rl.advantage import compute_advantage, generalized_advantages, normalize_advantages
from metta_ray.rl.arrays import Array, as_tensor, library_of, native, quietly
from metta_ray.rl.distributed import all_reduce_sum, setup_distributed_vars, unwrap_agent
from metta_ray.rl.experience import Experience, Minibatch
from metta_ray.rl.fused_loss import fused_ppo_loss
from metta_ray.rl.kickstarter import Kickstarter
from metta_ray.rl.losses import Losses, explained_variance
from metta_ray.rl.optimizer import Optimizer
from metta_ray.rl.trainer_config import TrainerConfig

# What ``look_again`` reads together, whole segments or one step of them after the other: without a gradient more fits
# into memory than a minibatch, and more at once costs less for each.
LOOK_AGAIN_STEPS, LOOK_AGAIN_SEGMENTS = 4096, 1024

_READ_FOR_WEIGHTS = (
    "logprobs",
    "proximal_logprobs",
    "values",
    "next_rewards",
    "next_dones",
    "last_values",
    "truncation_values",
    "mask",
    "prio_weights",
)


def update_policy(
    policy: nn.Module,
    optimizer: Optimizer,
    experience: Experience,
    trainer_cfg: TrainerConfig,
    kickstarter: Kickstarter | None,
    agent_step: int,
    epoch: int,
    losses: Losses,
    device: torch.device | str,
    timer: Stopwatch | None = None,
    *,
    is_off_policy: bool = False,
) -> int:
    """Trains on one full batch; returns the number of update epochs begun.

    is_off_policy: an older policy collected some of it. Then the policy as it is now becomes the middle of PPO's
        trust region, and data are weighed by how likely they are under it (decoupled PPO, Hilton et al. 2022); see
        ``look_again``.
    ``losses`` is zeroed and filled. All ranks take the same number of gradient steps: the KL stop
    (``ppo.target_kl``) looks at the divergence averaged over ranks.
    """
    losses.zero()
    optimizer.zero_grad()
    experience.reset_importance_sampling_ratios()
    experience.begin_update(epoch)
    with _timed(timer, "_train"):
        if is_off_policy:
            look_again(policy, experience)
        advantages = batch_advantages(experience, trainer_cfg, device)
        losses.explained_variance = explained_variance(
            experience.values, advantages + experience.values, experience.mask
        )
        for update_epoch in range(trainer_cfg.update_epochs):
            for minibatch in _pass_over(experience, advantages, trainer_cfg, epoch):
                kl_before = losses.approx_kl_sum
                loss = process_minibatch_update(
                    policy,
                    experience,
                    minibatch,
                    advantages,
                    trainer_cfg,
                    kickstarter,
                    agent_step,
                    losses,
                    device,
                )
                if _diverges(losses.approx_kl_sum - kl_before, trainer_cfg.ppo.target_kl):
                    return update_epoch + 1
                optimizer.step(loss, epoch, experience.accumulate_minibatches)
    return trainer_cfg.update_epochs


def batch_advantages(experience: Experience, trainer_cfg: TrainerConfig, device: torch.device | str) -> Tensor:
    """Advantages of the whole batch ``(S, T)`` under the policy that collected it (all ratios 1)."""
    return compute_advantage(
        **experience.transitions(),
        importance_sampling_ratio=torch.ones_like(experience.values),
        advantages=torch.zeros_like(experience.values),
        gamma=trainer_cfg.ppo.gamma,
        gae_lambda=trainer_cfg.ppo.gae_lambda,
        vtrace_rho_clip=trainer_cfg.vtrace.vtrace_rho_clip,
        vtrace_c_clip=trainer_cfg.vtrace.vtrace_c_clip,
        device=device,
    )


@torch.no_grad()
def look_again(policy: nn.Module, experience: Experience) -> None:
    """What the policy, before it is updated, thinks of data that an older one collected.

    Its log-probabilities of the actions become the proximal ones; its values take the place of the stored ones, as
    V-trace wants them. Both start from the stored recurrent states. (T-maze, seed 0, one version of lag: solved after
    1.3 × the agent steps of no lag; after 1.7 × with the stored values; not within 2.6 × with plain PPO.)
    """
    agent = unwrap_agent(policy)
    unused = torch.zeros_like(experience.values)
    proximal = torch.empty_like(experience.logprobs)
    # A fused LSTM knows no resets, and few rows keep a processor waiting for its weights (default network, bfloat16
    # with AMX: 95 µs per agent step, 38 in steps); a card prefers few large calls.
    in_steps = agent.lstm is not None and experience.device.type == "cpu"
    rows = torch.arange(experience.segments, device=experience.device)
    at_once = LOOK_AGAIN_SEGMENTS if in_steps else LOOK_AGAIN_STEPS // experience.bptt_horizon
    for indices in torch.split(rows, max(experience.minibatch_segments, at_once)):
        minibatch = experience.rows(indices, unused)
        if in_steps:
            logprobs, values = _evaluate_in_steps(agent, minibatch)
        else:
            logprobs, _, values, _ = _evaluate(agent, minibatch)
        proximal[indices] = logprobs
        experience.update_values(indices, values)
    experience.proximal_logprobs = proximal


def _pass_over(
    experience: Experience, advantages: Tensor, trainer_cfg: TrainerConfig, epoch: int
) -> Iterator[Minibatch]:
    """The minibatches of one update epoch."""
    alpha = trainer_cfg.prioritized_experience_replay.prio_alpha
    beta = calculate_anneal_beta(epoch, trainer_cfg)
    for index in range(experience.num_minibatches):
        yield experience.sample_minibatch(advantages, alpha, beta, index, experience.num_minibatches)


def _diverges(approx_kl: float, target_kl: float | None) -> bool:
    return target_kl is not None and approx_kl > target_kl


def process_minibatch_update(
    policy: nn.Module,
    experience: Experience,
    minibatch: Minibatch,
    advantages: Tensor,
    trainer_cfg: TrainerConfig,
    kickstarter: Kickstarter | None,
    agent_step: int,
    losses: Losses,
    device: torch.device | str,
) -> Tensor:
    """The loss of one minibatch, a scalar with gradient; ``losses`` counts its terms.

    Runs the policy over the minibatch's segments from their stored recurrent state, recomputes advantages with
    the current importance ratio, normalises them over all ranks, and adds up

        L_π - ent_coef·H + vf_coef·L_V + L2 terms + kickstart terms.

    ``advantages`` is not read (the minibatch carries its rows); it is in the signature for scripts that pass it.
    """
    del advantages
    ppo = trainer_cfg.ppo
    mask = minibatch["mask"]
    logprobs, entropy, values, log_probs = _evaluate(policy, minibatch)

    ratio, weights, totals = _weights_of_actions(minibatch, logprobs, trainer_cfg)
    experience.update_ratio(minibatch["indices"], ratio)
    loss, terms = fused_ppo_loss(
        logprobs=logprobs,
        old_logprobs=minibatch["proximal_logprobs"],
        advantages=weights,
        values=values,
        old_values=minibatch["values"],
        returns=minibatch["returns"],
        entropy=entropy,
        mask=mask,
        count=totals.count_per_rank,
        config=ppo,
    )
    agent = unwrap_agent(policy)
    more: dict[str, Tensor] = {}
    if ppo.l2_reg_loss_coef > 0:
        more["l2_reg_loss"] = ppo.l2_reg_loss_coef * _sum_of_squares(agent)
    if ppo.l2_init_loss_coef > 0:
        more["l2_init_loss"] = ppo.l2_init_loss_coef * agent.l2_init_loss()
    if kickstarter is not None:
        more["ks_action_loss"], more["ks_value_loss"] = kickstarter.loss(
            agent_step, log_probs, values, experience, minibatch, totals.count_per_rank
        )

    losses.add(
        policy_loss=terms.policy_loss,
        value_loss=terms.value_loss,
        entropy=terms.entropy,
        # The KL of all ranks, so that a decision taken on it is the same everywhere.
        approx_kl=totals.approx_kl,
        clipfrac=terms.clipfrac,
        importance=terms.importance,
        current_logprobs=terms.current_logprobs,
        **more,
    )
    for term in more.values():
        loss = loss + term
    return loss


def _weights_of_actions(
    minibatch: Minibatch, logprobs: Tensor, trainer_cfg: TrainerConfig
) -> tuple[Tensor, Tensor, MinibatchTotals]:
    """Importance ratios ``(M, T)``; what the policy loss multiplies them by: advantages under these ratios, normalised
    and weighed, ``(M, T)``; and what all ranks agree on."""
    ppo, vtrace = trainer_cfg.ppo, trainer_cfg.vtrace
    given = {name: native(tensor) for name, tensor in minibatch.items() if name in _READ_FOR_WEIGHTS}
    with quietly():
        log_ratio = native(logprobs) - given["logprobs"]
        ratio = library_of(log_ratio).exp(log_ratio)
        weights = generalized_advantages(
            given["values"],
            given["next_rewards"],
            given["next_dones"],
            ratio,
            given["last_values"],
            given["truncation_values"],
            ppo.gamma,
            ppo.gae_lambda,
            vtrace.vtrace_rho_clip,
            vtrace.vtrace_c_clip,
        )
        totals = minibatch_totals(weights, log_ratio, given["mask"])
        if ppo.norm_adv:
            weights = normalize_advantages(weights, totals.mean, totals.std, given["mask"])
        weights = weights * given["prio_weights"]
        if minibatch["proximal_logprobs"] is not minibatch["logprobs"]:  # else the two policies are the same
            correction = library_of(weights).exp(given["proximal_logprobs"] - given["logprobs"])
            weights *= correction.clip(max=vtrace.vtrace_rho_clip)
    return as_tensor(ratio), as_tensor(weights), totals


@dataclass
class MinibatchTotals:
    """Sums over the masked actions of a minibatch on all ranks: numbers on the host, scalars on a device.

    mean, std (biased) of the advantages; approx_kl; count_per_rank: masked actions / number of ranks, at least 1.
    """

    mean: Tensor | float
    std: Tensor | float
    approx_kl: Tensor | float
    count_per_rank: Tensor | float


def minibatch_totals(advantages: Array, log_ratio: Array, mask: Array) -> MinibatchTotals:
    """One collective for everything that ranks must agree on; every rank calls it for every minibatch."""
    xp = library_of(advantages)
    kl = xp.expm1(log_ratio) - log_ratio
    counted, kl = (xp.asarray(xp.where(mask, one, 0.0), dtype=xp.float64) for one in (advantages, kl))
    sums = xp.stack([counted.sum(), xp.square(counted).sum(), kl.sum(), xp.asarray(mask.sum(), dtype=xp.float64)])
    reduced = all_reduce_sum(as_tensor(sums))
    sums = native(reduced) if xp is np else reduced
    _, world_size, _ = setup_distributed_vars()
    count = sums[3].clip(min=1)
    mean, square, approx_kl = sums[0] / count, sums[1] / count, sums[2] / count
    std = xp.sqrt((square - mean * mean).clip(min=1e-8))
    # A number of Python's leaves the precision of what it is combined with as it is.
    numbers = (mean, std, approx_kl, count / world_size)
    return MinibatchTotals(*(float(one) if xp is np else one.float() for one in numbers))


def calculate_anneal_beta(epoch: int, trainer_cfg: TrainerConfig) -> float:
    """β = β₀ + (1 - β₀)·α·min(1, epoch / epochs in all): importance correction of prioritised sampling."""
    prioritized = trainer_cfg.prioritized_experience_replay
    total_epochs = max(1, trainer_cfg.total_timesteps // trainer_cfg.batch_size)
    progress = min(1.0, epoch / total_epochs)
    return prioritized.prio_beta0 + (1 - prioritized.prio_beta0) * prioritized.prio_alpha * progress


def should_run_on_interval(epoch: int, interval: int, *, previous_epoch: int | None = None) -> bool:
    """True when a multiple of ``interval`` was reached since ``previous_epoch`` (default: the epoch before).

    An interval of 0 means never. A crossing test, so that counting by more than one skips nothing.
    """
    if interval <= 0:
        return False
    previous = epoch - 1 if previous_epoch is None else previous_epoch
    return epoch // interval > previous // interval


def maybe_update_l2_weights(agent: nn.Module, epoch: int, interval: int) -> None:
    """Moves the reference weights of the L2-init loss every ``interval`` epochs, on every rank alike."""
    if should_run_on_interval(epoch, interval):
        unwrap_agent(agent).update_l2_init_weight_copy()


def _evaluate(policy: nn.Module, minibatch: Minibatch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(log-probabilities, entropy, values: ``(M, T)``; log-probabilities of all actions ``(M·T, A)``)."""
    lstm_h, lstm_c = minibatch["lstm_h"], minibatch["lstm_c"]
    is_recurrent = lstm_h.shape[0] > 0
    state = PolicyState(
        lstm_h=lstm_h if is_recurrent else None,
        lstm_c=lstm_c if is_recurrent else None,
        resets=minibatch["dones"] > 0,
        last_actions=minibatch["last_actions"],
        last_rewards=minibatch["rewards"],
    )
    _, logprobs, entropy, values, log_probs = policy(minibatch["obs"], state, minibatch["actions"])
    shape = minibatch["logprobs"].shape
    return logprobs.view(shape), entropy.view(shape), values.view(shape), log_probs


def _evaluate_in_steps(agent: MettaAgent, minibatch: Minibatch) -> tuple[Tensor, Tensor]:
    """(log-probabilities, values) ``(M, T)``, one step of all segments after the other, as a policy acts."""
    state = PolicyState(lstm_h=minibatch["lstm_h"], lstm_c=minibatch["lstm_c"])
    logprobs, values = torch.empty_like(minibatch["logprobs"]), torch.empty_like(minibatch["values"])
    for step in range(logprobs.shape[1]):
        state.resets = minibatch["dones"][:, step] > 0
        state.last_actions = minibatch["last_actions"][:, step]
        state.last_rewards = minibatch["rewards"][:, step]
        _, logprob, _, value, _ = agent(minibatch["obs"][:, step], state, minibatch["actions"][:, step])
        logprobs[:, step], values[:, step] = logprob, value.squeeze(1)
    return logprobs, values


def _sum_of_squares(agent: nn.Module) -> Tensor:
    return torch.stack([parameter.square().sum() for parameter in agent.parameters()]).sum()


def _timed(timer: Stopwatch | None, name: str) -> AbstractContextManager[Any]:
    return timer(name) if timer is not None else nullcontext()
