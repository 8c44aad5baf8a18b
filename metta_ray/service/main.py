"""Starts a run, or finds it running, and stays with it: the driver. Everything that lasts lives elsewhere.

Ray is imported late, since it reads its settings from the environment when that happens.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import signal
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from metta_ray.common.errors import ConfigError, MettaRayError, RunDirectoryInUse, RunUnreachableError
from metta_ray.common.util import fs, mirror, places
from metta_ray.control.plan import Resources
from metta_ray.control.run_state import RunState
from metta_ray.metrics import boards
from metta_ray.metrics.console import Display
from metta_ray.rl.run_directories import check_run_name, name_from_time, set_run_aside
from metta_ray.service.connection import cluster
from metta_ray.service.following import exit_code, show
from metta_ray.service.identity import coordinator_name, namespace_of
from metta_ray.service.layout import chosen_layout, is_open, recorded_choices, with_formulation
from metta_ray.service.measuring import Measured, MeasuringError, measured_here, measured_on_a_node, usable_cores
from metta_ray.service.run_config import JOB_VARIABLE, RunConfig, data_directory, data_place
from metta_ray.service.run_handle import CoordinatorCall, RunHandle
from metta_ray.service.sizes import Sizes, advice, resolved_sizes

HEARTBEAT_S = 1.0
SPARE_CPUS = 1


def run_training(config: RunConfig, *, display: Display) -> int:
    """Trains until the run has ended; returns the exit code: 0 done, 2 bad input, 3 failed, 130 stopped.

    Raises ConfigError and its kind, and RunDirectoryInUse, before anything is started.
    """
    place, data_dir = data_place(config.data_dir, os.environ), data_directory(config.data_dir, os.environ)
    name = config.run or name_from_time(data_dir)
    check_run_name(name)
    remote = places.inside(place, name) if places.is_remote(place) else None
    config = config.model_copy(update={"run": name, "data_dir": place})
    address = config.cluster.address or os.environ.get("RAY_ADDRESS")
    if config.detach and address is None:
        raise ConfigError(
            "detach needs a cluster that outlives this process: give --address host:port (or set RAY_ADDRESS)"
        )
    if address is None and (data_dir / name).exists():
        fs.RunLock.acquire(data_dir / name).release()  # one in use is refused now, not after Ray's start
    display.note(f"starting run {name} " + (f"in the cluster {address}" if address else "on a Ray of its own"))
    environment = _describe_environment(config)
    if remote is not None and address is None:
        _claim(remote, config, data_dir, display)
    elif remote is not None:
        places.require_writable(place)
    if not config.new:
        config = recorded_choices(config, data_dir / name)
    resolved_sizes(config, environment.agents_per_env)  # what cannot work is refused before Ray starts
    measured: Measured | None = None
    if address is None:
        measured = _measured(measured_here, config, display)  # now, while nothing else runs
        config = _settled(config, measured, environment, usable_cores())
    with ExitStack() as stack:
        session = stack.enter_context(_ray(config, address, display))
        interruption = stack.enter_context(Interruption())  # after Ray's start, which installs handlers of its own
        handle = _find(config, name, display)
        if handle is None:
            if address is not None:
                if remote is not None:  # not before: the run might have been going on there
                    _claim(remote, config, data_dir, display)
                    config = config if config.new else recorded_choices(config, data_dir / name)
                config = with_formulation(config, "none", None)  # not every node need be quick in bfloat16
                measured = _measured(measured_on_a_node, config, display)
                config = _settled(config, measured, environment, None)
            session |= {
                "data_dir": str(data_dir),
                "remote": remote,
                "service_times": measured.times.to_json() if measured is not None else None,
                "cores": usable_cores() if address is None else None,
            }
            handle = _start(config, name, data_dir, session, display, environment)
        return _stay(handle, config, display, interruption)


class Interruption:
    """Turns SIGINT and SIGTERM into a wish; the second one acts as usual."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> Interruption:
        self._previous = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.asked = True
        signal.signal(number, self._previous[signal.Signals(number)])


# Ray.


@contextmanager
def _ray(config: RunConfig, address: str | None, display: Display) -> Iterator[dict[str, Any]]:
    """A connection to the named cluster, or a Ray of our own that ends with the block."""
    namespace = namespace_of(str(config.run))
    with cluster(address, namespace) if address is not None else _embedded(config, namespace, display):
        import ray

        from metta_ray.service.ray_facts import metrics_url

        context = ray.get_runtime_context()
        yield {
            "ray_address": address if address not in (None, "auto") else context.gcs_address,
            "dashboard_url": _dashboard_url(),
            "grafana_url": _grafana_url(str(config.run), os.environ),
            "metrics_url": metrics_url(),
            "job_id": _submission_id(),
            "driver_pid": os.getpid(),
        }


def _prepare_environment(auth: str) -> None:
    """Ray reads these when it is imported. The mode is always explicit: Ray's default depends on a file at home."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ["RAY_AUTH_MODE"] = auth
    # Environments and networks in the user's own files are imported from here, in every process.
    paths = [os.getcwd(), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    if auth == "token" and "RAY_AUTH_TOKEN" not in os.environ:
        path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")).expanduser()
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            os.write(descriptor, secrets.token_hex(32).encode())
            os.close(descriptor)


@contextmanager
def _embedded(config: RunConfig, namespace: str, display: Display) -> Iterator[None]:
    """A Ray on this machine that ends with the block."""
    _prepare_environment(config.cluster.auth)
    import ray

    cluster = config.cluster
    port = cluster.dashboard_port or _free_port()
    context = ray.init(
        address="local",
        namespace=namespace,
        num_cpus=cluster.num_cpus or _enough_cpus(config),
        object_store_memory=cluster.object_store_memory,
        include_dashboard=cluster.dashboard,
        dashboard_host="127.0.0.1",
        dashboard_port=port,
        log_to_driver=False,
        logging_level=logging.WARNING,
    )
    if cluster.dashboard and context.dashboard_url:
        token = "; its token: ray get-auth-token" if cluster.auth == "token" else ""
        display.note(f"Ray dashboard: http://{context.dashboard_url}{token}")
    try:
        yield
    finally:
        ray.shutdown()


def _enough_cpus(config: RunConfig) -> int:
    """The embedded Ray counts CPUs to place processes, it does not give them away: a run that was asked for fits."""
    rollout, learner = config.rollout, config.learner
    most = rollout.max_workers or rollout.num_workers
    need = most * rollout.num_cpus + learner.replicas * learner.num_cpus + SPARE_CPUS
    return max(os.cpu_count() or 1, int(-(-need // 1)))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _dashboard_url() -> str | None:
    """Ray has no public way to ask a connected driver for it."""
    try:
        from ray._private.worker import get_dashboard_url
    except ImportError:
        return None
    url = get_dashboard_url()  # type: ignore[no-untyped-call]
    return f"http://{url}" if url else None


def _grafana_url(run: str, environ: Mapping[str, str]) -> str | None:
    """The board of a run, in the Grafana that Ray's dashboard is told of. The first of the two is for browsers."""
    grafana = environ.get("RAY_GRAFANA_IFRAME_HOST") or environ.get("RAY_GRAFANA_HOST")
    return boards.address(boards.OVERVIEW, grafana, run) if grafana else None


def _submission_id() -> str | None:
    """Of the job that this process is the driver of."""
    try:
        job: Mapping[str, Any] = json.loads(os.environ.get(JOB_VARIABLE, "{}"))
    except ValueError:
        return None
    return (job.get("metadata") or {}).get("job_submission_id")


# The coordinator.


def _find(config: RunConfig, name: str, display: Display) -> RunHandle | None:
    """The run, if it is going on in this cluster."""
    import ray

    try:
        actor = ray.get_actor(coordinator_name(name), namespace=namespace_of(name))
    except ValueError:
        return None
    handle = RunHandle(name, CoordinatorCall(name, actor))
    if RunState(handle.status()["state"]).is_final:
        _await_end_of(name)
        return None
    if config.new:
        raise RunDirectoryInUse(f"run {name} is going on in this cluster; metta-ray stop {name} first")
    display.note(f"run {name} is going on already: attached to it")
    return handle


def _start(
    config: RunConfig, name: str, data_dir: Path, session: dict[str, Any], display: Display, environment: _Environment
) -> RunHandle:
    sizes = resolved_sizes(config, environment.agents_per_env)
    for sentence in (*advice(config, sizes), *environment.notes):
        display.note(f"note: {sentence}")
    if config.new:
        aside = set_run_aside(name, data_dir)
        if aside is not None:
            display.note(f"the run of that name is kept as {aside.name}")
        if session["remote"] is not None:
            moved = mirror.set_aside(session["remote"], f".before_{time.strftime('%Y%m%d_%H%M%S')}")
            display.note(
                f"the run of that name is kept as {moved}" if moved else "no run of that name was in the store"
            )
    actor = _create_coordinator(name, config, sizes, environment.spec, session)
    return RunHandle(name, CoordinatorCall(name, actor))


def _claim(remote: str, config: RunConfig, data_dir: Path, display: Display) -> None:
    """The working copy of a run in an object store: the newest that there is, and ours alone."""
    for note in mirror.claim(data_dir / str(config.run), remote, is_fresh=config.new):
        display.note(note)


# What is known before.


@dataclass(frozen=True)
class _Environment:
    """notes: what is allowed and probably not meant, one sentence each."""

    agents_per_env: int
    spec: dict[str, Any]
    notes: tuple[str, ...]


def _describe_environment(config: RunConfig) -> _Environment:
    """Builds the environment once: what cannot work is refused here, before any actor."""
    from metta_ray.agent import spec_json
    from metta_ray.agent.agent_config import agent_config_from
    from metta_ray.mettagrid.curriculum.forecast import curriculum_note
    from metta_ray.rl.vecenv import training_factory

    factory = training_factory(config.trainer)
    spec = factory.spec()
    agent_config_from(config.agent, default_architecture="mlp" if spec.vocabulary is None else "default")
    note = curriculum_note(factory.curriculum(), config.trainer.total_timesteps, spec.agents_per_env)
    return _Environment(spec.agents_per_env, spec_json.to_json(spec), (note,) if note else ())


def _measured(measure: Callable[[RunConfig], Measured], config: RunConfig, display: Display) -> Measured | None:
    """How fast the machine is at this run's work. A run goes on without knowing."""
    if not config.cluster.measure:
        return None
    try:
        return measure(config)
    except MeasuringError as error:
        display.note(f"note: the speed of this machine is not known, so the layout is the usual one: {error}")
        return None


def _settled(config: RunConfig, measured: Measured | None, environment: _Environment, cores: int | None) -> RunConfig:
    """Nothing is left open. cores: of this machine, which all processes share; None: those of the connected cluster,
    one for each process."""
    autocast, gather_conv = (measured.autocast, measured.gather_conv) if measured is not None else ("none", None)
    config = with_formulation(config, autocast, gather_conv)
    if not is_open(config):
        return config
    times = measured.times if measured is not None else None
    processes = cores + 1 if cores is not None else _cluster_processes(config)
    return chosen_layout(config, times, environment.agents_per_env, Resources(cores=cores), processes)


def _cluster_processes(config: RunConfig) -> int:
    from metta_ray.service.ray_facts import total_resources

    cpus_each = max(config.rollout.num_cpus, config.learner.num_cpus, 1.0)
    return max(2, int(total_resources().get("CPU", 2) / cpus_each))


def _create_coordinator(
    name: str, config: RunConfig, sizes: Sizes, spec: dict[str, Any], session: dict[str, Any]
) -> Any:
    import ray

    from metta_ray.service.coordinator import Coordinator
    from metta_ray.service.ray_facts import HEAD, total_resources

    has_head = HEAD in total_resources()
    actor = ray.remote(Coordinator)
    return actor.options(
        name=coordinator_name(name),
        namespace=namespace_of(name),
        lifetime="detached",
        num_cpus=0,
        max_restarts=-1,
        max_task_retries=0,
        max_concurrency=16,
        resources={HEAD: 0.001} if has_head else None,
    ).remote(name, config.model_dump(), sizes, spec, session)


def _await_end_of(name: str) -> None:
    """A coordinator whose run has ended leaves within seconds."""
    import ray

    for _ in range(100):
        try:
            actor = ray.get_actor(coordinator_name(name), namespace=namespace_of(name))
        except ValueError:
            return
        with suppress(ray.exceptions.RayError):
            ray.get(actor.close.remote(), timeout=5.0)
        time.sleep(0.1)
    raise RunUnreachableError(f"an ended coordinator of run {name} does not leave; metta-ray stop {name} --force")


# Staying with it.


def _stay(handle: RunHandle, config: RunConfig, display: Display, interruption: Interruption) -> int:
    """Shows the run until it has ended, or detaches. Every answer renews what the coordinator knows of this driver."""
    driver = uuid.uuid4().hex[:8]
    seen, beat, is_stopping = -1, 0, False
    if not config.detach:
        handle.attach(driver, beat)
    last_beat = time.monotonic()
    while True:
        if interruption.asked and not is_stopping:
            is_stopping = True
            display.note("stopping: what is under way is finished and saved (again to end at once)")
            handle.stop()
        answer = handle.progress(seen, timeout_s=0.5)
        for line in answer["lines"]:
            seen = max(seen, line["number"])
            show(line, display)
        state = RunState(answer["state"])
        if state.is_final:
            return _end(handle, state, answer["result"])
        if config.detach and state is not RunState.STARTING:
            display.note(f"run {handle.run} goes on without this process; metta-ray attach {handle.run} shows it")
            return 0
        if not config.detach and time.monotonic() - last_beat >= HEARTBEAT_S:
            last_beat, beat = time.monotonic(), beat + 1
            handle.attach(driver, beat)


def _end(handle: RunHandle, state: RunState, result: dict[str, Any]) -> int:
    with suppress(MettaRayError):  # it may have left already
        handle.close()
    return exit_code(state, result)
