"""Where the numbers of each epoch go beside ``metrics.jsonl``. The run goes on whatever becomes of a tracker."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from metta_ray.common.errors import ConfigError
from metta_ray.common.util.ranks import is_master

logger = logging.getLogger(__name__)


class Tracker(Protocol):
    """May raise whatever it likes: ``MetricsLog`` turns that into a warning."""

    def log(self, epoch: int, agent_step: int, line: Mapping[str, float]) -> None:
        """The numbers of one epoch under the names of ``metrics.jsonl``; agent steps are the x axis."""
        ...

    def close(self) -> None: ...


class TensorBoardTracker:
    """Event files in ``<run>/tensorboard``. ConfigError if the package is not installed."""

    def __init__(self, run_dir: str | Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise _not_installed("tensorboard") from None
        self._writer: Any = SummaryWriter(str(Path(run_dir) / "tensorboard"))

    def log(self, epoch: int, agent_step: int, line: Mapping[str, float]) -> None:
        for name, value in line.items():
            self._writer.add_scalar(name, value, agent_step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WandbTracker:
    """One run of Weights & Biases under the run's own name, continued when the run is.

    Project, entity and mode (WANDB_MODE=offline) are taken from the environment, as W&B documents them; an offline run
    lies in ``<run>/wandb``. config: shown beside it. ConfigError if the package is not installed.
    """

    def __init__(self, run_dir: str | Path, run: str, config: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError:
            raise _not_installed("wandb") from None
        self._run: Any = wandb.init(
            id=run,
            name=run,
            dir=str(run_dir),
            config=dict(config),
            resume="allow",
            settings=wandb.Settings(silent=True, console="off"),
        )
        self._run.define_metric("*", step_metric="agent_step")

    def log(self, epoch: int, agent_step: int, line: Mapping[str, float]) -> None:
        self._run.log({"agent_step": agent_step, **line}, step=epoch)

    def close(self) -> None:
        self._run.finish()


def open_trackers(
    run_dir: str | Path,
    run: str,
    config: Mapping[str, Any],
    *,
    tensorboard: bool = False,
    wandb: bool = False,
) -> list[Tracker]:
    """Those that were asked for, on rank 0; none elsewhere. One that cannot begin is a warning.

    ConfigError for one whose package is not installed.
    """
    wanted: list[Callable[[], Tracker]] = []
    if tensorboard and is_master():
        wanted.append(lambda: TensorBoardTracker(run_dir))
    if wandb and is_master():
        wanted.append(lambda: WandbTracker(run_dir, run, config))
    trackers: list[Tracker] = []
    for opened in wanted:
        try:
            trackers.append(opened())
        except ConfigError:
            raise
        except Exception as error:
            logger.warning("a tracker cannot begin, the run goes on without it: %s", error)
    return trackers


def _not_installed(name: str) -> ConfigError:
    return ConfigError(f"{name}=True, but the package {name} is not installed; pip install 'metta_ray[{name}]'")
