"""Fragments from worker to learner through Ray, as the service ships them, against Ray's own speed for the same bytes.

Raw: an actor returns one numpy array, another one gets it and copies it into memory of its own. Ours: a worker's
fragment is packed from its buffer and returned; the learner reads it and copies its rows into its tensors. Both move
by reference through the object store; they take turns, and each round's ratio compares equal bytes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

from metta_ray.bench.machine import describe_machine
from metta_ray.bench.own_ray import in_own_ray

GOAL_RATIO = 0.8
SIZES_MB = (0.6, 6.0, 40.0)
HORIZON = 64
FEATURES = 64


class Sender:
    """A worker's buffer of about so many bytes, and an array of exactly as many."""

    def __init__(self, size_mb: float) -> None:
        import numpy as np

        self._experience = make_experience(segments_of(size_mb))
        packed = self._pack()
        self._raw = np.zeros(packed.size_bytes, np.uint8)
        self._result = self._raw.copy()

    def size_bytes(self) -> int:
        return int(self._raw.nbytes)

    def raw(self) -> Any:
        self._result[:] = self._raw  # an array has to be written before it can be sent
        return self._result

    def fragment(self) -> Any:
        from metta_ray.rl.fragment import Fragment

        return Fragment(self._pack())

    def _pack(self) -> Any:
        from metta_ray.common.util.packed_arrays import PackedArrays

        return PackedArrays.pack(self._experience.fragment_arrays())


class Receiver:
    """A learner's buffer, and memory for a raw array."""

    def __init__(self, size_mb: float, size_bytes: int) -> None:
        import numpy as np

        self._experience = make_experience(segments_of(size_mb))
        self._raw = np.zeros(size_bytes, np.uint8)

    def raw(self, references: Sequence[Any]) -> None:
        import numpy as np

        from metta_ray.service.orders import fetch

        np.copyto(self._raw, fetch(references[0], 60.0))

    def fragment(self, references: Sequence[Any]) -> None:
        from metta_ray.service.orders import fetch

        self._experience.add_fragment(0, fetch(references[0], 60.0).arrays())


def segments_of(size_mb: float) -> int:
    """Rows that make about so many bytes: 64 observed bytes and 34 others per agent step."""
    return max(1, round(size_mb * 1e6 / (HORIZON * (FEATURES + 34))))


def make_experience(segments: int) -> Any:
    import gymnasium
    import numpy as np

    from metta_ray.rl.experience import Experience

    space = gymnasium.spaces.Box(0, 255, (FEATURES,), np.uint8)
    steps = segments * HORIZON
    actions = gymnasium.spaces.Discrete(5)
    return Experience(segments, steps, HORIZON, steps, steps, space, actions, "cpu", hidden_size=1, num_lstm_layers=0)


def measure(megabytes: Sequence[float], seconds: float) -> list[dict[str, Any]]:
    """Runs inside a Ray; about so many seconds for each size."""
    return [_measure_size(size_mb, seconds) for size_mb in megabytes]


def _measure_size(size_mb: float, seconds: float) -> dict[str, Any]:
    import ray

    sender_class: Any = ray.remote(num_cpus=0)(Sender)
    receiver_class: Any = ray.remote(num_cpus=0)(Receiver)
    sender = sender_class.remote(size_mb)
    size_bytes = ray.get(sender.size_bytes.remote(), timeout=120)
    receiver = receiver_class.remote(size_mb, size_bytes)

    def send(kind: str) -> float:
        began = time.perf_counter()
        reference = getattr(sender, kind).remote()
        ray.get(getattr(receiver, kind).remote([reference]), timeout=60)
        return time.perf_counter() - began

    for kind in ("raw", "fragment", "raw", "fragment"):
        send(kind)  # memory that was never touched is slow
    raw_s: list[float] = []
    fragment_s: list[float] = []
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline or len(raw_s) < 3:
        raw_s.append(send("raw"))
        fragment_s.append(send("fragment"))
    for actor in (sender, receiver):
        ray.kill(actor)
    raw, ours = statistics.median(raw_s), statistics.median(fragment_s)
    return {
        "size_mb": round(size_bytes / 1e6, 2),
        "raw_ms": round(1000 * raw, 2),
        "fragment_ms": round(1000 * ours, 2),
        "raw_gb_per_second": round(size_bytes / raw / 1e9, 2),
        "fragment_gb_per_second": round(size_bytes / ours / 1e9, 2),
        "ratio": round(statistics.median(a / b for a, b in zip(raw_s, fragment_s, strict=True)), 3),
        "rounds": len(raw_s),
        "goal_ratio": GOAL_RATIO,
    }


def run(seconds: float, megabytes: Sequence[float] = SIZES_MB) -> dict[str, Any]:
    """Takes about ``seconds``, and some more for starting Ray."""
    arguments = {"megabytes": list(megabytes), "seconds": seconds / len(megabytes)}
    rows = in_own_ray("metta_ray.bench.transport_bench:measure", arguments, num_cpus=2)
    return {"machine": describe_machine(), "transport": rows}


def report(result: dict[str, Any]) -> str:
    machine = result["machine"]
    lines = [
        f"{machine['processor']}, {machine['cores']} cores, load {machine['load_average_1m']}",
        f"{'worker to learner':<20}{'raw (ms)':>10}{'ours (ms)':>11}{'raw (GB/s)':>12}{'ours':>8}"
        f"{'ratio':>8}{'goal':>8}",
    ]
    lines += [
        f"{row['size_mb']:>8.2f} MB{'':<9}{row['raw_ms']:>10.2f}{row['fragment_ms']:>11.2f}"
        f"{row['raw_gb_per_second']:>12.2f}{row['fragment_gb_per_second']:>8.2f}{row['ratio']:>8.2f}"
        f"{row['goal_ratio']:>8.2f}"
        for row in result["transport"]
    ]
    return "\n".join(lines)
