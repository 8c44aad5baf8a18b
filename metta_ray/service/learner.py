"""One learner replica: turns fragments into gradient steps, and hands out what came of it.

Waits for:    ``stage`` (fragments of the next batch, copied by a thread of its own) and ``train`` (the order to use
              them); with several replicas, in each gradient step for all the others.
Released by:  the return of ``train``: new weights and optimiser state, which from then on belong to the caller.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from metta_ray.agent import spec_json
from metta_ray.agent.factory import Agent
from metta_ray.agent.metta_agent import MettaAgent
from metta_ray.agent.policy_store import PolicyStore
from metta_ray.agent.weights import copy_weights
from metta_ray.common.errors import UsageError
from metta_ray.common.util.packed_arrays import PackedArrays
from metta_ray.common.util.state_directory import tree_from_bytes, tree_to_bytes
from metta_ray.common.util.typed_config import apply_overrides
from metta_ray.envs.env_spec import EnvSpec
from metta_ray.rl.diagnostics import gradient_stats, profiled_epoch
from metta_ray.rl.distributed import wrap_agent_distributed
from metta_ray.rl.experience import Experience, Origin
from metta_ray.rl.hyperparameter_schedule import HyperparameterScheduler
from metta_ray.rl.initial_policy import load_initial_policy
from metta_ray.rl.kickstarter import Kickstarter
from metta_ray.rl.losses import Losses
from metta_ray.rl.optimizer import Optimizer
from metta_ray.rl.random_streams import UPDATES, stream_seed
from metta_ray.rl.session import prepare_process, prepare_thread
from metta_ray.rl.trainer_checkpoint import to_numpy, to_torch
from metta_ray.rl.trainer_config import TrainerConfig
from metta_ray.rl.update import maybe_update_l2_weights, should_run_on_interval, update_policy
from metta_ray.service import checkpoint
from metta_ray.service.identity import Identity
from metta_ray.service.lease import Lease
from metta_ray.service.orders import Contents, GroupPlace, Restored, Saved, Staged, UpdateOrder, UpdateResult, fetch
from metta_ray.service.process_group import ProcessGroup
from metta_ray.service.process_info import ProcessInfo
from metta_ray.service.run_config import RunConfig
from metta_ray.service.shared_directory import require_same_directory
from metta_ray.service.sizes import Sizes
from metta_ray.service.weights import load_weights, weights_of

logger = logging.getLogger(__name__)

FETCH_TIMEOUT_S = 60.0
COPYING_THREADS = 1
"""torch threads for what goes on beside training. With more, OpenMP has two teams and more threads than cores, and puts
those to sleep that wait for each other: training took half again as long (default network, two threads)."""


Trained = tuple[UpdateResult, PackedArrays | None, NDArray[np.uint8] | None]


class Learner:
    """A policy, its optimiser, and two batches of experience: one that is trained on, one that is filled."""

    def __init__(
        self,
        identity: Identity,
        config: RunConfig | dict[str, Any],
        sizes: Sizes,
        spec: dict[str, Any],
        run_dir: str,
        nonce: str,
        *,
        node_ip: str = "127.0.0.1",
    ) -> None:
        """run_dir, nonce: this process must find in the run's directory what the coordinator wrote there."""
        require_same_directory(run_dir, nonce)
        self.identity = identity
        self._config = RunConfig.from_mapping(config)
        self._sizes = sizes
        self._lease = Lease(self._config.failure.lease_s)
        self._spec: EnvSpec = spec_json.from_json(spec)
        self._device = torch.device(self._config.learner.device)
        # All replicas begin with the weights that rank 0 of the library would draw.
        prepare_process(self._config.trainer.seed, threads=COPYING_THREADS, rank=0)
        self._agent = self._new_agent()
        self._optimizer = self._new_optimizer()
        self._group = ProcessGroup(node_ip)
        self._place = GroupPlace(group=-1, rank=0, world_size=1)
        self._seat = (-1, -1)
        self._generation = identity.generation
        self._version = 0
        self._is_dirty = False
        self._settings: Mapping[str, Any] = {}
        self._last: Trained | None = None
        self._saved_agent: MettaAgent | None = None
        self._store = PolicyStore(device="cpu")
        kickstart = self._config.trainer.kickstart
        self._kickstarter = Kickstarter(kickstart, self._device, self._store, self._spec)

    def __repr__(self) -> str:
        return str(self.identity)

    @property
    def device(self) -> str:
        return str(self._device)

    # Forming a group.

    def begin(self, checkpoint_dir: str | None) -> tuple[Restored, PackedArrays, NDArray[np.uint8]]:
        """The state to start a run from: the newest sound checkpoint, else the initial policy, else fresh weights.

        Raises CheckpointError if checkpoints exist but none is sound.
        """
        found = checkpoint.read_newest(checkpoint_dir) if checkpoint_dir else None
        if found is None:
            source = load_initial_policy(self._agent, self._store, self._config.trainer.initial_policy)
            return Restored(initial_policy=source), weights_of(self._agent), self._state()
        copy_weights(self._agent, found.weights, str(found.restored.path))
        self._load_optimizer(found.optimizer)
        self._version = found.restored.version
        return found.restored, weights_of(self._agent), self._state()

    def open_store(self) -> tuple[str, int]:
        """Rank 0 of the next group opens the place where the others find it."""
        return self._group.open_store(self._config.learner.first_process_group_timeout_s)

    def join(
        self, place: GroupPlace, generation: int, version: int, weights: Sequence[Any], state: Sequence[Any]
    ) -> ProcessInfo:
        """Takes a seat in a new group and the committed state; forgets everything that was staged or begun.

        weights, state: one reference each, in a list so that Ray does not fetch them on the way.
        Asked again for the seat that it has, it keeps it.
        """
        self._obey(generation)
        if (generation, place.group) == self._seat:
            return ProcessInfo.of_this_process(self.identity.incarnation)
        learner = self._config.learner
        prepare_thread(learner.threads)
        timeout_s = learner.process_group_timeout_s if self._version > 0 else learner.first_process_group_timeout_s
        self._group.join(place, self._device, timeout_s)
        prepare_process(self._config.trainer.seed, threads=learner.threads, rank=place.rank)
        self._place = place
        load_weights(self._agent, fetch(weights[0], FETCH_TIMEOUT_S), f"policy version {version}")
        self._load_state(fetch(state[0], FETCH_TIMEOUT_S))
        self._version = version
        self._is_dirty = False
        self._last = None
        if self._config.trainer.compile and not getattr(self._agent, "_is_compiled", False):
            self._agent.compile(mode=self._config.trainer.compile_mode)
            self._agent._is_compiled = True  # type: ignore[assignment]
        self._policy = wrap_agent_distributed(self._agent, self._device)
        self._root = torch.initial_seed()
        self._use(self._settings)
        self._buffers = [self._new_experience(), self._new_experience()]
        self._newest_fragment: dict[int, int] = {}
        self._staged: dict[int, threading.Event] = {}
        self._stage_errors: dict[int, BaseException] = {}
        self._newest_staged = -1
        self._seat = (generation, place.group)
        return ProcessInfo.of_this_process(self.identity.incarnation)

    # Training.

    def stage(
        self,
        generation: int,
        group: int,
        batch: int,
        fragments: Sequence[Any],
        origins: Sequence[tuple[int, int]] | None = None,
    ) -> Staged:
        """Copies the fragments (references), in order, into the buffer of ``batch``; they may go afterwards.

        origins: (worker, number of its fragment) of each, for teachers that remember.
        At most one batch beyond that in training may be staged. A batch that was staged already is left alone: another
        one may be in its buffer by now.
        """
        self._obey(generation)
        self._require_group(group)
        prepare_thread(COPYING_THREADS)
        if batch <= self._newest_staged:
            return Staged(batch, 0, {"fetching": 0.0, "copying": 0.0})
        self._newest_staged = batch
        experience, done = self._buffers[batch % 2], self._staged.setdefault(batch, threading.Event())
        fetching = copying = size = 0.0
        try:
            row = 0
            experience.begin_batch()
            for reference, origin in zip(fragments, origins or [(0, -1)] * len(fragments), strict=True):
                began = time.perf_counter()
                arrays = fetch(reference, FETCH_TIMEOUT_S).arrays()
                fetched = time.perf_counter()
                experience.add_fragment(row, arrays, self._origin(*origin))
                row += len(arrays["last_values"])
                size += sum(array.nbytes for array in arrays.values())
                fetching += fetched - began
                copying += time.perf_counter() - fetched
                del arrays
        except BaseException as error:
            self._stage_errors[batch] = error
            raise
        finally:
            done.set()
        return Staged(batch, int(size), {"fetching": fetching, "copying": copying})

    def train(self, order: UpdateOrder) -> Trained:
        """One update; (result, weights, optimiser state), the last two from rank 0 alone.

        The same order again returns the same. Raises TrainingDiverged when too many updates in a row were not
        finite; RuntimeError when another replica is gone; whatever ``stage`` raised.
        """
        self._obey(order.generation)
        self._require_group(order.group)
        if self._last is not None and self._last[0].tickets == order.tickets:
            return self._last
        if order.version != self._version:
            raise UsageError(f"{self} has policy version {self._version}, the order is for {order.version}")
        prepare_thread(self._config.learner.threads)
        began = time.perf_counter()
        try:
            experience = self._staged_batch(order.batch)
        except BaseException:
            self._group.leave()  # the others wait for this replica in their first gradient step: now they hear of it
            raise
        ready = time.perf_counter()
        self._is_dirty = True
        losses, metrics, hyperparameters = self._update(order, experience)
        self._is_dirty = False
        self._version = order.version + 1
        if self._version == 1:
            self._group.set_timeout(self._config.learner.process_group_timeout_s)
        trained = time.perf_counter()
        is_leader = self._place.rank == 0
        weights = weights_of(self._agent) if is_leader or order.compare_replicas else None
        state = self._state() if is_leader else None
        seconds = {"waiting": ready - began, "training": trained - ready, "publishing": time.perf_counter() - trained}
        result = UpdateResult(
            incarnation=self.identity.incarnation,
            rank=self._place.rank,
            version=self._version,
            agent_step=order.agent_step,
            tickets=order.tickets,
            losses=losses.stats(),
            hyperparameters=hyperparameters,
            metrics=metrics,
            seconds=seconds,
            skipped_updates=self._optimizer.skipped_updates,
            digest=weights.digest() if weights is not None and order.compare_replicas else None,
        )
        self._last = (result, weights if is_leader else None, state)
        return self._last

    def export(self) -> tuple[int, UpdateResult | None, PackedArrays, NDArray[np.uint8]]:
        """(version, the update that led there, weights, optimiser state), for a coordinator that lost them.

        Waits for an update that is running. UsageError after one that failed half-way.
        """
        if self._is_dirty:
            raise UsageError(f"{self} failed in the middle of update {self._version}; its weights are of no version")
        result, weights, state = self._last or (None, None, None)
        return self._version, result, weights or weights_of(self._agent), self._state() if state is None else state

    # Saving.

    def save(
        self,
        directory: str,
        contents: Contents,
        weights: Sequence[Any],
        state: Sequence[Any],
        snapshots: Mapping[int, Sequence[Any]],
        keep_last: int,
    ) -> Saved:
        """Writes a checkpoint of a committed state, beside a training that goes on.

        weights, state, snapshots (by worker): one reference each, in a list. A snapshot that does not come, since
        its worker is gone, is left out. OSError or CheckpointError where the disk refuses.
        """
        prepare_thread(COPYING_THREADS)
        if self._saved_agent is None:
            self._saved_agent = self._new_agent().to("cpu")
        load_weights(self._saved_agent, fetch(weights[0], FETCH_TIMEOUT_S), f"policy version {contents.version}")
        workers = {}
        for number, reference in snapshots.items():
            try:
                workers[number] = fetch(reference[0], FETCH_TIMEOUT_S)
            except Exception as error:
                logger.warning("checkpoint %d is without the state of worker %d: %s", contents.version, number, error)
        optimizer = tree_from_bytes(fetch(state[0], FETCH_TIMEOUT_S).tobytes())["optimizer"]
        return checkpoint.write(
            Path(directory), contents, self._saved_agent, optimizer, workers, self._store, keep_last
        )

    def describe(self) -> tuple[ProcessInfo, int]:
        """(process, policy version); renews the lease. Independent of training."""
        self._lease.renew()
        return ProcessInfo.of_this_process(self.identity.incarnation), self._version

    def close(self) -> None:
        self._group.leave()

    # Details.

    def _update(self, order: UpdateOrder, experience: Experience) -> tuple[Losses, dict[str, float], dict[str, float]]:
        if order.settings != self._settings:
            self._use(order.settings)
        # Whatever a network draws in training is decided by the epoch alone, so a repeated update repeats it.
        torch.manual_seed(stream_seed(self._root, UPDATES, order.version))
        hyperparameters = self._schedule.step(order.agent_step_before)
        losses = Losses()
        with profiled_epoch(self._trainer.profiler, order.version):
            update_policy(
                self._policy,
                self._optimizer,
                experience,
                self._trainer,
                self._kickstarter,
                order.agent_step,
                order.version,
                losses,
                self._device,
                is_off_policy=order.staleness > 0,
            )
        epoch = order.version + 1
        maybe_update_l2_weights(self._agent, epoch, self._agent.config.l2_init_weight_update_interval)
        metrics: dict[str, float] = {}
        if should_run_on_interval(epoch, self._trainer.grad_mean_variance_interval):
            metrics = gradient_stats(self._policy)
        return losses, metrics, hyperparameters

    def _origin(self, worker: int, sequence: int) -> Origin:
        """A teacher's memory goes on where this replica saw the fragment before this one."""
        continues = self._newest_fragment.get(worker) == sequence - 1
        self._newest_fragment[worker] = sequence
        return Origin(worker, continues)

    def _staged_batch(self, batch: int) -> Experience:
        if not self._staged.setdefault(batch, threading.Event()).wait(FETCH_TIMEOUT_S):
            raise UsageError(f"batch {batch} was not staged within {FETCH_TIMEOUT_S:.0f} s")
        error = self._stage_errors.pop(batch, None)
        if error is not None:
            raise error
        del self._staged[batch]
        return self._buffers[batch % 2]

    def _use(self, settings: Mapping[str, Any]) -> None:
        """The configuration as given, with the settings changed since."""
        trainer = apply_overrides(self._config.trainer, settings)
        assert isinstance(trainer, TrainerConfig)
        self._settings = dict(settings)
        self._trainer = trainer.model_copy(deep=True)
        optimizer = self._trainer.optimizer
        for group in self._optimizer.param_groups:
            group["lr"] = optimizer.learning_rate * group.get("lr_scale", 1.0)
            group["weight_decay"] = optimizer.weight_decay
            if "betas" in group:
                group["betas"], group["eps"] = (optimizer.beta1, optimizer.beta2), optimizer.eps
        self._optimizer.max_grad_norm = self._trainer.ppo.max_grad_norm
        self._schedule = HyperparameterScheduler(self._trainer, self._optimizer)

    def _new_agent(self) -> MettaAgent:
        agent = Agent(self._spec, config=self._config.agent, device=self._device)
        agent.autocast_dtype = torch.bfloat16 if self._config.trainer.autocast == "bf16" else None
        return agent

    def _new_optimizer(self) -> Optimizer:
        trainer = self._config.trainer
        return Optimizer(
            optimizer_type=trainer.optimizer.type,
            policy=self._agent,
            learning_rate=trainer.optimizer.learning_rate,
            betas=(trainer.optimizer.beta1, trainer.optimizer.beta2),
            eps=trainer.optimizer.eps,
            weight_decay=trainer.optimizer.weight_decay,
            max_grad_norm=trainer.ppo.max_grad_norm,
            max_nonfinite_updates=trainer.max_nonfinite_updates,
        )

    def _new_experience(self) -> Experience:
        """This replica's share of a batch, whatever the number of replicas."""
        trainer, world_size = self._config.trainer, self._place.world_size
        centering = trainer.reward_centering
        steps, minibatch = trainer.batch_size // world_size, trainer.minibatch_size // world_size
        return Experience(
            total_agents=self._sizes.agents_per_worker,
            batch_size=steps,
            bptt_horizon=trainer.bptt_horizon,
            minibatch_size=minibatch,
            max_minibatch_size=minibatch,
            obs_space=self._spec.single_observation_space,
            atn_space=self._spec.single_action_space,
            device=self._device,
            hidden_size=self._agent.hidden_size,
            cpu_offload=trainer.cpu_offload,
            num_lstm_layers=self._agent.core_num_layers,
            reward_centering_rate=centering.beta if centering.enabled else None,
        )

    def _state(self) -> NDArray[np.uint8]:
        """Optimiser state as one message of numbers."""
        return np.frombuffer(tree_to_bytes({"optimizer": to_numpy(self._optimizer.state_dict())}), np.uint8)

    def _load_state(self, state: NDArray[np.uint8]) -> None:
        self._load_optimizer(tree_from_bytes(state.tobytes())["optimizer"])

    def _load_optimizer(self, state: Any) -> None:
        self._optimizer.zero_grad()
        self._optimizer.load_state_dict(to_torch(state))

    def _obey(self, generation: int) -> None:
        """Only the newest coordinator is obeyed: an older one may not know that it was replaced."""
        self._lease.renew()
        if generation < self._generation:
            raise UsageError(f"{self} obeys generation {self._generation}, the order is of {generation}")
        self._generation = generation

    def _require_group(self, group: int) -> None:
        if group != self._place.group:
            raise UsageError(f"{self} is in group {self._place.group}, the order is for {group}")
