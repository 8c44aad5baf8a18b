"""Runs that were submitted as jobs: what is known of one before its coordinator has spoken, and how its job ends."""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING

from metta_ray.commands.parts import is_final, where_of

if TYPE_CHECKING:
    from metta_ray.jobs.client import Jobs
    from metta_ray.service.run_config import RunConfig
    from metta_ray.state.records import RunRecord


def record_of_job(config: RunConfig, job: str, jobs: Jobs) -> RunRecord:
    from metta_ray.service.identity import namespace_of
    from metta_ray.state.records import RunRecord

    assert config.run is not None
    now = time.time()
    return RunRecord(
        name=config.run,
        run_dir=f"{config.data_dir}/{config.run}",
        state="starting",
        generation=0,
        started=now,
        updated=now,
        ray_address=None if "://" in jobs.address else jobs.address,
        dashboard_url=jobs.dashboard_url,
        namespace=namespace_of(config.run),
        job_id=job,
        total_timesteps=config.trainer.total_timesteps,
        message="submitted",
        config=config.record(),
    )


def has_no_coordinator_yet(record: RunRecord) -> bool:
    """Submitted, and not yet heard of: only the job can be asked."""
    return bool(record.job_id and record.dashboard_url and not record.ray_address) and not is_final(record.state)


def refreshed_record(options: argparse.Namespace, record: RunRecord) -> RunRecord:
    from metta_ray.jobs.client import Jobs, refreshed
    from metta_ray.service.connection import put_record

    newer = refreshed(record, Jobs.at(str(record.dashboard_url)), now=time.time())
    put_record(where_of(options), newer)
    return newer


def stop_job(options: argparse.Namespace) -> None:
    """A job whose coordinator was killed would start it again."""
    from metta_ray.common.errors import RunUnreachableError
    from metta_ray.jobs.client import Jobs
    from metta_ray.service.connection import recorded

    record = recorded(where_of(options), options.run)
    if record is None or not record.job_id or not record.dashboard_url:
        return
    try:
        Jobs.at(record.dashboard_url).stop(record.job_id)
    except RunUnreachableError as error:
        print(f"warning: job {record.job_id} could not be stopped: {error}", file=sys.stderr)
