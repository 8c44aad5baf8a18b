"""How fast the policy acts and learns on a card, as a share of what the card does at best.

Ours as it is (``eager``), with torch.compile, and compiled with CUDA graphs; the floor, plain torch with its
observations cut beforehand, also as one captured CUDA graph. What does not work on this machine is named with its
reason, and the rest is measured. On the processor the same cases run, but for the graphs.

Shares: of the matrix rate (multiply-adds of the dense formulation, three times for learning) and of the copy rate
(tokens read, every layer's output written and read once, three times for learning), both measured in the same run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from metta_ray.bench.alternate import Work, alternate, medians, wall_clock
from metta_ray.bench.library_policy import LibraryActor, LibraryLearner, build_agent, token_tables
from metta_ray.bench.machine import describe_machine
from metta_ray.bench.matrix_rates import PRECISIONS, copy_rate, matrix_rates, synchronize
from metta_ray.bench.policy_floor import (
    FORMULATIONS,
    SHAPES,
    FloorNetwork,
    Formulation,
    activations,
    multiply_adds,
)
from metta_ray.bench.ppo_floor import FloorActor, FloorLearner
from metta_ray.bench.synthetic import DENSITIES, observations
from metta_ray.common.errors import UsageError

ROWS = (1024, 4096)
MINIBATCHES = (16384, 65536)
COMPILE_MODES = {"compiled": "default", "compiled, graphs": "reduce-overhead"}
CAPTURE_WARM_UP = 3
GOAL_LEARNING_LIGHT = 1_000_000

Side = tuple[str, Callable[[], Work]]
"""Name of a case, and what builds it."""


def run(
    seconds: float,
    networks: Sequence[str] = ("default", "light"),
    workload: str = "simple",
    rows: Sequence[int] = ROWS,
    minibatches: Sequence[int] = MINIBATCHES,
    device: str = "cuda",
    *,
    compiles: bool = True,
) -> dict[str, Any]:
    """About ``seconds``, and the time that compilation takes. UsageError where there is no such card."""
    card = torch.device(device)
    if card.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device={device!r}: torch {torch.__version__} finds no card here; leave --device out")
    peaks = {"matrix_gflops": matrix_rates(card), "copy_gb_per_second": copy_rate(card)}
    cells = [
        (network, what, size, precision)
        for network in networks
        for what, sizes in (("inference", rows), ("training", minibatches))
        for size in sizes
        for precision in PRECISIONS
    ]
    measured, failed = list[dict[str, Any]](), list[dict[str, Any]]()
    for network, what, size, precision in cells:
        name = {"network": network, "workload": workload, "what": what, "size": size, "precision": precision}
        sides, reasons = _built(_sides(network, workload, what, size, precision, card, compiles=compiles))
        failed += [name | {"case": case, "reason": reason} for case, reason in reasons.items()]
        middle = medians(alternate(sides, seconds / len(cells), keep=sides, clock=_clock(card)))
        best = _best_rates(network, workload, what, precision, peaks)
        for case, taken in middle.items():
            rate = size / taken
            shares = {f"of_{limit}": round(rate / most, 4) for limit, most in best.items()}
            measured.append(name | {"case": case, "agent_steps_per_second": round(rate)} | shares)
    return {
        "machine": describe_machine() | _card(card),
        "peaks": peaks,
        "accelerator": measured,
        "failed": failed,
        "goal_training_light": GOAL_LEARNING_LIGHT,
    }


def report(result: dict[str, Any]) -> str:
    peaks = result["peaks"]
    matrices = ", ".join(f"{name} {rate / 1000:,.1f} TFLOP/s" for name, rate in peaks["matrix_gflops"].items())
    lines = [
        f"{result['machine'].get('card', result['machine']['processor'])}: matrices {matrices}, "
        f"copies {peaks['copy_gb_per_second']:,.0f} GB/s",
        f"{'network':<9}{'':<17}{'precision':<11}{'case':<38}{'agent-steps/s':>15}{'of matrices':>13}{'of copies':>11}",
    ]
    lines += [
        f"{row['network']:<9}{row['what'] + ' ' + str(row['size']):<17}{row['precision']:<11}{row['case']:<38}"
        f"{row['agent_steps_per_second']:>15,}{row['of_matrices']:>13.3f}{row['of_copies']:>11.3f}"
        for row in result["accelerator"]
    ]
    lines += [
        f"did not work: {row['network']} {row['what']} {row['size']} {row['precision']} {row['case']}: {row['reason']}"
        for row in result["failed"]
    ]
    return "\n".join(lines)


def _sides(
    network: str, workload: str, what: str, size: int, precision: str, device: torch.device, *, compiles: bool
) -> list[Side]:
    cases = _inference_cases if what == "inference" else _training_cases
    modes = {"eager": None, **(COMPILE_MODES if compiles else {})}
    if device.type != "cuda":
        modes.pop("compiled, graphs", None)
    return cases(network, workload, size, PRECISIONS[precision], device, modes)


def _inference_cases(
    network: str, workload: str, rows: int, dtype: torch.dtype, device: torch.device, modes: dict[str, str | None]
) -> list[Side]:
    padded = torch.from_numpy(observations(rows, DENSITIES[workload], np.random.default_rng(0))).to(device)
    cut = padded[:, : int((padded[:, :, 0] != 0xFF).sum(dim=1).max())].contiguous()

    def ours(mode: str | None) -> Callable[[], Work]:
        def build() -> Work:
            agent = build_agent(network, device, dtype)
            if mode:
                agent.compile(mode=mode)
            actor = LibraryActor(agent, rows, device)
            return lambda: actor.act(padded)

        return build

    def floor(way: Formulation) -> Callable[[], Work]:
        def build() -> Work:
            actor = FloorActor(_floor_network(network, way, device), rows)
            obs = padded if way.tokens == "all" else cut
            return lambda: actor.act(obs)

        return build

    return _cases(network, dtype, device, modes, ours, floor)


def _training_cases(
    network: str, workload: str, minibatch: int, dtype: torch.dtype, device: torch.device, modes: dict[str, str | None]
) -> list[Side]:
    def library(mode: str | None) -> LibraryLearner:
        agent = build_agent(network, device, dtype)
        if mode:
            agent.compile(mode=mode)
        return LibraryLearner(agent, minibatch, DENSITIES[workload], device)

    def ours(mode: str | None) -> Callable[[], Work]:
        return lambda: library(mode).step

    def floor(way: Formulation) -> Callable[[], Work]:
        def build() -> Work:
            batch = library(None).for_floor(padded=way.tokens == "all")
            learner = FloorLearner(_floor_network(network, way, device), capturable=device.type == "cuda")
            return lambda: learner.step(batch)

        return build

    return _cases(network, dtype, device, modes, ours, floor)


def _cases(
    network: str,
    dtype: torch.dtype,
    device: torch.device,
    modes: dict[str, str | None],
    ours: Callable[[str | None], Callable[[], Work]],
    floor: Callable[[Formulation], Callable[[], Work]],
) -> list[Side]:
    cases = [(f"ours, {name}", ours(mode)) for name, mode in modes.items()]
    for way in FORMULATIONS[network]:
        way = replace(way, dtype=dtype, tokens="all" if way.tokens == "all" else "given")
        cases.append((f"floor {way.name}", floor(way)))
        if device.type == "cuda":
            cases.append((f"floor {way.name}, graph", _captured(floor(way), device)))
    return cases


def _captured(build: Callable[[], Work], device: torch.device) -> Callable[[], Work]:
    """The same work as one CUDA graph that is replayed: its inputs lie still, so it does the same again and again."""

    def build_graph() -> Work:
        work = build()
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(CAPTURE_WARM_UP):
                work()
        torch.cuda.current_stream(device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            work()
        return graph.replay

    return build_graph


def _built(sides: list[Side]) -> tuple[dict[str, Work], dict[str, str]]:
    """(what works, why the others do not)."""
    works: dict[str, Work] = {}
    reasons: dict[str, str] = {}
    for name, build in sides:
        try:
            work = build()
            work()
            works[name] = work
        except Exception as error:  # a case that this torch or card cannot do must not cost the others
            reasons[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
    return works, reasons


def _clock(device: torch.device) -> Callable[[Work, int], float]:
    if device.type != "cuda":
        return wall_clock

    def card_clock(work: Work, calls: int) -> float:
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        synchronize(device)
        before = time.perf_counter()
        began.record()
        for _ in range(calls):
            work()
        ended.record()
        synchronize(device)
        # The processor's time counts where it is the longer one: a card that waits for orders is not fast.
        return max(float(began.elapsed_time(ended)) / 1000, time.perf_counter() - before)

    return card_clock


def _best_rates(network: str, workload: str, what: str, precision: str, peaks: dict[str, Any]) -> dict[str, float]:
    """Agent steps per second if nothing but matrices, and if nothing but copies, took time."""
    shape = FloorNetwork(SHAPES[network], token_tables(), FORMULATIONS[network][0])
    passes = 1 if what == "inference" else 3
    size_bytes = PRECISIONS[precision].itemsize
    copied = 3 * DENSITIES[workload].mean + 2 * activations(shape) * size_bytes
    return {
        "matrices": 1e9 * peaks["matrix_gflops"][precision] / (2 * passes * multiply_adds(shape)),
        "copies": 1e9 * peaks["copy_gb_per_second"] / (passes * copied),
    }


def _floor_network(network: str, way: Formulation, device: torch.device) -> FloorNetwork:
    return FloorNetwork(SHAPES[network], token_tables(), way).to(device)


def _card(device: torch.device) -> dict[str, str]:
    if device.type != "cuda":
        return {}
    return {"card": torch.cuda.get_device_name(device), "cuda": str(torch.version.cuda)}
