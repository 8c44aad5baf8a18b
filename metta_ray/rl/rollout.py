"""One step of many agents: receive, infer, store, send.

Waits for:    a group of environments to finish its step (``vecenv.recv``).
Released by:  ``vecenv.send``, which gives that group its next actions.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from metta_ray.agent.metta_agent import MettaAgent
from metta_ray.agent.token_encoder import used_tokens
from metta_ray.common.profiling.stopwatch import Stopwatch
from metta_ray.envs.env_spec import TokenSpace
from metta_ray.envs.vecenv import Received, VecEnv
from metta_ray.rl.distributed import unwrap_agent
from metta_ray.rl.experience import Experience


@torch.inference_mode()
def perform_rollout_step(
    policy: nn.Module,
    vecenv: VecEnv,
    experience: Experience,
    device: torch.device | str,
    timer: Stopwatch | None = None,
) -> tuple[int, list[dict[str, Any]]]:
    """Advances one group of environments by one step.

    Returns (agent steps stored, one info per episode that ended). When it fills the last row it also looks at
    what the last actions brought, so that ``experience`` is complete; those observations are met again, unacted
    on, by the next rollout.
    """
    agent = unwrap_agent(policy)
    if experience.is_empty:
        vecenv.pin_tasks()
    received, rows = _receive(vecenv, timer)
    infos = received.infos
    if experience.is_full(rows):
        _close(agent, vecenv, experience, received, rows, device, timer)
        return 0, infos

    with _timed(timer, "_rollout.inference"):
        inputs = _Inputs(received, experience.rollout_state.is_new[rows], vecenv, device)
        truncation_values = _truncation_values(agent, vecenv, experience, received, rows, inputs)
        state = experience.rollout_state.policy_state(rows, resets=inputs.resets, last_rewards=inputs.rewards)
        actions, logprobs, values = agent.act(inputs.obs, state)
        num_steps = experience.store(
            inputs.obs,
            actions,
            logprobs,
            received.rewards,
            inputs.dones,
            received.truncations,
            values,
            rows,
            received.masks,
            state,
            truncation_values=truncation_values,
        )
    with _timed(timer, "_rollout.env"):
        vecenv.send(actions.cpu().numpy().astype(vecenv.driver_env.action_dtype, copy=False))

    while experience.ready_for_training and not experience.is_closed(slice(0, experience.total_agents)):
        received, rows = _receive(vecenv, timer)
        infos = infos + received.infos
        _close(agent, vecenv, experience, received, rows, device, timer)
    return num_steps, infos


class _Inputs:
    """What the policy reads of one group, on its device, and the flags that the experience keeps, on the host.

    resets: where an episode begins; None where none does: the policy then has less to do.
    """

    def __init__(
        self, received: Received, is_new: NDArray[np.bool_], vecenv: VecEnv, device: torch.device | str
    ) -> None:
        self.dones = received.terminals | received.truncations | is_new
        self.obs = _observation_tensor(received.obs, vecenv, device)
        self.rewards = _on_device(torch.from_numpy(received.rewards), device)
        self.resets = _on_device(torch.from_numpy(self.dones), device) if self.dones.any() else None


def _observation_tensor(obs: NDArray[Any], vecenv: VecEnv, device: torch.device | str) -> Tensor:
    tensor = torch.from_numpy(obs)
    if isinstance(vecenv.driver_env.observation_space, TokenSpace):
        tensor = tensor[:, : used_tokens(tensor)]
    return _on_device(tensor, device)


def _on_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    return tensor if str(device) == "cpu" else tensor.to(device)  # it comes from the host, where asking takes longer


def _receive(vecenv: VecEnv, timer: Stopwatch | None) -> tuple[Received, slice]:
    with _timed(timer, "_rollout.env"):
        received = vecenv.recv()
    return received, slice(int(received.env_ids[0]), int(received.env_ids[-1]) + 1)


def _close(
    agent: MettaAgent,
    vecenv: VecEnv,
    experience: Experience,
    received: Received,
    rows: slice,
    device: torch.device | str,
    timer: Stopwatch | None,
) -> None:
    """Completes full rows with what came after their last action, and leaves the group for the next rollout."""
    with _timed(timer, "_rollout.inference"):
        inputs = _Inputs(received, experience.rollout_state.is_new[rows], vecenv, device)
        truncation_values = _truncation_values(agent, vecenv, experience, received, rows, inputs)
        state = experience.rollout_state.policy_state(rows, resets=inputs.resets, last_rewards=inputs.rewards)
        values = agent.value(inputs.obs, state)
        experience.close(
            received.rewards,
            inputs.dones,
            received.truncations,
            values,
            rows,
            received.masks,
            truncation_values=truncation_values,
        )
    vecenv.hold()


def _truncation_values(
    agent: MettaAgent,
    vecenv: VecEnv,
    experience: Experience,
    received: Received,
    rows: slice,
    inputs: _Inputs,
) -> Tensor | None:
    """Values of the true final observations of episodes that were cut by a limit, 0 elsewhere: ``(n,)``. None where
    none was cut."""
    if not received.truncations.any():
        return None
    cut = np.flatnonzero(received.truncations & ~received.terminals & received.masks)
    if len(cut) == 0:
        return None
    values = torch.zeros_like(inputs.rewards)
    # Their episode goes on in imagination: the recurrent state is not reset for this look.
    where = torch.from_numpy(cut).to(values.device)
    state = experience.rollout_state.policy_state(
        where + rows.start, resets=torch.zeros_like(where, dtype=torch.bool), last_rewards=inputs.rewards[where]
    )
    final_obs = _observation_tensor(vecenv.final_obs[cut], vecenv, values.device)
    values[where] = agent.value(final_obs, state)
    return values


def _timed(timer: Stopwatch | None, name: str) -> AbstractContextManager[Any]:
    return timer(name) if timer is not None else nullcontext()
