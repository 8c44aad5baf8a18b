"""``metta-ray bench NAME``, or ``python -m metta_ray.bench NAME``: the benchmarks, for any machine."""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Sequence
from pathlib import Path

BENCHMARKS = {
    "env": ("env_bench", "environment stepping against the bare engine, and worker processes", 60.0),
    "control": ("control_bench", "fragments per second that the coordinator handles, and how soon it answers", 10.0),
    "transport": ("transport_bench", "fragments from worker to learner, against Ray's own speed", 15.0),
    "scale": ("scale_bench", "agent steps per second with 1 to 16 workers whose environments sleep", 60.0),
    "recovery": ("recovery_bench", "how long a run takes to get over the death of each of its parts", 120.0),
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="metta-ray bench", description=__doc__)
    benchmarks = parser.add_subparsers(dest="benchmark", required=True)
    for name, (_, what, seconds) in BENCHMARKS.items():
        words = benchmarks.add_parser(name, help=what, description=what)
        words.add_argument(
            "--seconds", type=float, default=seconds, help=f"about how long it measures in all (default: {seconds:g})"
        )
        words.add_argument("--json", type=Path, metavar="FILE", help="also write the result there")
        if name == "control":
            words.add_argument("--real", action="store_true", help="also with 16 actors of a Ray of its own that sleep")
    options = vars(parser.parse_args(argv))
    name, file = options.pop("benchmark"), options.pop("json")

    # Loaded here, so that --help loads neither the engine nor Ray.
    benchmark = importlib.import_module(f"metta_ray.bench.{BENCHMARKS[name][0]}")
    result = benchmark.run(**options)
    print(benchmark.report(result))
    if file is not None:
        file.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
