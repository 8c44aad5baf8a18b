"""How fast the policy acts and learns on this machine's cores, beside the floor: plain torch, nothing else.

Observations are synthetic with the density of real ones, so neither the engine nor Ray is needed. In every cell (a
network, a workload, a size, a number of threads) ours and all formulations of the floor take turns; the floor is the
fastest of them. Microseconds of wall time per agent step, medians over rounds; ratio: of the floor's time to ours, so
1 is at the floor and more is below it.

With ``device`` a card is measured instead, see accelerator_bench.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from metta_ray.bench.alternate import Work, alternate, fastest, medians
from metta_ray.bench.library_policy import HORIZON, LibraryActor, LibraryLearner, build_agent, token_tables
from metta_ray.bench.machine import describe_machine
from metta_ray.bench.matrix_rates import bf16_pays, matrix_rates
from metta_ray.bench.policy_floor import SHAPES, FloorNetwork, Formulation, formulations
from metta_ray.bench.ppo_floor import FloorActor, FloorLearner
from metta_ray.bench.synthetic import DENSITIES, Density, observations
from metta_ray.common.errors import UsageError

NETWORKS = ("default", "light")
WORKLOADS = ("simple", "bucketed")
THREADS = (1, 2)
ROWS = (64, 256, 1024)
MINIBATCHES = (1024, 4096, 16384)
GOAL_OF_FLOOR = 0.9
# Microseconds of the floor on one core of the machine that the design was measured on, which has AMX: its best is bf16.
REFERENCE_US = {
    ("default", "inference"): {64: 59.8, 256: 39.8, 1024: 40.0},
    ("default", "training"): {1024: 169.0, 4096: 149.0, 16384: 165.0},
    ("light", "inference"): {64: 13.2, 256: 6.35, 1024: 3.32},
    ("light", "training"): {1024: 13.9, 4096: 10.9, 16384: 10.4},
}
CPU = torch.device("cpu")
# Of each side: two before the clock starts, and one in each of three rounds.
CALLS_AT_LEAST = 5


class Cell(NamedTuple):
    network: str
    workload: str
    what: str
    size: int
    threads: int


def run(
    seconds: float,
    networks: Sequence[str] = NETWORKS,
    workloads: Sequence[str] = ("simple",),
    threads: Sequence[int] = THREADS,
    rows: Sequence[int] | None = None,
    minibatches: Sequence[int] | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """About ``seconds`` in all. Sizes that would take much more than their share are left out and named. UsageError
    for a network or workload that is not there."""
    _check_names("networks", networks, NETWORKS)
    _check_names("workloads", workloads, WORKLOADS)
    if device != "cpu":
        from metta_ray.bench import accelerator_bench

        rows, minibatches = rows or accelerator_bench.ROWS, minibatches or accelerator_bench.MINIBATCHES
        return accelerator_bench.run(seconds, networks, workloads[0], rows, minibatches, device)
    rows, minibatches = ROWS if rows is None else rows, MINIBATCHES if minibatches is None else minibatches
    cores = describe_machine()["cores"]
    sizes = [("inference", size) for size in sorted(rows)] + [("training", size) for size in sorted(minibatches)]
    cells = [
        Cell(network, workload, what, size, count)
        for network in networks
        for workload in workloads
        for count in threads
        if count <= cores
        for what, size in sizes
    ]
    usual = torch.get_num_threads()
    try:
        return _measured(cells, seconds)
    finally:
        torch.set_num_threads(usual)


def _measured(cells: list[Cell], seconds: float) -> dict[str, Any]:
    torch.set_flush_denormal(True)
    rates = matrix_rates(CPU)
    began, rows, left_out = time.monotonic(), list[dict[str, Any]](), list[dict[str, Any]]()
    for index, cell in enumerate(cells):
        share = max(0.0, seconds - (time.monotonic() - began)) / (len(cells) - index)
        expected = _expected_seconds(cell, rows)
        # Large networks cost most of the time, small ones little: a cell may take several shares.
        if expected > 4 * share:
            left_out.append(cell._asdict() | {"seconds": round(expected)})
        else:
            rows.append(measure_cell(cell, share, bf16=bf16_pays(rates)))
    return {
        "machine": describe_machine(),
        "matrix_rates": rates,
        "policy": rows,
        "left_out": left_out,
        "goal_ratio": GOAL_OF_FLOOR,
    }


def measure_cell(cell: Cell, seconds: float, *, bf16: bool) -> dict[str, Any]:
    """One row of the table. bf16: try that precision too, on both sides."""
    torch.set_num_threads(cell.threads)
    torch.manual_seed(0)
    density = DENSITIES[cell.workload]
    sides = (inference_sides if cell.what == "inference" else training_sides)(
        cell.network, cell.size, density, bf16=bf16
    )
    middle = medians(alternate(sides, seconds, keep=("ours", "floor plain")))
    microseconds = {name: round(1e6 * taken / cell.size, 2) for name, taken in middle.items()}
    ours, floor = fastest(middle, "ours"), fastest(middle, "floor")
    return cell._asdict() | {
        "ours_us": microseconds[ours],
        "floor_us": microseconds[floor],
        "plain_us": microseconds["floor plain"],
        "ratio": round(middle[floor] / middle[ours], 3),
        "reference_floor_us": _reference(cell),
        "floor_way": floor.removeprefix("floor "),
        "microseconds_per_agent_step": microseconds,
    }


def inference_sides(network: str, rows: int, density: Density, *, bf16: bool) -> dict[str, Work]:
    obs = torch.from_numpy(observations(rows, density, np.random.default_rng(0)))

    def acting(actor: LibraryActor | FloorActor) -> Callable[[], object]:
        return lambda: actor.act(obs)

    ours = {
        name: acting(LibraryActor(build_agent(network, CPU, dtype), rows, CPU)) for name, dtype in _precisions(bf16)
    }
    floor = {
        f"floor {way.name}": acting(FloorActor(_floor_network(network, way), rows))
        for way in formulations(network, bf16=bf16)
    }
    return ours | floor


def training_sides(network: str, minibatch: int, density: Density, *, bf16: bool) -> dict[str, Work]:
    learners = {
        name: LibraryLearner(build_agent(network, CPU, dtype), minibatch, density, CPU)
        for name, dtype in _precisions(bf16)
    }
    batches = {padded: learners["ours"].for_floor(padded=padded) for padded in (False, True)}

    def learning(way: Formulation) -> Callable[[], object]:
        learner, batch = FloorLearner(_floor_network(network, way)), batches[way.tokens == "all"]
        return lambda: learner.step(batch)

    floor = {f"floor {way.name}": learning(way) for way in formulations(network, bf16=bf16)}
    return {name: learner.step for name, learner in learners.items()} | floor


def report(result: dict[str, Any]) -> str:
    if "accelerator" in result:
        from metta_ray.bench import accelerator_bench

        return accelerator_bench.report(result)
    machine, rates = result["machine"], result["matrix_rates"]
    lines = [
        f"{machine['processor']}, {machine['cores']} cores, load {machine['load_average_1m']}, matrices "
        + ", ".join(f"{name} {rate:,.0f} GFLOP/s" for name, rate in rates.items()),
        "microseconds per agent step; plain: fp32 over a dense box of all tokens; floor: the fastest formulation;",
        "reference: the floor of one core with instructions for bf16 (AMX)",
        f"{'network':<9}{'workload':<10}{'':<18}{'threads':>8}{'ours':>9}{'floor':>9}{'plain':>9}"
        f"{'ratio':>7}{'reference':>11}  floor is",
    ]
    lines += [
        f"{row['network']:<9}{row['workload']:<10}{_what(row):<18}{row['threads']:>8}{row['ours_us']:>9.2f}"
        f"{row['floor_us']:>9.2f}{row['plain_us']:>9.2f}{row['ratio']:>7.2f}"
        f"{row['reference_floor_us'] or '':>11}  {row['floor_way']}"
        for row in result["policy"]
    ]
    lines += [
        f"left out: {row['network']} {row['workload']} {_what(row)}, {row['threads']} thread(s): about "
        f"{row['seconds']} s; give more --seconds or fewer cells"
        for row in result["left_out"]
    ]
    return "\n".join(lines)


def _check_names(option: str, names: Sequence[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            raise UsageError(f"--{option} {name}: known are {', '.join(known)}")


def _floor_network(network: str, way: Formulation) -> FloorNetwork:
    return FloorNetwork(SHAPES[network], token_tables(), way)


def _precisions(bf16: bool) -> list[tuple[str, torch.dtype]]:
    return [("ours", torch.float32)] + ([("ours, bf16", torch.bfloat16)] if bf16 else [])


def _expected_seconds(cell: Cell, rows: list[dict[str, Any]]) -> float:
    """What a training cell will take at least, from the last smaller one of the same network and threads."""
    if cell.what == "inference":
        return 0.0
    alike = [
        row for row in rows if (row["network"], row["what"], row["threads"]) == (cell.network, "training", cell.threads)
    ]
    per_step = sum(alike[-1]["microseconds_per_agent_step"].values()) if alike else 0.0
    return CALLS_AT_LEAST * cell.size * per_step / 1e6


def _reference(cell: Cell) -> float | None:
    is_like = cell.threads == 1 and cell.workload == "simple"
    return REFERENCE_US[cell.network, cell.what].get(cell.size) if is_like else None


def _what(row: dict[str, Any]) -> str:
    unit = "rows" if row["what"] == "inference" else f"({row['size'] // HORIZON} × {HORIZON})"
    return f"{row['what']} {row['size']}" if row["what"] == "training" else f"{row['what']} {row['size']} {unit}"
