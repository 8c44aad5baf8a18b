"""``python -m metta_ray.bench env``: the benchmarks, for any machine."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m metta_ray.bench", description=__doc__)
    benchmarks = parser.add_subparsers(dest="benchmark", required=True)
    env = benchmarks.add_parser("env", help="environment stepping against the bare engine, and worker processes")
    env.add_argument("--seconds", type=float, default=60.0, help="about how long it takes in all (default: 60)")
    env.add_argument("--json", type=Path, metavar="FILE", help="also write the result there")
    options = parser.parse_args(argv)

    # Loaded here, so that --help does not load the engine.
    from metta_ray.bench import env_bench

    result = env_bench.run(options.seconds)
    print(env_bench.report(result))
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
