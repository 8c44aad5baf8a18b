"""A policy for use: weights behind a lazy attribute, with what is known about them. Not resumable."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from metta_ray.agent import stored_policies
from metta_ray.agent.policy_metadata import PolicyMetadata
from metta_ray.common.errors import UsageError
from metta_ray.common.util import places

if TYPE_CHECKING:
    from metta_ray.agent.metta_agent import MettaAgent

FILE_SCHEME = "file://"


class PolicyRecord:
    """run_name: name of the saved policy, e.g. ``model_0012``. uri: where it lies, ``file://…`` or a URL.

    ``policy`` is read from ``uri`` on first use and then kept; every record has a module of its own, so
    changing it (``train()``, ``adapt_to``) does not touch other records of the same file.
    """

    def __init__(
        self,
        run_name: str,
        uri: str,
        metadata: PolicyMetadata | None = None,
        *,
        policy: MettaAgent | None = None,
        load: Callable[[], MettaAgent] | None = None,
    ) -> None:
        self.run_name = run_name
        self.uri = uri
        self.metadata = metadata if metadata is not None else PolicyMetadata()
        self._policy = policy
        self._load = load

    @property
    def policy(self) -> MettaAgent:
        """The module, in eval mode when it was read from a file.

        UsageError for a record that was neither given a policy nor saved; CheckpointError where the files
        behind it are damaged.
        """
        if self._policy is None:
            if self._load is None:
                raise UsageError(
                    f"policy record {self.run_name!r} is empty: assign record.policy and save it, "
                    "or take a record from PolicyStore.policy_record(uri)"
                )
            self._policy = self._load()
        return self._policy

    @policy.setter
    def policy(self, policy: MettaAgent) -> None:
        self._policy = policy

    @property
    def is_loaded(self) -> bool:
        return self._policy is not None

    def saved_as(self, uri: str, load: Callable[[], MettaAgent]) -> None:
        """The record now stands for the files at ``uri``; the module in memory, which its owner may go on
        training, is let go."""
        self.uri = uri
        self._load = load
        self._policy = None

    @property
    def file_path(self) -> Path:
        """The directory behind a ``file://`` uri, or the copy of a policy in an object store."""
        if places.is_remote(self.uri):
            return stored_policies.copy_of(self.uri)
        if not self.uri.startswith(FILE_SCHEME):
            raise UsageError(f"policy record {self.run_name!r} has no file: its uri is {self.uri!r}")
        return Path(self.uri.removeprefix(FILE_SCHEME))

    def num_params(self) -> int:
        """Number of trainable numbers. Reads the policy if that has not happened yet."""
        return sum(parameter.numel() for parameter in self.policy.parameters() if parameter.requires_grad)

    def __repr__(self) -> str:
        return (
            f"PolicyRecord({self.run_name!r}, {self.uri!r}, epoch={self.metadata.epoch}, "
            f"agent_step={self.metadata.agent_step}, score={self.metadata.score_of('score')})"
        )


def make_model_name(epoch: int) -> str:
    return f"model_{epoch:04d}"
