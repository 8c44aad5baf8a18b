"""Starting a new run from the weights of an existing policy."""

from __future__ import annotations

import random

from torch import nn

from metta_ray.agent.policy_store import PolicyStore
from metta_ray.agent.weights import copy_weights
from metta_ray.common.util.state_directory import tree_from_bytes, tree_to_bytes
from metta_ray.rl.distributed import broadcast_bytes, setup_distributed_vars, unwrap_agent
from metta_ray.rl.trainer_config import InitialPolicyConfig


def load_initial_policy(agent: nn.Module, policy_store: PolicyStore, config: InitialPolicyConfig) -> str | None:
    """Copies the weights of the policy that ``config`` chooses; returns its URI, or None if it names none.

    ``top`` and ``latest`` choose at random among the first ``range`` policies; ``specific`` takes the one at
    ``uri``. Rank 0 chooses and reads. Raises PolicyMissingError, or PolicyMismatchError if it does not fit.
    """
    if config.uri is None:
        return None
    is_master, _, _ = setup_distributed_vars()
    message = b""
    if is_master:
        if config.type == "specific":
            record = policy_store.load_from_uri(config.uri)
        else:
            records = policy_store.policy_records(
                config.uri, config.type, config.range, config.metric, config.filters or None
            )
            record = random.choice(records)
        weights = {name: tensor.cpu().numpy() for name, tensor in record.policy.state_dict().items()}
        message = tree_to_bytes({"uri": record.uri, "weights": weights})
    chosen = tree_from_bytes(broadcast_bytes(message))
    copy_weights(unwrap_agent(agent), chosen["weights"], chosen["uri"])
    uri: str = chosen["uri"]
    return uri
