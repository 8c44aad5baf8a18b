"""Submits a training as a Ray job, and asks about jobs.

    plan = plan_job("deploy/runs/navigation.yaml", {"seed": "3"}, config)
    job = submit(plan, "http://head:8265", os.environ)

The working directory goes along, so an environment or network in the user's own files is importable on every node.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import logging
import os
import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from metta_ray.common.errors import ConfigError, RunUnreachableError
from metta_ray.control.run_state import RunState
from metta_ray.service.connection import TOKEN_HINT, auth_mode, refused
from metta_ray.service.run_config import RunConfig
from metta_ray.service.run_handle import first_line
from metta_ray.state.records import RunRecord

STOP_WAIT_S = 120
"""Ray kills a stopped job after 3 s unless told otherwise; draining and a checkpoint take longer."""
EXCLUDES = (
    ".git",
    ".venv",
    "venv",
    "train_dir",
    "**/__pycache__",
    ".mypy_cache",
    ".ruff_cache",
    ".pytest_cache",
    ".hypothesis",
    "*.egg-info",
)
LOG_INTERVAL_S = 1.0
RUN_STATES = {
    "PENDING": RunState.STARTING,
    "RUNNING": RunState.STARTING,
    "STOPPED": RunState.STOPPED,
    "SUCCEEDED": RunState.DONE,
    "FAILED": RunState.FAILED,
}
"""What a job's status says of a run that has not yet spoken for itself."""
_TALKATIVE = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
_ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")


@dataclass(frozen=True)
class JobPlan:
    """All that is sent to Ray."""

    run: str
    submission_id: str
    entrypoint: str
    runtime_env: dict[str, Any]
    metadata: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        return {
            "entrypoint": self.entrypoint,
            "submission_id": self.submission_id,
            "metadata": self.metadata,
            "runtime_env": self.runtime_env,
        }


def plan_job(file: str | None, overrides: Mapping[str, str], config: RunConfig, *, now: float | None = None) -> JobPlan:
    """The job that trains ``config``, which is what ``file`` and ``overrides`` came to here.

    file: a YAML file inside of the working directory, or ConfigError, for it would not be there in the job.
    config: with a name for the run.
    """
    if config.run is None:
        raise ConfigError("a job needs the name of its run; set --run NAME")
    stamp = time.strftime("%m%d-%H%M%S", time.localtime(now))
    words = dict(overrides) | {"run": config.run}
    return JobPlan(
        run=config.run,
        submission_id=f"metta-{config.run}-{stamp}",
        entrypoint=_entrypoint(file, words),
        runtime_env={
            "working_dir": str(Path.cwd()),
            "excludes": list(EXCLUDES),
            "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)},
        },
        metadata={
            "job_name": config.run,
            "run": config.run,
            "owner": getpass.getuser(),
            "config_hash": config_hash(config),
        },
    )


def config_hash(config: RunConfig) -> str:
    """Equal for runs with equal settings."""
    text = json.dumps(config.record(), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def job_address(given: str | None, environ: Mapping[str, str]) -> str:
    """The cluster a job is meant for: given, or named by the environment; never one that merely runs here."""
    variable = environ.get("RAY_API_SERVER_ADDRESS")
    if given and variable and given.rstrip("/") != variable.rstrip("/"):
        raise ConfigError(
            f"--address {given} and RAY_API_SERVER_ADDRESS={variable} name different clusters, and Ray obeys the "
            "variable; unset it, or give the same address"
        )
    address = given or variable or environ.get("RAY_ADDRESS")
    if not address:
        raise ConfigError("a job needs a cluster; give --address http://HOST:8265 (or host:port), or set RAY_ADDRESS")
    return address


class Jobs:
    """Ray's job API of one cluster. RunUnreachableError names the likely cause when it does not answer."""

    def __init__(self, client: Any, address: str):
        self._client = client
        self.address = address

    @classmethod
    def at(cls, address: str) -> Jobs:
        refusal = refused(address)
        if refusal:
            raise RunUnreachableError(
                f"no job API answers at {address} ({refusal}): wrong address, or no cluster there"
            )
        os.environ.setdefault("RAY_AUTH_MODE", auth_mode(os.environ))  # read when Ray is loaded
        from ray.job_submission import JobSubmissionClient

        for name in _TALKATIVE:
            logging.getLogger(name).setLevel(logging.WARNING)
        with _without_address_variables(), _readable_errors(address):
            return cls(JobSubmissionClient(address), address)

    @property
    def dashboard_url(self) -> str:
        return str(self._client.get_address())

    def submit(self, plan: JobPlan) -> str:
        """Uploads the working directory and starts the job; returns its id."""
        with _readable_errors(self.address):
            return str(
                self._client.submit_job(
                    entrypoint=plan.entrypoint,
                    submission_id=plan.submission_id,
                    runtime_env=plan.runtime_env,
                    metadata=plan.metadata,
                )
            )

    def status(self, job: str) -> dict[str, Any]:
        """``status`` (Ray's word), ``state`` (of the run), ``message``, ``exit_code``."""
        with _readable_errors(self.address):
            info = self._client.get_job_info(job)
        status = str(info.status.value)
        return {
            "status": status,
            "state": RUN_STATES[status],
            "message": info.message or "",
            "exit_code": info.driver_exit_code,
        }

    def logs(self, job: str) -> str:
        with _readable_errors(self.address):
            return str(self._client.get_job_logs(job))

    def follow_logs(self, job: str, *, sleep: Callable[[float], None] = time.sleep) -> Iterator[str]:
        """Pieces of the log until the job has ended."""
        shown = 0
        while True:
            has_ended = self.status(job)["state"].is_final
            text = self.logs(job)
            if text[shown:]:
                yield text[shown:]
            shown = len(text)
            if has_ended:
                return
            sleep(LOG_INTERVAL_S)

    def stop(self, job: str) -> bool:
        """Asks the job to end cleanly. False if it had ended."""
        with _readable_errors(self.address):
            return bool(self._client.stop_job(job))


def refreshed(record: RunRecord, jobs: Jobs, *, now: float) -> RunRecord:
    """The record of a run that was submitted and has no coordinator yet, or never had one, as its job stands."""
    job = jobs.status(str(record.job_id))
    return replace(
        record,
        state=job["state"].value,
        updated=now,
        message=" ".join(f"job {job['status']}: {job['message']}".split()),
    )


def is_this_machine(address: str) -> bool:
    """Whether an address is on loopback, so that paths here are paths there."""
    host = address.rpartition("://")[2].split("/")[0].rpartition(":")[0].strip("[]")
    return host in ("localhost", "127.0.0.1", "::1")


def travelling_data_dir(data_dir: str, *, is_given: bool, address: str | None) -> str | None:
    """The data directory that a job is told: one that was named, or on this machine the usual one, so that a run lies
    where ``train`` would have put it. None: the cluster's own choice, for a path of this machine means nothing there.
    """
    return data_dir if is_given or (address is not None and is_this_machine(address)) else None


def _entrypoint(file: str | None, words: Mapping[str, str]) -> str:
    command = ["python", "-m", "metta_ray", "train"]
    if file is not None:
        command.append(_inside_working_directory(file))
    # "=" keeps values that begin with "--" with their names.
    command += [f"--{name.replace('_', '-')}={value}" for name, value in words.items()]
    return shlex.join(command)


def _inside_working_directory(file: str) -> str:
    path = Path(file).resolve()
    try:
        inside = path.relative_to(Path.cwd().resolve())
    except ValueError:
        raise ConfigError(
            f"configuration {file} lies outside of the working directory {Path.cwd()}, which is what a job gets; "
            "copy it there, or submit from its project"
        ) from None
    return inside.as_posix()


@contextmanager
def _without_address_variables() -> Iterator[None]:
    """Both variables go before the address that a client is given."""
    kept = {name: os.environ.pop(name) for name in _ADDRESS_VARIABLES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


@contextmanager
def _readable_errors(address: str) -> Iterator[None]:
    try:
        yield
    except (ConfigError, RunUnreachableError):
        raise
    except Exception as error:  # of requests, aiohttp and Ray, with pages of text
        text = str(error)
        looks_like_a_token = any(sign in text for sign in ("401", "403", "Failed to connect", "uthentic", "orbidden"))
        hint = f"; {TOKEN_HINT}" if looks_like_a_token else ""
        raise RunUnreachableError(f"Ray's job API at {address}: {first_line(error)}{hint}") from None
