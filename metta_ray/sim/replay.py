"""Replays: one episode as a compressed JSON file that the engine's viewer reads (format version 4).

Every object of the world is a dict of series; a series is ``[[step, value], …]`` with changes only, or just
the value where it never changed. Step t is the state after the t-th action, counted from 0.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from metta_ray.common.errors import CheckpointError
from metta_ray.common.util import places

if TYPE_CHECKING:
    from metta_ray.mettagrid.replay_source import ReplaySource

SUFFIX = ".json.z"
VALUE_ESTIMATE = "value_estimate"
"""A key of agents that the engine's viewer does not know and passes over."""
Series = list[list[Any]]


class ReplayRecorder:
    """Records one episode and writes it; memory is that of one episode's changes.

    Call ``record`` after every step, then ``write`` once.
    """

    def __init__(self, source: ReplaySource) -> None:
        self.steps = 0
        self._source = source
        self._header = source.header()
        self._total_rewards = np.zeros(source.num_agents)
        self._objects: dict[int, dict[str, Series]] = {}
        self._dynamic: set[int] = set()  # ids of objects that may change or vanish

    def record(self, rewards: NDArray[np.float32], values: NDArray[np.float32] | None = None) -> None:
        """rewards: ``(agents,)`` of the step just taken. values: ``(agents,)``, what the policies expected before it,
        NaN for agents whose policy expects nothing."""
        self._total_rewards += rewards
        is_first = self.steps == 0
        seen: set[int] = set()
        # Walls are asked for once: there are hundreds and they never change.
        for state in self._source.objects(rewards, self._total_rewards, with_static=is_first):
            if values is not None and "agent_id" in state and np.isfinite(values[state["agent_id"]]):
                state[VALUE_ESTIMATE] = float(f"{values[state['agent_id']]:.4g}")
            self._note(state)
            if state["type_name"] not in self._source.static_types:
                seen.add(state["id"])
        for vanished in self._dynamic - seen:
            _append_change(self._objects[vanished]["alive"], self.steps, False)
        self._dynamic |= seen
        self.steps += 1

    def replay(self) -> dict[str, Any]:
        """The whole replay as JSON values."""
        return {
            **self._header,
            "max_steps": self.steps,
            "objects": [{key: _collapsed(series) for key, series in thing.items()} for thing in self._objects.values()],
            "infos": self._source.infos(self._total_rewards),
        }

    def write(self, place: Path | str) -> Path | str:
        """Writes the file, complete or not at all, and returns its path or URL."""
        places.write_bytes(place, zlib.compress(json.dumps(self.replay()).encode()))
        return place

    def _note(self, state: dict[str, Any]) -> None:
        known = self._objects.get(state["id"])
        if known is None:
            # What appears later was not there before, and its series start at step 0 all the same.
            known = self._objects[state["id"]] = {}
            if self.steps:
                known |= {key: [[0, False if key == "alive" else type(value)()]] for key, value in state.items()}
        for key, value in state.items():
            _append_change(known.setdefault(key, []), self.steps, value)


def read_replay(path: Path | str) -> dict[str, Any]:
    """The JSON of a replay file. CheckpointError for a file that is none."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} is no readable replay: {error}") from error
    return parse_replay(data, str(path))


def parse_replay(data: bytes, name: str) -> dict[str, Any]:
    """The JSON of a replay: packed by zlib or gzip, or plain. CheckpointError for data that is none."""
    try:
        # 32 + 15: a header of either kind, recognised by itself.
        text = data if data.lstrip()[:1] == b"{" else zlib.decompress(data, 32 + zlib.MAX_WBITS)
        replay = json.loads(text)
    except (zlib.error, ValueError) as error:
        raise CheckpointError(f"{name} is no readable replay: {error}") from error
    if not isinstance(replay, dict):
        raise CheckpointError(f"{name} is no readable replay: a {type(replay).__name__} instead of an object")
    return replay


def _append_change(series: Series, step: int, value: Any) -> None:
    if not series or series[-1][1] != value:
        series.append([step, value])


def _collapsed(series: Series) -> Any:
    return series[0][1] if len(series) == 1 else series
