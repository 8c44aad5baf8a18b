"""Measures what one agent step costs each part of a training on this machine.

measure_service_times(config.trainer, config.agent)  # takes seconds; ``measuring`` keeps what came of it

Everything runs as it does in a training: the run's environments, network, rollout step, losses and optimiser, on one
thread. What is counted is the processor time of that thread, so that other load on the machine disturbs little.
"""

from __future__ import annotations

import itertools
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from metta_ray.agent.factory import Agent
from metta_ray.agent.metta_agent import MettaAgent
from metta_ray.agent.weights import copy_weights
from metta_ray.common.util.packed_arrays import PackedArrays
from metta_ray.common.util.state_directory import tree_to_bytes
from metta_ray.control.rates import Curve, ServiceTimes
from metta_ray.envs.env_spec import EnvSpec
from metta_ray.envs.vecenv import Received, VecEnv
from metta_ray.rl.experience import Experience
from metta_ray.rl.fragment import fault_of
from metta_ray.rl.losses import Losses, explained_variance
from metta_ray.rl.optimizer import Optimizer
from metta_ray.rl.rollout import perform_rollout_step
from metta_ray.rl.session import prepare_thread
from metta_ray.rl.trainer_checkpoint import to_numpy
from metta_ray.rl.trainer_config import TrainerConfig
from metta_ray.rl.update import batch_advantages, look_again, process_minibatch_update
from metta_ray.rl.vecenv import make_vecenv, training_factory
from metta_ray.service.measuring import usable_cores

SECONDS = 3.0
MOST_ROWS = 256
MOST_BYTES = 64e6
WARM_UP = 3
FEW_SEGMENTS = 256
"""With fewer, looking again costs more for each; a learner's batch, which has more, would take too long."""
MOST_THREADS, THREAD_TURNS = 16, 4

Clock = Callable[[], float]
Typical = Callable[[list[float]], float]
T = TypeVar("T")


def measure_service_times(
    trainer: TrainerConfig,
    agent: Any,
    *,
    rollout_device: str = "cpu",
    learner_device: str = "cpu",
    seconds: float = SECONDS,
) -> ServiceTimes:
    """Takes about ``seconds`` of measuring and the time in which environments and network are built; a large network
    takes longer, since each part is measured at least once. Chance and threads of this process are left as they were.
    """
    with _one_thread():
        return _Measurement(trainer, agent, torch.device(rollout_device), torch.device(learner_device), seconds).run()


class _Measurement:
    """The parts of a training, built once, and what they cost."""

    def __init__(
        self,
        trainer: TrainerConfig,
        agent: Any,
        rollout_device: torch.device,
        learner_device: torch.device,
        seconds: float,
    ) -> None:
        self._trainer = trainer
        self._factory = training_factory(trainer)
        self._spec: EnvSpec = self._factory.spec()
        self._agent_settings = agent
        self._rollout_device = rollout_device
        self._learner_device = learner_device
        self._actor = self._new_agent(rollout_device)
        self._learner = self._new_agent(learner_device)
        self._optimizer = Optimizer(trainer.optimizer.type, self._learner, learning_rate=1e-6)
        self._seconds = seconds / 8  # of the parts that take long: rollouts and minibatches

    def run(self) -> ServiceTimes:
        environment, inference = [], []
        for rows in reversed(self._row_counts()):  # the smallest last: its rollout is the fragment
            of_env, of_inference, experience = self._roll_out(rows)
            environment.append((rows, of_env))
            inference.append((rows, of_inference))
        pack_s, packed = _timed(lambda: _packed(experience), self._seconds / 4, time.thread_time)
        fragment_steps = experience.segments * experience.bptt_horizon

        few = self._batch_for(experience, FEW_SEGMENTS)
        _stage(few, packed)
        batch = self._batch_for(experience, self._trainer.batch_size // self._trainer.bptt_horizon)
        batch_steps = batch.segments * batch.bptt_horizon
        clock = _clock(self._learner_device)
        stage_s, _ = _timed(lambda: _stage(batch, packed), self._seconds / 4, time.thread_time)
        again_s, _ = _timed(lambda: look_again(self._learner, few), self._seconds / 4, clock)
        advantage_s, advantages = _timed(lambda: self._advantages(batch), self._seconds / 8, clock)
        training = [(size, self._train(batch, advantages, size, clock)) for size in self._minibatches(batch_steps)]
        thread_gains = self._thread_gains(batch, advantages)
        return ServiceTimes(
            environment=Curve.of(environment),
            inference=Curve.of(inference),
            training=Curve.of(training),
            look_again=again_s / (few.segments * few.bptt_horizon),
            advantage=advantage_s / batch_steps,
            transport=pack_s / fragment_steps,
            staging=stage_s / batch_steps,
            publish_s=_timed(self._publish, self._seconds / 8, time.thread_time)[0],
            load_s=_timed(self._load, self._seconds / 8, time.thread_time)[0],
            step_bytes=packed.size_bytes / fragment_steps,
            thread_gains=thread_gains,
            weights_bytes=sum(tensor.numel() * tensor.element_size() for tensor in self._learner.state_dict().values()),
        )

    # Collecting.

    def _row_counts(self) -> list[int]:
        """Two numbers of agents that step together: those of one environment process that made the whole batch (or
        MOST_ROWS), and a quarter."""
        agents = self._spec.agents_per_env
        most = max(agents, min(MOST_ROWS, self._trainer.batch_size // self._trainer.bptt_horizon) // agents * agents)
        return sorted({max(agents, most // 4 // agents * agents), most})

    def _roll_out(self, rows: int) -> tuple[float, float, Experience]:
        """Seconds per agent step of environment and inference, and the rollout: a whole one of the fewest rows."""
        num_envs = rows // self._spec.agents_per_env
        with make_vecenv(self._factory, "serial", num_envs, num_envs, is_training=True) as vecenv:
            clock = _clock(self._rollout_device)
            timed = _TimedVecEnv(vecenv, clock)
            vecenv.async_reset(self._trainer.seed)
            experience = self._experience(rows, rows, rows, self._rollout_device)
            environment, inference = list[float](), list[float]()
            deadline = time.perf_counter() + self._seconds
            is_fragment = rows == min(self._row_counts())
            while not experience.ready_for_training:
                timed.seconds, began = 0.0, clock()
                perform_rollout_step(self._actor, timed, experience, self._rollout_device)  # type: ignore[arg-type]
                inference.append(clock() - began - timed.seconds)
                environment.append(timed.seconds)
                if not is_fragment and time.perf_counter() > deadline and len(inference) > 2 * WARM_UP:
                    break
        # Environments that begin anew make some steps much longer, and belong to what they cost.
        return (
            statistics.fmean(environment[WARM_UP:] or environment) / rows,
            statistics.median(inference[WARM_UP:] or inference) / rows,
            experience,
        )

    # Learning.

    def _train(
        self, batch: Experience, advantages: torch.Tensor, size: int, clock: Clock, typical: Typical = statistics.median
    ) -> float:
        """Seconds per agent step of a gradient step."""
        losses, segments = Losses(), size // batch.bptt_horizon
        order = torch.randperm(batch.segments, device=self._learner_device)
        firsts = itertools.cycle(range(0, batch.segments - segments + 1, segments))

        def step() -> None:
            first = next(firsts)
            rows = order[first : first + segments]
            minibatch = batch.rows(rows, advantages)
            minibatch["prio_weights"] = torch.ones(len(rows), 1, device=self._learner_device)
            loss = process_minibatch_update(
                self._learner, batch, minibatch, advantages, self._trainer, None, 0, losses, self._learner_device
            )
            self._optimizer.step(loss, 0, 1)

        return _timed(step, self._seconds / 2, clock, typical)[0] / size

    def _thread_gains(self, batch: Experience, advantages: torch.Tensor) -> tuple[tuple[int, float], ...]:
        """By the clock on the wall, which other load disturbs: so all take turns, and the best turn of each counts."""
        counts = [1]
        while self._learner_device.type == "cpu" and 2 * counts[-1] <= min(MOST_THREADS, usable_cores()):
            counts.append(2 * counts[-1])
        best, size = dict.fromkeys(counts, math.inf), self._trainer.minibatch_size
        for count in (counts if len(counts) > 1 else []) * THREAD_TURNS:
            torch.set_num_threads(count)
            best[count] = min(best[count], self._train(batch, advantages, size, time.perf_counter, min))
        torch.set_num_threads(1)
        return tuple((count, best[1] / best[count] if count > 1 else 1.0) for count in counts)

    def _advantages(self, batch: Experience) -> torch.Tensor:
        advantages = batch_advantages(batch, self._trainer, self._learner_device)
        explained_variance(batch.values, advantages + batch.values, batch.mask)
        return advantages

    def _publish(self) -> bytes:
        PackedArrays.pack({name: tensor.cpu().numpy() for name, tensor in self._learner.state_dict().items()})
        return bytes(tree_to_bytes({"optimizer": to_numpy(self._optimizer.state_dict())}))

    def _load(self) -> None:
        weights = {name: tensor.cpu().numpy().copy() for name, tensor in self._learner.state_dict().items()}
        copy_weights(self._actor, weights, "the learner")

    # Parts.

    def _new_agent(self, device: torch.device) -> MettaAgent:
        agent = Agent(self._spec, config=self._agent_settings, device=device)
        agent.autocast_dtype = torch.bfloat16 if self._trainer.autocast == "bf16" else None
        return agent

    def _batch_for(self, fragment: Experience, segments: int) -> Experience:
        """A learner's batch of whole fragments and whole minibatches, of about so many segments as far as MOST_BYTES
        allow: what does not fit into the processor's caches takes longer."""
        minibatch = self._trainer.minibatch_size // self._trainer.bptt_horizon
        least = math.lcm(fragment.segments, minibatch)
        segment_bytes = sum(array.nbytes for array in fragment.fragment_arrays().values()) / fragment.segments
        segments = least * max(1, min(segments, int(MOST_BYTES / segment_bytes)) // least)
        return self._experience(fragment.total_agents, segments, minibatch, self._learner_device)

    def _experience(self, agents: int, segments: int, minibatch: int, device: torch.device) -> Experience:
        horizon = self._trainer.bptt_horizon
        return Experience(
            total_agents=agents,
            batch_size=segments * horizon,
            bptt_horizon=horizon,
            minibatch_size=minibatch * horizon,
            max_minibatch_size=minibatch * horizon,
            obs_space=self._spec.observation_space,
            atn_space=self._spec.action_space,
            device=device,
            hidden_size=self._actor.hidden_size,
            num_lstm_layers=self._actor.core_num_layers,
        )

    def _minibatches(self, batch_steps: int) -> list[int]:
        """The run's, half of it (two replicas share one) and twice as many agent steps, as far as they can be."""
        horizon, size = self._trainer.bptt_horizon, self._trainer.minibatch_size
        return [steps for steps in (size // 2, size, 2 * size) if steps % horizon == 0 and 0 < steps <= batch_steps]


class _TimedVecEnv:
    """A vecenv that counts the time in which it steps."""

    def __init__(self, vecenv: VecEnv, clock: Clock) -> None:
        self.seconds = 0.0
        self._vecenv = vecenv
        self._clock = clock

    def recv(self) -> Received:
        began = self._clock()
        received = self._vecenv.recv()
        self.seconds += self._clock() - began
        return received

    def send(self, actions: NDArray[Any]) -> None:
        began = self._clock()
        self._vecenv.send(actions)
        self.seconds += self._clock() - began

    def __getattr__(self, name: str) -> Any:
        return getattr(self._vecenv, name)


def _packed(experience: Experience) -> PackedArrays:
    """As a worker makes a fragment and an object store copies it."""
    arrays = experience.fragment_arrays()
    packed = PackedArrays.pack(arrays)
    fault_of(arrays)
    return PackedArrays(packed.layout, packed.buffer.copy())


def _stage(batch: Experience, packed: PackedArrays) -> None:
    for row in range(0, batch.segments, batch.total_agents):
        batch.add_fragment(row, packed.arrays())


# How time is taken.


def _timed(
    work: Callable[[], T], seconds: float, clock: Clock, typical: Typical = statistics.median
) -> tuple[float, T]:
    """Median (or what else is ``typical``) of as many calls as fit (three at least, after one to warm up), and the last
    result. What takes longer than that in one call is called twice."""
    deadline = time.perf_counter() + seconds
    result = work()
    taken = list[float]()
    while len(taken) < 3 or time.perf_counter() < deadline:
        began = clock()
        result = work()
        taken.append(clock() - began)
        if taken[-1] > seconds:
            break
    return typical(taken), result


def _clock(device: torch.device) -> Clock:
    """Processor time of this thread; for a GPU, the time until it is done."""
    if device.type != "cuda":
        return time.thread_time

    def clock() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return clock


@contextmanager
def _one_thread() -> Iterator[None]:
    """Settings of a training's process for a while; chance goes on afterwards as if nothing had been drawn."""
    threads, numpy_state, python_state = torch.get_num_threads(), np.random.get_state(), random.getstate()
    with torch.random.fork_rng():
        prepare_thread(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            np.random.set_state(numpy_state)
            random.setstate(python_state)
