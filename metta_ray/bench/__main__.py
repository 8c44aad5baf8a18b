"""``metta-ray bench NAME``, or ``python -m metta_ray.bench NAME``: the benchmarks, for any machine."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from metta_ray.common.errors import MettaRayError

BENCHMARKS: dict[str, tuple[str, str, float | None]] = {
    "env": ("env_bench", "environment stepping against the bare engine, and worker processes", 60.0),
    "policy": ("policy_bench", "the policy acting and learning, against plain torch; or on a card", 150.0),
    "train": ("train_bench", "the library's whole loop, against the floor of its parts; or CartPole", 150.0),
    "service": ("service_bench", "the service in a real run, against the library and the floor", 120.0),
    "control": ("control_bench", "fragments per second that the coordinator handles, and how soon it answers", 10.0),
    "transport": ("transport_bench", "fragments from worker to learner, against Ray's own speed", 15.0),
    "scale": ("scale_bench", "agent steps per second with 1 to 16 workers whose environments sleep", 60.0),
    "plan": ("plan_bench", "predictions of metta-ray plan against runs with 1, 2 and 4 rollout workers", 60.0),
    "recovery": ("recovery_bench", "how long a run takes to get over the death of each of its parts", 120.0),
    "evaluation": ("evaluation_bench", "what an evaluation on another core costs training", 90.0),
    "curriculum": ("curriculum_bench", "learning progress, shared or of each worker, against uniform sampling", None),
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="metta-ray bench", description=__doc__)
    benchmarks = parser.add_subparsers(dest="benchmark", required=True)
    for name, (_, what, seconds) in BENCHMARKS.items():
        # What is not given is left to the benchmark.
        words = benchmarks.add_parser(name, help=what, description=what, argument_default=argparse.SUPPRESS)
        if seconds is not None:  # else its length is not one of time
            about = f"about how long it measures in all (default: {seconds:g})"
            words.add_argument("--seconds", type=float, default=seconds, help=about)
        words.add_argument("--json", type=Path, default=None, metavar="FILE", help="also write the result there")
        if name in OPTIONS:
            OPTIONS[name](words)
    options = vars(parser.parse_args(argv))
    name, file = options.pop("benchmark"), options.pop("json")

    # Loaded here, so that --help loads neither the engine nor Ray.
    benchmark = importlib.import_module(f"metta_ray.bench.{BENCHMARKS[name][0]}")
    try:
        result = benchmark.run(**options)
    except MettaRayError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(benchmark.report(result))
    if file is not None:
        file.write_text(json.dumps(result, indent=2) + "\n")
    return 0


def _control_options(words: argparse.ArgumentParser) -> None:
    words.add_argument("--real", action="store_true", help="also with 16 actors of a Ray of its own that sleep")


def _curriculum_options(words: argparse.ArgumentParser) -> None:
    words.add_argument("--agent-steps", type=int, help="of each run (default: 1000000, a minute or two of one core)")
    words.add_argument("--seeds", type=int, help="three runs for each (default: 3)")
    words.add_argument("--hindsight", action="store_true", help="also only the tasks that gained most, and least")


def _evaluation_options(words: argparse.ArgumentParser) -> None:
    words.add_argument("--network", metavar="NAME", help="light (default) or default")


def _policy_options(words: argparse.ArgumentParser) -> None:
    _networks(words)
    _workloads(words)
    _numbers(words, "--threads", "torch threads (default: 1,2)")
    _numbers(words, "--rows", "agents per inference (default: 64,256,1024; a card: 1024,4096)")
    _numbers(words, "--minibatches", "agent steps per gradient step (default: 1024,4096,16384; a card: 16384,65536)")
    words.add_argument("--device", help="cuda: measure a card instead; needs neither mettagrid nor Ray")


def _train_options(words: argparse.ArgumentParser) -> None:
    _networks(words)
    words.add_argument(
        "--workload", metavar="NAME", help="simple (default), bucketed, or cartpole (an MLP on gym:CartPole-v1)"
    )
    _arrangements(words, "1x1,1x2,2x1")
    _numbers(words, "--minibatches", "agent steps of all processes (default: 1024, and 4096 for the light network)")
    words.add_argument("--sb3-python", metavar="PATH", help="cartpole: also Stable-Baselines3, in this interpreter")


def _service_options(words: argparse.ArgumentParser) -> None:
    _networks(words)
    words.add_argument("--workload", metavar="NAME", help="simple (default) or bucketed")
    words.add_argument(
        "--layouts",
        type=_list,
        metavar="WxR,…",
        help="workers x learner replicas; auto (default) is what the service chooses by itself",
    )
    _arrangements(words, "2x1,1x2")


def _arrangements(words: argparse.ArgumentParser, usual: str) -> None:
    words.add_argument(
        "--arrangements",
        type=_list,
        metavar="PxT,…",
        help=f"of the library, processes x threads; 2x1 is torchrun with two (default: {usual})",
    )


def _networks(words: argparse.ArgumentParser) -> None:
    words.add_argument("--networks", type=_list, metavar="NAMES", help="default: default,light")


def _workloads(words: argparse.ArgumentParser) -> None:
    words.add_argument(
        "--workloads", type=_list, metavar="NAMES", help="of simple (about 20 filled tokens) and bucketed (about 35)"
    )


def _numbers(words: argparse.ArgumentParser, option: str, what: str) -> None:
    words.add_argument(option, type=lambda text: [int(part) for part in _list(text)], metavar="N,N,…", help=what)


def _list(text: str) -> list[str]:
    return [part for part in text.split(",") if part]


OPTIONS: dict[str, Callable[[argparse.ArgumentParser], None]] = {
    "control": _control_options,
    "evaluation": _evaluation_options,
    "curriculum": _curriculum_options,
    "policy": _policy_options,
    "train": _train_options,
    "service": _service_options,
}
"""What a benchmark can be told beyond its length."""


if __name__ == "__main__":
    raise SystemExit(main())
