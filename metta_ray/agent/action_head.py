"""The three kinds of action spaces as a policy sees them: how many outputs, which distribution, which input.

Letters: N rows, A outputs (logits or means), K action components, E columns of the last action as a side
input.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from gymnasium import spaces
from torch import Tensor, nn

from metta_ray.agent.distributions import ActionDistribution, Categorical, DiagonalGaussian, MultiCategorical
from metta_ray.common.errors import ConfigError, PolicyMismatchError
from metta_ray.envs.env_spec import EnvSpec

NO_ACTION = -1


class ActionHead(nn.Module):
    """Turns the actor's outputs into a distribution, and last actions into a vector.

    Discrete actions count from 0. Between environments they are matched by name: ``adapt`` sets which of the
    original logits each action of the current environment has, and an action that the policy never knew gets
    probability 0. The Gaussian's log-std is a parameter and does not depend on the state.
    """

    source: Tensor
    last_action_rows: Tensor

    def __init__(self, spec: EnvSpec) -> None:
        super().__init__()
        space = spec.action_space
        self.names = spec.action_names
        self.sizes: list[int] = []
        self.log_std: nn.Parameter | None = None
        if isinstance(space, spaces.Discrete):
            self.kind, self.sizes = "Discrete", [int(space.n)]
        elif isinstance(space, spaces.MultiDiscrete):
            self.kind, self.sizes = "MultiDiscrete", [int(n) for n in space.nvec.ravel()]
        elif isinstance(space, spaces.Box):
            self.kind = "Box"
            self.log_std = nn.Parameter(torch.zeros(int(torch.Size(space.shape).numel())))
        else:
            raise ConfigError(f"action space {space} of {spec.name}: expected Discrete, MultiDiscrete or Box")
        self.action_shape = spec.action_shape
        self.num_outputs = sum(self.sizes) if self.log_std is None else len(self.log_std)
        self.last_action_size = self.num_outputs
        self.is_adapted = False
        # Row a, of component k, is the one-hot of that action; rows of components follow each other.
        self.register_buffer("last_action_rows", torch.eye(self.num_outputs), persistent=False)
        offsets = torch.tensor([0, *self.sizes[:-1]], dtype=torch.int64).cumsum(0)
        self.register_buffer("offsets", offsets, persistent=False)
        self.register_buffer("source", torch.empty(0, dtype=torch.int64), persistent=False)

    def distribution(self, outputs: Tensor) -> ActionDistribution:
        """From float32 ``(N, A)`` of the original actions to a distribution over those of the environment."""
        if self.log_std is not None:
            return DiagonalGaussian(outputs, self.log_std)
        if self.kind == "MultiDiscrete":
            return MultiCategorical(outputs, self.sizes)
        if self.is_adapted:
            unknown = outputs.new_full((len(outputs), 1), -torch.inf)
            outputs = torch.cat([outputs, unknown], dim=1)[:, self.source]
        return Categorical(outputs)

    def last_action_vector(self, actions: Tensor) -> Tensor:
        """One-hots ``(N, E)`` of original actions, or the raw vector of a Box."""
        if self.log_std is not None:
            return actions.reshape(len(actions), -1).float()
        if self.kind == "MultiDiscrete":
            places = actions.reshape(len(actions), -1).long() + self.get_buffer("offsets")
            return self.last_action_rows[places].sum(dim=1)
        return self.last_action_rows.index_select(0, actions.long())

    def adapt(self, spec: EnvSpec) -> None:
        """Matches the actions of another environment. Raises PolicyMismatchError where none can be."""
        other = ActionHead(spec)
        if (other.kind, len(other.sizes), other.action_shape) != (
            self.kind,
            len(self.sizes),
            self.action_shape,
        ):
            raise PolicyMismatchError(
                f"the policy acts in {self.kind}{list(self.action_shape)}, but {spec.name} has {spec.action_space}"
            )
        if self.kind == "Discrete" and self.names and spec.action_names:
            self.adapt_names(spec.action_names)
        elif other.sizes != self.sizes:
            raise PolicyMismatchError(
                f"the policy has {self.sizes} actions and {spec.name} {other.sizes}; "
                "without action names on both sides they must be equal"
            )

    def adapt_names(self, names: Sequence[str]) -> None:
        """Sets the current environment's actions, by name, in its order."""
        position = {name: index for index, name in enumerate(self.names)}
        if not position.keys() & set(names):
            raise PolicyMismatchError(
                f"no action in common: the policy knows {', '.join(self.names)}; the environment has {', '.join(names)}"
            )
        self.is_adapted = tuple(names) != tuple(self.names)
        source = torch.tensor([position.get(name, self.num_outputs) for name in names], device=self.source.device)
        self.source = source
        padded = torch.cat([torch.eye(self.num_outputs), torch.zeros(1, self.num_outputs)])
        self.last_action_rows = padded[source.cpu()].to(source.device)
