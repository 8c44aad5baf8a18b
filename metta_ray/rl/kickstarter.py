"""Learning from teachers while their help lasts: a loss towards their actions and values.

Letters: S segments, T steps, N agents, A actions, M segments of a minibatch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import gymnasium
import torch
from torch import Tensor

from metta_ray.agent.metta_agent import MettaAgent
from metta_ray.agent.policy_state import PolicyState
from metta_ray.agent.policy_store import PolicyStore
from metta_ray.common.errors import ConfigError
from metta_ray.envs.env_spec import EnvSpec
from metta_ray.envs.vecenv import VecEnv
from metta_ray.rl.experience import Experience, Minibatch, Origin
from metta_ray.rl.kickstarter_config import KickstartConfig


@dataclass
class _Teacher:
    policy: MettaAgent
    action_loss_coef: float
    value_loss_coef: float
    states: dict[int, PolicyState] = field(default_factory=dict)
    log_probs: Tensor = field(default_factory=lambda: torch.empty(0))
    values: Tensor = field(default_factory=lambda: torch.empty(0))


class Kickstarter:
    """Teachers, what they would have done in the current batch, and how much that counts now.

    Each teacher reads every batch once, in order, with recurrent state of its own that continues from batch to
    batch, for each group of agents whose rows ``experience.origins`` tells apart.
    Raises ConfigError if a teacher's actions are not those of the environment.
    """

    def __init__(
        self,
        config: KickstartConfig,
        device: torch.device | str,
        policy_store: PolicyStore | None,
        env: VecEnv | EnvSpec,
    ):
        self.config = config
        self._rollout_id = -1
        teachers = config.teachers
        if teachers and policy_store is None:
            raise ConfigError(f"kickstart has {len(teachers)} teachers but no policy_store to load them from")
        spec = env if isinstance(env, EnvSpec) else env.driver_env
        if teachers and isinstance(spec.action_space, gymnasium.spaces.Box):
            raise ConfigError(
                f"kickstart compares probabilities of discrete actions, but {spec.name} has "
                f"{spec.action_space}; leave kickstart.teacher_uri out"
            )
        self.teachers: list[_Teacher] = []
        for teacher in teachers:
            assert policy_store is not None
            policy = policy_store.policy_record(teacher.teacher_uri, selector="latest").policy
            policy.adapt_to(spec)
            policy.to(device).eval()
            self.teachers.append(_Teacher(policy, teacher.action_loss_coef, teacher.value_loss_coef))

    @property
    def enabled(self) -> bool:
        return bool(self.teachers)

    def coefficient(self, agent_step: int) -> float:
        """1 while ``agent_step`` ≤ K(1-a), then falling linearly to 0 at K; K = kickstart_steps, a = anneal_ratio."""
        total, anneal = self.config.kickstart_steps, self.config.anneal_ratio
        if agent_step > total:
            return 0.0
        start = total * (1 - anneal)
        return 1.0 if agent_step <= start else 1.0 - (agent_step - start) / (total * anneal)

    def loss(
        self,
        agent_step: int,
        student_log_probs: Tensor,
        student_values: Tensor,
        experience: Experience,
        minibatch: Minibatch,
        count: Tensor | float | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(action loss, value loss), both already weighted, summed over teachers.

        student_log_probs ``(M·T, A)``, student_values ``(M, T)``. Per teacher i with coefficients c_i, v_i and
        f = ``coefficient(agent_step)``: -f·c_i·mean Σ_a π_T(a)·log π_S(a), and f·v_i·mean (V_T - V_S)², means
        over actions that count (``count`` of them per rank; None: those of this minibatch).
        """
        zero = student_values.new_zeros(())
        factor = self.coefficient(agent_step)
        if not self.enabled or factor == 0.0:
            return zero, zero
        self._read(experience)
        rows, mask = minibatch["indices"], minibatch["mask"]
        count = mask.sum().clamp(min=1) if count is None else count
        action_loss, value_loss = zero, zero
        for teacher in self.teachers:
            teacher_log_probs = teacher.log_probs[rows]
            student = student_log_probs.view(teacher_log_probs.shape)
            # 0 · log 0 = 0 for actions that neither can take.
            cross_entropy = -(teacher_log_probs.exp() * student.clamp(min=-1e4)).sum(-1)
            action_loss = action_loss + teacher.action_loss_coef * (cross_entropy * mask).sum() / count
            assert student_values.shape == mask.shape
            errors = (teacher.values[rows] - student_values) ** 2
            value_loss = value_loss + teacher.value_loss_coef * (errors * mask).sum() / count
        return factor * action_loss, factor * value_loss

    def state_dict(self) -> dict[str, Any]:
        """Recurrent state per teacher; valid between two epochs."""

        def arrays(state: PolicyState) -> list[Any]:
            return [None if part is None else part.cpu().numpy() for part in (state.lstm_h, state.lstm_c)]

        return {"teachers": [{number: arrays(state) for number, state in one.states.items()} for one in self.teachers]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises ValueError for the state of another number of teachers."""
        if len(state["teachers"]) != len(self.teachers):
            raise ValueError(f"state of {len(state['teachers'])} kickstart teachers, here are {len(self.teachers)}")
        for teacher, saved in zip(self.teachers, state["teachers"], strict=True):
            device = next(teacher.policy.parameters()).device
            for number, arrays in saved.items():
                h, c = (None if part is None else torch.from_numpy(part).to(device) for part in arrays)
                teacher.states[number] = PolicyState(lstm_h=h, lstm_c=c)

    @torch.no_grad()
    def _read(self, experience: Experience) -> None:
        """Lets every teacher see the batch, once per rollout."""
        if self._rollout_id == experience.rollout_id:
            return
        self._rollout_id = experience.rollout_id
        for teacher in self.teachers:
            blocks = zip(experience.agent_rows(), experience.origins, strict=True)
            parts = [self._read_rows(teacher, experience, rows, origin) for rows, origin in blocks]
            log_probs, values = (torch.cat(part) for part in zip(*parts, strict=True))
            teacher.log_probs, teacher.values = log_probs, values

    def _read_rows(
        self, teacher: _Teacher, experience: Experience, rows: Tensor, origin: Origin
    ) -> tuple[Tensor, Tensor]:
        batch = experience.inputs(rows)
        if not origin.continues:
            teacher.states.pop(origin.agents, None)
        state = teacher.states.setdefault(origin.agents, PolicyState())
        state.resets = batch["dones"] > 0
        state.last_actions, state.last_rewards = batch["last_actions"], batch["rewards"]
        _, _, _, values, log_probs = teacher.policy(batch["obs"], state, batch["actions"])
        shape = batch["rewards"].shape
        return log_probs.view(*shape, -1), values.view(shape)
