"""How fast a training will be in a layout, which layout is the fastest, and what would make it faster.

predict(times, job, Layout(workers=2, replicas=1, rows=64, fragment_steps=4096), Resources(cores=2))

A few batches are played through with the pipeline's own rules: tickets for (target_staleness + 1) batches, a worker
busy with one fragment at a time, learner replicas with one batch, processes that share the cores evenly. So what
waits for what comes out of it and need not be known before. Nothing here is fitted to whole runs: all that goes in is
the time of each part alone.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from metta_ray.common.errors import ConfigError
from metta_ray.control.rates import ServiceTimes

WARM_UP_BATCHES, BATCHES = 4, 12
MOST_ROWS = 1024
"""More agents in one inference call gain nothing on a core."""
AS_GOOD = 0.03
"""A layout with fewer processes is preferred if it loses no more than this share of the speed."""
WORTH_SAYING = 0.03


@dataclass(frozen=True)
class Job:
    """What a training asks for, whatever its layout. Steps are agent steps, of all replicas together."""

    batch_steps: int
    minibatch_steps: int
    horizon: int
    agents_per_env: int
    update_epochs: int = 1
    target_staleness: int = 1

    @property
    def is_off_policy(self) -> bool:
        return self.target_staleness > 0

    @property
    def gradient_steps(self) -> int:
        """Per update."""
        return self.update_epochs * max(1, self.batch_steps // self.minibatch_steps)


@dataclass(frozen=True)
class Layout:
    """How it is spread over processes. rows: agents that a worker steps together. threads: of a learner replica."""

    workers: int
    replicas: int
    rows: int
    fragment_steps: int
    threads: int = 1

    @property
    def processes(self) -> int:
        return self.workers + self.replicas

    @property
    def computing_threads(self) -> int:
        return self.workers + self.replicas * self.threads


@dataclass(frozen=True)
class Resources:
    """What the processes run on.

    cores: that all of them share; None: each has a core (or a learner its GPU) of its own. background_cores: used all
    the time by others, Ray's processes and the coordinator's loop (0.08 to 0.1 were measured). message_s: processor
    time of a worker per fragment, for Ray. turnaround_s: from the end of an update to the start of the next one,
    however ready that is. exchange_latency_s, exchange_bytes_per_second: of one collective among learner replicas.
    coordinator_fragments_per_second, network_bytes_per_second: the most that the coordinator, and the learners' link,
    can take. learners_first: workers step back where there are not cores for all.
    """

    cores: float | None
    background_cores: float = 0.1
    message_s: float = 1.5e-3
    turnaround_s: float = 4e-3
    exchange_latency_s: float = 3e-4
    exchange_bytes_per_second: float = 1e9
    coordinator_fragments_per_second: float = 1000.0
    network_bytes_per_second: float = 1.25e9
    learners_first: bool = False

    def cores_of(self, layout: Layout) -> float:
        """Those that the layout uses."""
        return layout.computing_threads if self.cores is None else min(self.cores, layout.computing_threads)


@dataclass(frozen=True)
class Prediction:
    """limited_by: environments, inference, learner, exchange, cores, pacing, coordinator or network.

    worker_waiting, learner_waiting: shares of their time. efficiency: share of the floor of the cores that are used.
    """

    agent_steps_per_second: float
    limited_by: str
    worker_waiting: float
    learner_waiting: float
    efficiency: float
    fragments_per_second: float
    network_bytes_per_second: float


@dataclass(frozen=True)
class Lever:
    """The change that would make a training faster by the share ``gain``. text: ``+1 rollout worker: about +31 %``."""

    text: str
    gain: float


# Asking.


def predict(times: ServiceTimes, job: Job, layout: Layout, resources: Resources) -> Prediction:
    """The steady state. ConfigError for a batch that cannot be shared so."""
    fragments = _fragments_per_batch(job, layout)
    played = _play(_Costs.of(times, job, layout, resources), job, layout, resources, fragments)
    rate = job.batch_steps / played.batch_s
    step_bytes = times.step_bytes + _weights_bytes_per_step(times, job, layout)
    limits = {
        "coordinator": resources.coordinator_fragments_per_second * layout.fragment_steps,
        "network": resources.network_bytes_per_second / step_bytes if resources.cores is None else float("inf"),
    }
    limit = min(limits, key=limits.__getitem__)
    limited_by = limit if limits[limit] < rate else _limited_by(times, job, layout, resources, played)
    slowed = min(1.0, limits[limit] / rate)
    rate = min(rate, limits[limit])
    return Prediction(
        agent_steps_per_second=rate,
        limited_by=limited_by,
        worker_waiting=1.0 - (1.0 - played.worker_waiting) * slowed,
        learner_waiting=1.0 - (1.0 - played.learner_waiting) * slowed,
        efficiency=rate / floor_of(times, job, layout, resources),
        fragments_per_second=rate / layout.fragment_steps,
        network_bytes_per_second=rate * step_bytes,
    )


def floor_of(times: ServiceTimes, job: Job, layout: Layout, resources: Resources) -> float:
    """Agent steps per second if the cores that the layout uses did nothing but step, infer and train."""
    minibatch = job.minibatch_steps / layout.replicas
    cores = resources.cores_of(layout)
    return times.floor(cores, rows=layout.rows, minibatch=minibatch, update_epochs=job.update_epochs)


def best_layout(
    times: ServiceTimes,
    job: Job,
    resources: Resources,
    *,
    workers: int | None = None,
    replicas: int | None = None,
    rows: int | None = None,
    threads: int | None = None,
    max_processes: int | None = None,
) -> Layout:
    """The layout with the fewest processes among those that are about as fast as the fastest. What is given stays.

    max_processes: with ``cores`` None it bounds the search. ConfigError if nothing fits the batch.
    """
    thread_counts = [threads] if threads else _thread_counts(times, resources)
    candidates = [
        replace(layout, threads=count)
        for layout in _layouts(job, resources, workers, replicas, rows, max_processes)
        for count in thread_counts
        if count == 1 or threads or layout.replicas * count <= (resources.cores or 1)
    ]
    if not candidates:
        raise ConfigError(
            f"batch_size={job.batch_steps} with bptt_horizon={job.horizon} and {job.agents_per_env} agents per "
            f"environment cannot be shared by {replicas or 'any number of'} learner replica(s)"
            + (f" in fragments of {rows} agents" if rows else "")
        )
    # No layout is faster than its parts alone would be: most need not be played through.
    bounds = {layout: _bound(times, job, layout, resources) for layout in candidates}
    rates: dict[Layout, float] = {}
    fastest = 0.0
    for layout in sorted(candidates, key=lambda one: -bounds[one]):
        if bounds[layout] < (1.0 - AS_GOOD) * fastest:
            break
        rates[layout] = predict(times, job, layout, resources).agent_steps_per_second
        fastest = max(fastest, rates[layout])
    good = [layout for layout, rate in rates.items() if rate >= (1.0 - AS_GOOD) * fastest]
    fewest = min(layout.processes for layout in good)
    return max((layout for layout in good if layout.processes == fewest), key=rates.__getitem__)


def next_lever(times: ServiceTimes, job: Job, layout: Layout, resources: Resources) -> Lever | None:
    """The single change that gains most; None where none is worth a word. The global batch stays as it is."""
    now = predict(times, job, layout, resources).agent_steps_per_second
    gains = []
    for name, changed_job, changed, changed_resources in _changes(job, layout, resources):
        try:
            rate = predict(times, changed_job, changed, changed_resources).agent_steps_per_second
        except ConfigError:
            continue
        gains.append((rate / now - 1.0, name))
    gain, name = max(gains, key=lambda one: one[0], default=(0.0, ""))
    return Lever(f"{name}: about {100 * gain:+.0f} %", gain) if gain >= WORTH_SAYING else None


# Layouts.


def _layouts(
    job: Job,
    resources: Resources,
    workers: int | None,
    replicas: int | None,
    rows: int | None,
    max_processes: int | None,
) -> Iterator[Layout]:
    cores = resources.cores
    most = max_processes or (int(cores) + 1 if cores is not None else 64)
    for replica_count in [replicas] if replicas else range(1, max(2, most)):
        if job.minibatch_steps % (replica_count * job.horizon):
            continue
        for row_count in _row_counts(job, replica_count, rows):
            fragment_steps = row_count * job.horizon
            useful = (job.target_staleness + 1) * (job.batch_steps // fragment_steps)
            last = max(1, min(useful, most - replica_count))
            for worker_count in [workers] if workers else range(1, last + 1):
                yield Layout(worker_count, replica_count, row_count, fragment_steps)


def _thread_counts(times: ServiceTimes, resources: Resources) -> list[int]:
    """Of a learner replica. Where processes do not share cores, Ray gives each the cores that were asked for."""
    measured = [count for count, _ in times.thread_gains if count > 1]
    return [1, *measured] if resources.cores is not None else [1]


def _row_counts(job: Job, replicas: int, rows: int | None) -> Iterable[int]:
    """Of whole environments, such that a batch is made of whole fragments: two for each replica if that can be, so
    that one can be under way while the other is there."""
    share, left = divmod(job.batch_steps, replicas * job.horizon)
    if left:
        return []
    fitting = [
        count
        for count in range(job.agents_per_env, share + 1, job.agents_per_env)
        if share % count == 0 and (rows is None or count == rows)
    ]
    halves = [count for count in fitting if 2 * count <= share and count <= MOST_ROWS]
    return halves or fitting[:1]


def _changes(job: Job, layout: Layout, resources: Resources) -> Iterator[tuple[str, Job, Layout, Resources]]:
    """Single steps to other layouts, with what each of them is called."""
    more = 1 if layout.workers < 8 else layout.workers // 4
    workers = "rollout worker" if more == 1 else "rollout workers"
    yield f"+{more} {workers}", job, replace(layout, workers=layout.workers + more), resources
    if layout.workers > 1:
        yield "-1 rollout worker", job, replace(layout, workers=layout.workers - 1), resources
    for count in range(layout.replicas + 1, 2 * layout.replicas + 1):
        if job.minibatch_steps % (count * job.horizon) == 0:
            name = f"+{count - layout.replicas} learner replica" + ("s" if count > layout.replicas + 1 else "")
            yield name, job, replace(layout, replicas=count), resources
            break
    if resources.cores is not None and 2 * layout.replicas * layout.threads <= resources.cores:
        yield f"learner.threads {2 * layout.threads}", job, replace(layout, threads=2 * layout.threads), resources
    for factor in (2.0, 0.5):
        rows = int(layout.rows * factor)
        if rows % job.agents_per_env == 0 and rows > 0:
            changed = replace(layout, rows=rows, fragment_steps=int(layout.fragment_steps * factor))
            if job.batch_steps >= 2 * changed.fragment_steps * layout.replicas:
                yield f"rollout.num_envs {rows // job.agents_per_env}", job, changed, resources
    if 2 * job.minibatch_steps <= job.batch_steps:
        longer = replace(job, minibatch_steps=2 * job.minibatch_steps)
        yield f"trainer.minibatch_size {longer.minibatch_steps} (fewer gradient steps)", longer, layout, resources
    if job.target_staleness == 0:
        yield "pacing.target_staleness 1", replace(job, target_staleness=1), layout, resources
    if resources.cores is not None and layout.computing_threads > resources.cores:
        yield "+1 core", job, layout, replace(resources, cores=resources.cores + 1)


def _fragments_per_batch(job: Job, layout: Layout) -> int:
    fragments, left = divmod(job.batch_steps, layout.fragment_steps)
    if left or fragments % layout.replicas or not fragments:
        raise ConfigError(
            f"a batch of {job.batch_steps} agent steps cannot be made of whole fragments of {layout.fragment_steps} "
            f"for each of {layout.replicas} learner replica(s)"
        )
    if job.minibatch_steps % (layout.replicas * job.horizon):
        raise ConfigError(
            f"minibatch_size={job.minibatch_steps} cannot be shared by {layout.replicas} learner replicas in whole "
            f"segments of {job.horizon}"
        )
    return fragments


def _weights_bytes_per_step(times: ServiceTimes, job: Job, layout: Layout) -> float:
    """Each worker that is busy fetches each version; more than one per fragment would be of no use."""
    busy = min(layout.workers, job.batch_steps // layout.fragment_steps)
    return busy * times.weights_bytes / job.batch_steps


# Costs.


@dataclass(frozen=True)
class _Costs:
    """Seconds alone on a core: of one fragment in a worker; of one batch in each replica, and in between."""

    fragment_s: float
    update_s: float
    exchange_s: float
    turnaround_s: float

    @classmethod
    def of(cls, times: ServiceTimes, job: Job, layout: Layout, resources: Resources) -> _Costs:
        fragments = job.batch_steps / layout.fragment_steps
        loads = min(1.0, layout.workers / fragments)  # a worker with several fragments per version loads it once
        fragment_s = layout.fragment_steps * (times.collecting(layout.rows) + times.transport)
        share, minibatch = job.batch_steps / layout.replicas, job.minibatch_steps / layout.replicas
        learning = times.learning(minibatch, job.update_epochs, is_off_policy=job.is_off_policy, threads=layout.threads)
        update_s = share * (times.staging + learning)
        return cls(
            fragment_s=fragment_s + loads * times.load_s + resources.message_s,
            update_s=update_s + times.publish_s,
            exchange_s=_exchange_s(times, job, layout, resources),
            turnaround_s=resources.turnaround_s,
        )


def _exchange_s(times: ServiceTimes, job: Job, layout: Layout, resources: Resources) -> float:
    """Per update: gradients go around a ring of replicas, and the sums of each minibatch before them."""
    if layout.replicas == 1:
        return 0.0
    gradient_bytes = 2.0 * (layout.replicas - 1) / layout.replicas * times.weights_bytes
    collective_s = 2.0 * resources.exchange_latency_s + gradient_bytes / resources.exchange_bytes_per_second
    return job.gradient_steps * collective_s


def _bound(times: ServiceTimes, job: Job, layout: Layout, resources: Resources) -> float:
    """Agent steps per second that the layout cannot exceed."""
    costs = _Costs.of(times, job, layout, resources)
    collecting = layout.workers * layout.fragment_steps / costs.fragment_s
    learner_s = costs.update_s + costs.exchange_s
    learning = job.batch_steps / learner_s
    if resources.cores is None:
        return min(collecting, learning)
    computing = layout.replicas * layout.threads
    work_s = costs.fragment_s / layout.fragment_steps + computing * learner_s / job.batch_steps
    return min(collecting, learning, (resources.cores - resources.background_cores) / work_s)


# Playing it through.


@dataclass(frozen=True)
class _Played:
    batch_s: float
    worker_waiting: float
    learner_waiting: float
    cores_busy: float
    """share of the cores' time"""


def _play(costs: _Costs, job: Job, layout: Layout, resources: Resources, fragments: int) -> _Played:
    """Batches after batches, each process with its share of the cores, until the time per batch is steady.

    Work is measured in seconds alone on a core. Workers run at one speed and replicas at another, both of which
    change only when someone begins or ends; so a clock per side that runs at its speed tells who ends next.
    """
    tickets = (job.target_staleness + 1) * fragments
    ready = commits = 0
    now = worker_clock = learner_clock = 0.0
    ends: list[float] = []  # by the workers' clock
    update_ends: float | None = None  # by the learner's
    starts_at = 0.0  # by the wall clock: not before this
    worker_s = learner_s = busy_s = began = 0.0
    while True:
        while tickets and len(ends) < layout.workers:
            tickets -= 1
            # Fragments differ a little: workers that began together do not stay in step for ever.
            heapq.heappush(ends, worker_clock + costs.fragment_s * _spread(tickets, len(ends)))
        if update_ends is None and ready >= fragments and now >= starts_at:
            ready -= fragments
            update_ends = learner_clock + costs.update_s + costs.exchange_s
        running = len(ends), layout.replicas * layout.threads if update_ends is not None else 0
        worker_speed, learner_speed = _speeds(*running, resources)
        if layout.threads > 1:
            # The threads of a team wait for each other, so what takes a core from one of them stops all.
            learner_speed **= 2
        waits = []
        if ends:
            waits.append((ends[0] - worker_clock) / worker_speed)
        if update_ends is not None:
            waits.append((update_ends - learner_clock) / learner_speed)
        elif ready >= fragments:
            waits.append(starts_at - now)
        span = max(0.0, min(waits))
        now += span
        worker_clock += span * worker_speed
        learner_clock += span * learner_speed
        if commits >= WARM_UP_BATCHES:
            worker_s += span * running[0]
            learner_s += span * bool(running[1])
            busy_s += span * min(sum(running), resources.cores or sum(running))
        while ends and ends[0] <= worker_clock + 1e-12:
            heapq.heappop(ends)
            ready += 1
        if update_ends is not None and update_ends <= learner_clock + 1e-12:
            update_ends = None
            starts_at = now + costs.turnaround_s
            tickets += fragments
            commits += 1
            if commits == WARM_UP_BATCHES:
                began = now
            if commits == WARM_UP_BATCHES + BATCHES:
                break
    wall = now - began
    cores = resources.cores or layout.processes
    return _Played(
        batch_s=wall / BATCHES,
        worker_waiting=1.0 - worker_s / (wall * layout.workers),
        learner_waiting=1.0 - learner_s / wall,
        cores_busy=busy_s / (wall * cores),
    )


def _spread(ticket: int, running: int) -> float:
    """Between 0.97 and 1.03, 1 on average, the same each time."""
    return 0.97 + 0.06 * ((7 * ticket + 3 * running) % 11) / 10


def _speeds(workers: int, learning: int, resources: Resources) -> tuple[float, float]:
    """Of each running worker and each running thread of a learner, 1 = alone on a machine."""
    if resources.cores is None:
        return 1.0, 1.0
    cores, running = resources.cores, max(1, workers + learning)
    free = max(0.1, cores - resources.background_cores)
    if not resources.learners_first:
        speed = min(1.0, free / running)
        return speed, speed
    learner_speed = min(1.0, free / max(1, learning))
    worker_speed = min(1.0, max(0.02, free - learning * learner_speed) / max(1, workers))
    return worker_speed, learner_speed


def _limited_by(times: ServiceTimes, job: Job, layout: Layout, resources: Resources, played: _Played) -> str:
    useful = (job.target_staleness + 1) * (job.batch_steps // layout.fragment_steps)
    if resources.cores is not None and layout.computing_threads > resources.cores and played.cores_busy > 0.9:
        return "cores"
    busy_workers = layout.workers * (1.0 - played.worker_waiting)
    if played.learner_waiting <= 0.1:
        minibatch = job.minibatch_steps / layout.replicas
        training_s = job.batch_steps * times.learning(minibatch, job.update_epochs, threads=layout.threads)
        exchange_s = _exchange_s(times, job, layout, resources)
        return "exchange" if exchange_s > training_s / layout.replicas else "learner"
    if played.worker_waiting > played.learner_waiting or (layout.workers > useful and busy_workers > 0.5 * useful):
        return "pacing"
    return "environments" if times.environment.at(layout.rows) > times.inference.at(layout.rows) else "inference"
