"""From what a person calls a run to the place of its directory."""

from __future__ import annotations

from pathlib import Path

from metta_ray.common.errors import RunUnknownError
from metta_ray.common.util import places
from metta_ray.common.util.mirror import working_directory
from metta_ray.common.util.typed_config import did_you_mean
from metta_ray.report.run_data import CONFIG, METRICS
from metta_ray.service.connection import Where, recorded, records


def find_run(run: str, data_dir: str | Path, where: Where) -> tuple[str, str]:
    """(name, place) of a run: a URL, a directory, a name under ``data_dir`` or one that the store knows.

    RunUnknownError names the nearest that there are.
    """
    if places.is_remote(run) or "/" in run or Path(run).is_dir():
        return run.rstrip("/").rpartition("/")[2], run
    is_remote = places.is_remote(data_dir)
    directory = working_directory(str(data_dir)) if is_remote else places.local_path(data_dir)
    under = directory / run
    if under.is_dir():
        return run, str(under)
    record = recorded(where, run)
    if record is not None:
        return run, record.run_dir
    if is_remote:
        return run, places.inside(str(data_dir), run)
    known = sorted({*_runs_under(directory), *(one.name for one in records(where))})
    hint = did_you_mean(run, known) if known else "; there is none yet"
    raise RunUnknownError(
        f"run {run!r} is neither a directory of {data_dir} nor in the store of runs{hint}; "
        "a directory or a URL can be given too"
    )


def _runs_under(directory: Path) -> list[str]:
    if not directory.is_dir():
        return []
    return [entry.name for entry in directory.iterdir() if (entry / METRICS).exists() or (entry / CONFIG).exists()]
