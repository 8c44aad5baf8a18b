"""Finds, loads, saves, protects and deletes policies.

A URI is ``file://PATH``, a bare path (absolute, relative to the working directory, or relative to ``data_dir``, so that
a run's name will do), or a URL of an object store such as ``s3://bucket/runs/nav``, of which a checked copy is used. It
is one policy directory, a directory of them, or a run directory with ``checkpoints/``. Trainer checkpoints are policy
directories too.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from metta_ray.agent import policy_files, policy_pins, policy_retention, stored_policies
from metta_ray.agent.metta_agent import MettaAgent
from metta_ray.agent.policy_cache import PolicyCache
from metta_ray.agent.policy_files import PolicyWeights
from metta_ray.agent.policy_record import FILE_SCHEME, PolicyRecord, make_model_name
from metta_ray.agent.policy_selection import SELECTORS, Filter, age, conditions, matches, select
from metta_ray.common.errors import CheckpointError, ConfigError, PolicyMismatchError, PolicyMissingError
from metta_ray.common.util import places, stored_directories
from metta_ray.common.util.fs import atomic_directory
from metta_ray.common.util.state_directory import write_manifest

logger = logging.getLogger(__name__)


class PolicyStore:
    """device: where loaded policies are put. policy_cache_size: how many policies' weights stay in memory
    (at least 1). seed: makes the selector ``rand`` repeatable."""

    def __init__(
        self,
        device: str | torch.device = "cpu",
        data_dir: str | Path = "./train_dir",
        policy_cache_size: int = 10,
        *,
        seed: int | None = None,
    ) -> None:
        self.device = torch.device(device)
        self.data_dir = Path(data_dir)
        self._weights: PolicyCache[PolicyWeights] = PolicyCache(policy_cache_size)
        self._random = random.Random(seed)

    # ---- finding ----

    def policy_record(
        self,
        uri: str | Path,
        selector: str = "top",
        metric: str = "score",
        filters: Mapping[str, Filter] | None = None,
    ) -> PolicyRecord:
        """The policy that ``policy_records`` puts first. PolicyMissingError where there is none."""
        return self.policy_records(uri, selector, 1, metric, filters)[0]

    def policy_records(
        self,
        uri: str | Path,
        selector: str = "top",
        n: int | None = 1,
        metric: str = "score",
        filters: Mapping[str, Filter] | None = None,
    ) -> list[PolicyRecord]:
        """At most ``n`` policies (None: no limit), found under ``uri``.

        selector: ``all`` (oldest first; ignores n), ``latest`` (highest epoch first, the newer file among
            equals), ``rand`` (without repetition), ``top`` (highest ``metric`` first; policies without it are
            passed over, and where none has it the latest are returned with a warning).
        filters: {metadata name: condition}, all must hold. A condition is a comparison such as ``">= 5"``
            (one of ``< <= > >= == !=``, then a number, or a text for ``==`` and ``!=``), a plain value
            (equality), or a function of the value. Metrics in ``eval_scores`` are found by their name; a
            policy without the named value does not match.

        ConfigError for an unknown selector or condition, PolicyMissingError where nothing matches.
        """
        if selector not in SELECTORS:
            raise ConfigError(f"selector={selector!r} is unknown; known: {', '.join(SELECTORS)}")
        if n is not None and n < 1:
            raise ConfigError(f"n={n} asks for no policy; choose 1 or more, or None for all")
        wanted = conditions(filters)
        records = self._find(uri)
        matching = [record for record in records if matches(record.metadata, wanted)]
        if not matching:
            raise PolicyMissingError(
                f"none of the {len(records)} policies under {str(uri)!r} matches "
                f"filters={dict(filters or {})}; loosen the filters"
            )
        chosen = select(matching, selector, metric, self._random)
        return chosen if selector == "all" else chosen[:n]

    def load_from_uri(self, uri: str | Path) -> PolicyRecord:
        """The record of exactly one policy directory."""
        directory = self._resolve(uri)
        _refuse_non_directory(directory)
        if not policy_files.is_policy_directory(directory):
            raise PolicyMissingError(
                f"{directory} is not a policy directory (it has no {policy_files.DESCRIPTION}); "
                f"to choose among several use policy_record(uri, selector={'|'.join(SELECTORS)})"
            )
        return self._record_of(directory)

    def _find(self, uri: str | Path) -> list[PolicyRecord]:
        """All sound policies under a URI, oldest first; damaged ones are passed over, loudly."""
        root = self._resolve(uri)
        _refuse_non_directory(root)
        if policy_files.is_policy_directory(root):
            return [self._record_of(root)]
        records = list(self._sound_records(root))
        if not records:
            pickles = sorted(path.name for path in root.glob("*.pt"))
            raise PolicyMissingError(
                f"no policy under {str(uri)!r} (looked in {root})"
                + (f"; {_pickle_remedy(', '.join(pickles))}" if pickles else "; train and save one first")
            )
        return sorted(records, key=age)

    def _sound_records(self, root: Path) -> Iterator[PolicyRecord]:
        for directory in policy_directories(root):
            try:
                yield self._record_of(directory)
            except CheckpointError as error:
                logger.warning("passed over a damaged policy: %s", error)

    def _resolve(self, uri: str | Path) -> Path:
        """The path behind a URI, which must exist."""
        text = str(uri)
        scheme, separator, rest = text.partition("://")
        if not separator:
            path = Path(text)
        elif scheme == "file":
            path = Path(rest)
        elif scheme == "pytorch":
            raise CheckpointError(_pickle_remedy(text))
        elif scheme == "wandb":
            raise ConfigError(
                f"policy uri {text!r}: scheme {scheme}:// is not supported; download the policy and use "
                f"{FILE_SCHEME}PATH or a bare path"
            )
        else:
            return stored_policies.fetched(text).resolve()
        candidates = [path] if path.is_absolute() else [path, self.data_dir / path]
        for candidate in candidates:
            if candidate.exists():
                return candidate.resolve()
        tried = " and ".join(str(candidate) for candidate in candidates)
        raise PolicyMissingError(f"no policy at {text!r}: {tried} does not exist")

    def _record_of(self, directory: Path) -> PolicyRecord:
        described = policy_files.read_description(directory)
        return PolicyRecord(
            described.run_name,
            _uri_of(directory),
            described.metadata,
            load=lambda: self._load_policy(directory),
        )

    def _load_policy(self, directory: Path) -> MettaAgent:
        key = (directory, policy_files.written_at(directory))
        weights = self._weights.get_or_load(key, lambda: policy_files.read_weights(directory))
        try:
            # Initial weights are drawn and overwritten; a training that looks at a policy must not notice.
            with torch.random.fork_rng(devices=[]):
                policy = MettaAgent.from_architecture(weights.architecture)
            policy.load_state_dict(weights.tensors)
        except (PolicyMismatchError, RuntimeError, KeyError, TypeError) as error:
            raise CheckpointError(f"{directory}: weights and architecture do not fit: {error}") from error
        return policy.to(self.device).eval()

    # ---- saving ----

    def make_model_name(self, epoch: int) -> str:
        return make_model_name(epoch)

    def create_empty_policy_record(self, name: str, checkpoint_dir: str | Path) -> PolicyRecord:
        """A record to fill: assign ``.policy`` and ``.metadata``, then ``save`` it."""
        if places.is_remote(checkpoint_dir):
            return PolicyRecord(name, places.inside(str(checkpoint_dir), name))
        return PolicyRecord(name, _uri_of(Path(checkpoint_dir) / name))

    def save(self, record: PolicyRecord, path: str | Path | None = None) -> PolicyRecord:
        """Writes the record's policy to ``path`` (default: where its URI points), complete or not at all.

        An earlier policy there is replaced. Afterwards the record stands for the files: its module is let go,
        and ``record.policy`` reads what was saved, whatever training does meanwhile.
        """
        place = str(path) if path is not None else record.uri
        is_remote = places.is_remote(place)
        directory = stored_policies.copy_of(place) if is_remote else places.local_path(place)
        with atomic_directory(directory, replace=True) as unfinished:
            policy_files.write_policy_files(unfinished, record)
            write_manifest(unfinished, policy_files.KIND, policy_files.FORMAT_VERSION)
        if is_remote:
            stored_directories.push(directory, place)
        return self.saved(record, directory)

    def saved(self, record: PolicyRecord, directory: str | Path) -> PolicyRecord:
        """Binds a record to a directory into which ``write_policy_files`` has put it."""
        place = Path(directory).resolve()
        record.saved_as(_uri_of(place), lambda: self._load_policy(place))
        return record

    def add_scores(
        self, uri: str | Path, score: float | None = None, eval_scores: Mapping[str, float] | None = None
    ) -> None:
        """Remembers what an evaluation found about a saved policy, so that ``top`` and filters see it."""
        scores: dict[str, Any] = {}
        if score is not None:
            scores["score"] = float(score)
        if eval_scores is not None:
            scores["eval_scores"] = {name: float(value) for name, value in eval_scores.items()}
        directory = self.load_from_uri(uri).file_path
        policy_files.add_scores(directory, scores)
        url = stored_policies.url_of(directory)
        if url is not None:
            content = (directory / policy_files.SCORES).read_bytes()
            places.write_bytes(places.inside(url, policy_files.SCORES), content)

    # ---- keeping ----

    def pin(self, uri: str | Path, holder: str | None = None, seconds: float = 86_400.0) -> str:
        """Protects a policy from ``cleanup_old_policies`` of any process, until ``unpin`` or for ``seconds``
        (a holder may die). Returns the holder's name, by default one for this process."""
        return policy_pins.pin(self.load_from_uri(uri).file_path, holder, seconds)

    def unpin(self, uri: str | Path, holder: str | None = None) -> None:
        """Takes the holder's protection back. Harmless where there is none."""
        is_copy = places.is_remote(str(uri))
        policy_pins.unpin(stored_policies.copy_of(str(uri)) if is_copy else self._resolve(uri), holder)

    def cleanup_old_policies(
        self,
        checkpoint_dir: str | Path,
        keep_last_n: int = 5,
        keep_best: int = 1,
        metric: str = "score",
        protect: Sequence[str | Path] = (),
    ) -> list[Path]:
        """Deletes old ``model_*`` directories; returns what was deleted.

        Kept are the ``keep_last_n`` latest, the ``keep_best`` with the highest ``metric``, the latest
        complete trainer checkpoint (the next resume needs it), whatever is pinned, and the policies named
        in ``protect``. Directories with other names and damaged ones are never touched.
        """
        root = Path(checkpoint_dir)
        records = sorted(self._sound_records(root), key=age) if root.is_dir() else []
        protected = [Path(str(uri).removeprefix(FILE_SCHEME)).resolve() for uri in protect]
        return policy_retention.delete_old(records, keep_last_n, keep_best, metric, protected)


def policy_directories(root: Path) -> list[Path]:
    """Policy directories in ``root`` or in its ``checkpoints/``; unfinished ones (dotted) are left out."""
    home = root / "checkpoints" if (root / "checkpoints").is_dir() else root
    return sorted(
        path
        for path in home.iterdir()
        if path.is_dir() and not path.name.startswith(".") and policy_files.is_policy_directory(path)
    )


def _refuse_non_directory(path: Path) -> None:
    if not path.is_dir():
        raise CheckpointError(_pickle_remedy(str(path)))


def _pickle_remedy(name: str) -> str:
    return (
        f"{name} is not a policy directory but a file of another format (Metta's .pt files are pickles, "
        "which run code when opened, so they are never read here); load it where it was made, build the "
        "policy with Agent(...), copy the weights with load_state_dict and save it with PolicyStore.save"
    )


def _uri_of(directory: Path) -> str:
    directory = directory.resolve()
    return stored_policies.url_of(directory) or f"{FILE_SCHEME}{directory}"
