"""Which of several ways to compute a policy is the fastest here: found by a short measurement, once per machine.

All ways give the same outputs: the first layer over filled tokens or over a dense box (to rounding), float32 or
bfloat16 (to its own precision). A run must use one of them throughout, on every process and after every resume, so
the choice is a value that is recorded with the run.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from metta_ray.agent import spec_json
from metta_ray.agent.agent_config import AgentConfig
from metta_ray.agent.metta_agent import MettaAgent
from metta_ray.agent.networks.cnn import build_cnn, kernel_positions
from metta_ray.agent.networks.mlp import build_mlp
from metta_ray.agent.networks.registry import network_class
from metta_ray.agent.policy_state import PolicyState
from metta_ray.common.util.machine_cache import MachineCache
from metta_ray.envs.env_spec import EnvSpec, TokenVocabulary

Autocast = Literal["auto", "none", "bf16"]

ACTING_ROWS, MOST_SEGMENTS, STEPS = 256, 64, 32
ROUNDS = 5
SECONDS = 2.0
"""After so many no further round begins."""
FILLED_TOKENS = 30  # of bucketed navigation; a network meets about so many
# Beyond this many positions of the first kernel its table is so large that a look would take seconds.
MAX_GATHER_POSITIONS = 36
# Other machines may be slow in bfloat16 (those that emulate it two hundred times), so it must be worth it.
BF16_GAIN = 1.1
GIVE_UP_FACTOR = 3.0
FORMAT = 4
"""Of the question: to be raised whenever one of the ways has become faster."""
_PRECISIONS = (torch.float32, torch.bfloat16)


@dataclass(frozen=True)
class Formulation:
    """autocast: what the networks compute in. gather_conv: see ``AgentConfig``; None where there is no choice."""

    autocast: Literal["none", "bf16"]
    gather_conv: bool | None

    def applied_to(self, config: AgentConfig) -> AgentConfig:
        """The configuration with the choice written into it."""
        return config.model_copy(update={"gather_conv": self.gather_conv})


def choose_formulation(
    spec: EnvSpec,
    config: AgentConfig,
    autocast: Autocast = "auto",
    *,
    device: torch.device | str = "cpu",
    segments: int = 16,
    cache: MachineCache | None = None,
) -> Formulation:
    """What is asked for, and the fastest of what is left open (``autocast="auto"``, ``gather_conv=None``).

    Measures for a second or two, with torch's threads as they are now, unless this machine has been asked before.
    Draws nothing from torch's default generator. segments: of a minibatch in this process; bfloat16 gains more where
    there are many. cache: where answers are kept; None: the user's.
    """
    device = torch.device(device)
    gathers = _gathers(spec, config)
    if autocast != "auto" and len(gathers) == 1:
        return Formulation(autocast, gathers[0])
    # What is asked, and nothing that has been measured: a machine under load must not be another machine.
    key = {
        "format": FORMAT,
        "spec": spec_json.to_json(spec),
        "config": config.model_dump(mode="json"),
        "autocast": autocast,
        "gathers": gathers,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "segments": min(segments, MOST_SEGMENTS),
    }

    def fastest() -> dict[str, Any]:
        precisions = _precisions(autocast, device)
        candidates = [Formulation(precision, gather) for precision, gather in itertools.product(precisions, gathers)]
        if len(candidates) == 1:
            return asdict(candidates[0])
        seconds = seconds_per_agent_step(spec, config, candidates, device, min(segments, MOST_SEGMENTS))
        gains = {"none": 1.0, "bf16": BF16_GAIN}
        return asdict(min(candidates, key=lambda one: seconds[one] * gains[one.autocast]))

    return Formulation(**(cache or MachineCache("formulation")).get_or_measure(key, fastest))


def _precisions(autocast: Autocast, device: torch.device) -> list[Literal["none", "bf16"]]:
    if autocast != "auto":
        return [autocast]
    return ["none", "bf16"] if has_bf16_units(device) else ["none"]


def _gathers(spec: EnvSpec, config: AgentConfig) -> list[bool | None]:
    if config.gather_conv is not None:
        return [config.gather_conv]
    if spec.vocabulary is None:
        return [None]
    network = network_class(config.architecture)
    if network is build_mlp:
        return [True, False]
    if network is not build_cnn:
        return [None]
    positions = kernel_positions(spec.vocabulary.height, spec.vocabulary.width, config)
    return [True, False] if positions <= MAX_GATHER_POSITIONS else [False]


def has_bf16_units(device: torch.device | str) -> bool:
    """Whether a matrix product in bfloat16 is no slower than in float32: a look of some milliseconds.

    Of a product so large that its overhead does not decide; the first, which makes its kernel, does not count.
    """
    single, half = (_product_seconds(torch.ones(256, 256, device=device, dtype=dtype)) for dtype in _PRECISIONS)
    return half <= single


def _product_seconds(matrix: Tensor) -> float:
    return min(_seconds(lambda: matrix @ matrix, matrix.device) for _ in range(3))


def seconds_per_agent_step(
    spec: EnvSpec,
    config: AgentConfig,
    candidates: Sequence[Formulation],
    device: torch.device | str = "cpu",
    segments: int = 16,
) -> dict[Formulation, float]:
    """Of acting once and learning once in each of these ways: the best of several rounds, in which all take turns, so
    that other load on the machine does not decide. One that is far behind after its first turn gets no other."""
    device = torch.device(device)
    best: dict[Formulation, list[float]] = {}
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        works = {one: _works(spec, config, one, device, segments) for one in candidates}
        began = time.perf_counter()
        for round_number in range(1 + ROUNDS):
            fastest = min(map(sum, best.values()), default=float("inf"))
            for one, (act, learn) in works.items():
                if round_number > 1 and sum(best[one]) > GIVE_UP_FACTOR * fastest:
                    continue
                taken = [_seconds(act, device) / ACTING_ROWS, _seconds(learn, device) / (segments * STEPS)]
                # The first time kernels are made and weights laid out.
                best[one] = [min(pair) for pair in zip(best[one], taken, strict=True)] if round_number > 1 else taken
            if round_number and time.perf_counter() - began > SECONDS:
                break
    return {one: sum(seconds) for one, seconds in best.items()}


def _works(
    spec: EnvSpec, config: AgentConfig, formulation: Formulation, device: torch.device, segments: int
) -> tuple[Callable[[], None], Callable[[], None]]:
    """To act for ACTING_ROWS agents, and to learn from so many segments of STEPS."""
    # Weights of whatever size: orthogonal ones would take longer to make than all else.
    quickly_made = config.model_copy(update={"initialisation": "torch"})
    policy = MettaAgent(spec, formulation.applied_to(quickly_made)).to(device)
    policy.autocast_dtype = autocast_dtype(formulation.autocast)
    rng = np.random.default_rng(0)
    acting_obs = torch.from_numpy(typical_observations(spec, ACTING_ROWS, rng)).to(device)
    learning_obs = torch.from_numpy(typical_observations(spec, segments * STEPS, rng)).to(device)
    learning_obs = learning_obs.view(segments, STEPS, *learning_obs.shape[1:])
    actions = torch.zeros(segments * STEPS, *spec.action_shape, dtype=torch.int64, device=device)

    @torch.no_grad()
    def act() -> None:
        policy(acting_obs, PolicyState())

    def learn() -> None:
        policy.zero_grad()
        _, logprob, entropy, value, _ = policy(learning_obs, PolicyState(), actions)
        (logprob.sum() + entropy.sum() + value.sum()).backward()

    return act, learn


def _seconds(work: Callable[[], Any], device: torch.device) -> float:
    _wait_for(device)
    began = time.perf_counter()
    work()
    _wait_for(device)
    return time.perf_counter() - began


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def autocast_dtype(autocast: Autocast) -> torch.dtype | None:
    """What ``MettaAgent.autocast_dtype`` is set to."""
    return torch.bfloat16 if autocast == "bf16" else None


def typical_observations(spec: EnvSpec, rows: int, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """``(rows, …)`` of the environment's shape: ``FILLED_TOKENS`` tokens anywhere in the window, or bytes of all
    values, or normal numbers.
    """
    if spec.vocabulary is not None:
        return _typical_tokens(spec.vocabulary, rows, rng)
    shape = (rows, *spec.obs_shape)
    if spec.obs_dtype.kind in "ui":
        return rng.integers(0, 256, shape).astype(spec.obs_dtype)
    return rng.standard_normal(shape).astype(spec.obs_dtype)


def _typical_tokens(vocabulary: TokenVocabulary, rows: int, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    shape = (rows, FILLED_TOKENS)
    location = rng.integers(0, vocabulary.height, shape) << 4 | rng.integers(0, vocabulary.width, shape)
    feature = rng.choice([feature.id for feature in vocabulary.features.values()], shape)
    return np.stack([location, feature, rng.integers(1, 8, shape)], axis=-1).astype(np.uint8)
