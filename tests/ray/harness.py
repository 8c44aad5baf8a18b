"""Runs in processes of their own on a real Ray, watched from outside, with everything ended that was started.

    run = lab.train("--preset", "cartpole", run="a")      # python -m metta_ray train …
    run.wait_for_version(3)
    os.kill(run.pid_of("rollout-0"), signal.SIGKILL)
    run.wait_for_end(0)
    run.check_books()

Every process gets a session of its own, which its children stay in, so that they are found and ended by the ids of
that session and nothing else is ever touched.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from metta_ray.control.ledger import Ledger
from metta_ray.service.audit import EVENTS, audit_run
from metta_ray.service.connection import Where, recorded
from metta_ray.state.journal import SNAPSHOT, read_records

ROOT = Path(__file__).parents[2]
INSIDE = Path(__file__).parent / "inside"
REMOTE_CONTROL = Path(__file__).parent / "remote_control.py"
ROLES = ("rollout", "learner", "evaluator", "coordinator")
START_S = 90.0
END_S = 120.0
SLACK = 6.0
"""Times of the issue are asserted with this factor: test machines are shared and have two cores."""


LABS: list[Lab] = []
"""Those that have not ended."""


class LeftOverError(AssertionError):
    """A process outlived its session's end."""


def wait_until(condition: Callable[[], Any], timeout_s: float, what: str = "", *, every_s: float = 0.05) -> Any:
    """What the condition returns, as soon as that is true; AssertionError when the time is over."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:g} s: {what or condition}")
        time.sleep(every_s)


def free_port() -> int:
    """Below the range that Ray gives its workers ports from."""
    for _ in range(1000):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if port > 20000:
            return port
    raise AssertionError("no free port")


class Session:
    """A process and all that it started. Its output goes to a file."""

    def __init__(
        self, command: Sequence[str], *, cwd: Path, env: Mapping[str, str], log: Path, stdin: int | None = None
    ) -> None:
        self.log = log
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                list(command), cwd=cwd, env=dict(env), stdin=stdin, stdout=output, stderr=output, start_new_session=True
            )

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def members(self) -> list[psutil.Process]:
        """Living processes of the session."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, ProcessLookupError, PermissionError):
                if os.getsid(process.pid) == self.process.pid and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def end(self) -> None:
        """TERM to all, then KILL until none is left: Ray's processes outlive a TERM, and start others meanwhile."""
        for patience_s, number in ((1.0, signal.SIGTERM), *[(3.0, signal.SIGKILL)] * 5):
            members = self.members()
            for member in members:
                with suppress(psutil.Error):
                    member.send_signal(number)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(patience_s)
            psutil.wait_procs(members, timeout=patience_s)
            if not self.members():
                return
        raise LeftOverError(f"still there: {self.members()}")


class Head:
    """A cluster that outlives its runs: ``ray start --head`` in a session of its own."""

    def __init__(
        self,
        lab: Lab,
        *,
        num_cpus: int,
        env: Mapping[str, str],
        dashboard: bool,
        object_store_memory: int,
        autoscaling: Callable[[int], Path] | None,
        own_env: Mapping[str, str],
        options: Sequence[str],
    ) -> None:
        """autoscaling: the cluster's port → the file of settings for Ray's autoscaler. own_env, options: of the head
        alone, not of its nodes."""
        self.port, self.dashboard_port = free_port(), free_port()
        self.address = f"{node_address()}:{self.port}"
        self.dashboard_url = f"http://127.0.0.1:{self.dashboard_port}"
        self.env = lab.environment(env)
        self._lab = lab
        self.temp_dir = Path(tempfile.mkdtemp(prefix="mr"))
        words = [
            "start",
            "--head",
            "--block",
            f"--port={self.port}",
            f"--num-cpus={num_cpus}",
            f"--temp-dir={self.temp_dir}",
            f"--include-dashboard={str(dashboard).lower()}",
            f"--dashboard-port={self.dashboard_port}",
            "--dashboard-host=127.0.0.1",
            f"--dashboard-agent-listen-port={free_port()}",
            f"--object-store-memory={object_store_memory}",
            "--disable-usage-stats",
            *options,
        ]
        if autoscaling is not None:
            words.append(f"--autoscaling-config={autoscaling(self.port)}")
        # --temp-dir says it; nodes and drivers that join are told by the head.
        self.env.pop("RAY_TMPDIR")
        self._command, self._own_env = [ray_command(), *words], {**self.env, **own_env}
        self.session = self._start()
        self.nodes: list[Session] = []

    def _start(self) -> Session:
        return Session(self._command, cwd=self._lab.directory, env=self._own_env, log=self._lab.log("head"))

    def kill(self) -> None:
        """All of its processes at once, as when a machine is lost; its nodes stay."""
        while members := self.session.members():
            for member in members:
                with suppress(psutil.Error):
                    member.kill()
            self.session.process.wait()
            psutil.wait_procs(members, timeout=3.0)

    def start_again(self) -> None:
        """At the same address, as whoever looks after a head does."""
        # Names the head before; Ray would not start beside it.
        (self.temp_dir / "ray_current_cluster").unlink(missing_ok=True)
        self.session = self._start()
        self.wait_until_up()

    def wait_until_up(self) -> None:
        def is_up() -> bool:
            assert self.session.process.poll() is None, self.session.output
            return "Ray runtime started" in self.session.output

        wait_until(is_up, START_S, f"the cluster is up\n{self.session.output}")

    def add_node(self, *, num_cpus: int, resources: Mapping[str, float] | None = None) -> Session:
        words = [
            "start",
            f"--address={self.address}",
            "--block",
            f"--num-cpus={num_cpus}",
            f"--resources={json.dumps(dict(resources or {}))}",
            f"--dashboard-agent-listen-port={free_port()}",
            "--object-store-memory=200000000",
            "--disable-usage-stats",
        ]
        node = Session([ray_command(), *words], cwd=self._lab.directory, env=self.env, log=self._lab.log("node"))
        self.nodes.append(node)
        wait_until(lambda: "Ray runtime started" in node.output, START_S, "the node is up")
        return node

    def end(self) -> None:
        for node in self.nodes:
            node.end()
        self.session.end()
        shutil.rmtree(self.temp_dir, ignore_errors=True)


class Lab:
    """Where the runs of one test, or of several that share them, live.

    variables: of every program beside the usual ones. enter: words before a command that joins a cluster, for one
    that only its own hosts can join."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.data_dir = directory / "runs"
        self.variables: dict[str, str] = {}
        self.enter: list[str] = []
        self.ray_dir = Path(tempfile.mkdtemp(prefix="mr"))  # short: sockets lie in it
        self._logs = 0
        self._heads: list[Head] = []
        self._runs: list[Run] = []
        LABS.append(self)

    @property
    def runs(self) -> list[Run]:
        return self._runs

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        return {
            **kept,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # a job's python is looked up there
            "PYTHONPATH": f"{INSIDE}:{ROOT}",
            "OMP_NUM_THREADS": "1",
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_TMPDIR": str(self.ray_dir),
            "ORACLE_ROOT": str(self.directory / "oracle"),
            **self.variables,
            **(extra or {}),
        }

    def log(self, name: str) -> Path:
        self._logs += 1
        return self.directory / f"{self._logs:02d}-{name}.log"

    def head(
        self,
        *,
        num_cpus: int = 8,
        env: Mapping[str, str] | None = None,
        dashboard: bool = False,
        object_store_memory: int = 400_000_000,
        autoscaling: Callable[[int], Path] | None = None,
        own_env: Mapping[str, str] | None = None,
        options: Sequence[str] = (),
    ) -> Head:
        head = Head(
            self,
            num_cpus=num_cpus,
            env=env or {},
            dashboard=dashboard,
            object_store_memory=object_store_memory,
            autoscaling=autoscaling,
            own_env=own_env or {},
            options=options,
        )
        self._heads.append(head)
        head.wait_until_up()
        return head

    def train(
        self,
        *options: object,
        run: str,
        head: Head | None = None,
        data_dir: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Run:
        """Starts a training and returns at once. On ``head``, else on a Ray of its own."""
        words = ["--run", run, "--data-dir", str(data_dir or self.data_dir), "--cluster.measure", "false"]
        if head is None:
            words += ["--cluster.auth", "disabled", "--cluster.dashboard", "false"]
            words += ["--cluster.object-store-memory", "400000000"]
        else:
            words += ["--address", head.address]
        command = [sys.executable, "-m", "metta_ray", "train", *words, *map(str, options)]
        return self._start(run, head, data_dir, command, self.environment(env), self.directory)

    def submit(self, *options: object, run: str, head: Head, working_dir: Path) -> Run:
        """``ray job submit`` in a directory with files of the user's own; ends with the job."""
        command = [ray_command(), "job", "submit", "--address", head.dashboard_url, "--working-dir", "."]
        command += ["--submission-id", f"job-{run}", "--", "python", "-m", "metta_ray", "train", "--run", run]
        command += ["--data-dir", str(self.data_dir), "--cluster.measure", "false", *map(str, options)]
        return self._start(run, head, None, command, self.environment(), working_dir)

    def _start(
        self,
        name: str,
        head: Head | None,
        data_dir: Path | None,
        command: Sequence[str],
        env: Mapping[str, str],
        cwd: Path,
    ) -> Run:
        session = Session(command, cwd=cwd, env=env, log=self.log(name))
        run = Run(self, name, data_dir or self.data_dir, head, session)
        self._runs.append(run)
        return run

    def command(self, *words: object) -> subprocess.CompletedProcess[str]:
        """``metta-ray`` with these words, until it ends."""
        return self.program(*self.enter, sys.executable, "-m", "metta_ray", *words)

    def program(self, *words: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(word) for word in words],
            cwd=self.directory,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=END_S,
        )

    def end_runs(self) -> None:
        """Also those that outlive their drivers; clusters stay."""
        for run in self._runs:
            run.end()
        self._runs = []

    def end(self) -> None:
        for started in (*self._runs, *self._heads):
            started.end()
        self._runs, self._heads = [], []
        LABS.remove(self)
        shutil.rmtree(self.ray_dir, ignore_errors=True)


class Run:
    """A training that was started, and everything that can be seen of it."""

    def __init__(self, lab: Lab, name: str, data_dir: Path, head: Head | None, session: Session) -> None:
        self.name = name
        self.data_dir = data_dir
        self.run_dir = data_dir / name
        self.oracle = lab.directory / "oracle" / name
        for folder in ("pids", "steps", "digests", "journal", "faults"):
            (self.oracle / folder).mkdir(parents=True, exist_ok=True)
        self.head = head
        self.session = session
        self._lab = lab
        self._remote: RemoteControl | None = None

    @property
    def driver(self) -> subprocess.Popen[bytes]:
        return self.session.process

    @property
    def output(self) -> str:
        return self.session.output

    # Asking the run.

    @property
    def remote(self) -> RemoteControl:
        if self._remote is None or not self._remote.is_alive:
            self._remote = RemoteControl(self._lab, self)
        return self._remote

    def status(self) -> dict[str, Any]:
        answer: dict[str, Any] = self.remote.ask("status")
        return answer

    def ask(self, method: str, *arguments: Any) -> dict[str, Any]:
        answer: dict[str, Any] = self.remote.ask(method, *arguments)
        return answer

    # Files.

    def records(self) -> list[dict[str, Any]]:
        """The journal as it is now."""
        path = self.run_dir / "journal.log"
        return list(read_records(path)) if path.exists() else []

    def books(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """The whole journal as if it had never been compacted, and what is in its file; both of one moment."""

        def kept_journals() -> list[Path]:
            return sorted((self.oracle / "journal").glob("*.log"))

        while True:
            paths = kept_journals()
            kept = [list(read_records(path)) for path in paths]
            now = self.records()
            # A lone snapshot is compacted to itself.
            is_being_compacted = bool(kept) and len(kept[-1]) > 1 and now[: len(kept[-1])] == kept[-1]
            if not is_being_compacted and kept_journals() == paths:
                whole = [record for part in [*kept, now] for record in part if record["kind"] != SNAPSHOT]
                return whole, now
            time.sleep(0.05)

    def history(self) -> list[dict[str, Any]]:
        """The whole journal, without what compaction put in the place of records."""
        return self.books()[0]

    def ledger(self) -> Ledger:
        return ledger_of(self.records())

    @property
    def version(self) -> int:
        """Number of committed updates, read from the disk, so also while no coordinator lives."""
        return self.ledger().version

    def metrics(self) -> list[dict[str, Any]]:
        path = self.run_dir / "metrics.jsonl"
        text = path.read_text() if path.exists() else ""
        return [json.loads(line) for line in text.splitlines() if line.endswith("}")]

    def checkpoints(self) -> list[str]:
        return sorted(path.name for path in (self.run_dir / "checkpoints").glob("model_*"))

    # Processes.

    def pid_of(self, who: str) -> int:
        return int((self.oracle / "pids" / who).read_text())

    def children(self, role: str, *, alive: bool = True) -> dict[int, int]:
        """Number → pid of those that have finished starting."""
        found = {}
        for path in (self.oracle / "pids").glob(f"{role}-*"):
            with suppress(ValueError, FileNotFoundError):
                number, pid = int(path.name.rpartition("-")[2]), int(path.read_text())
                if not alive or is_alive(pid):
                    found[number] = pid
        return dict(sorted(found.items()))

    def coordinator_pid(self) -> int:
        return max(self.children("coordinator").items())[1]

    def let_off(self, point: str, fault: str) -> None:
        """The next process that reaches the point does what the fault says."""
        path = self.oracle / "faults" / point
        path.with_suffix(".new").write_text(fault)
        path.with_suffix(".new").rename(path)

    def was_let_off(self, point: str) -> str:
        """Who obeyed the last fault of this point; '' as long as nobody has."""
        taken = sorted((self.oracle / "faults").glob(f"{point}.taken-by-*"), key=lambda path: path.name.split("-")[-1])
        return taken[-1].name.partition("taken-by-")[2].rpartition("-")[0] if taken else ""

    def let_off_and_wait(self, point: str, fault: str, timeout_s: float = 30.0) -> tuple[str, float]:
        """(who obeyed, when)."""
        before = len(list((self.oracle / "faults").glob(f"{point}.taken-by-*")))
        self.let_off(point, fault)
        wait_until(
            lambda: len(list((self.oracle / "faults").glob(f"{point}.taken-by-*"))) > before,
            timeout_s,
            f"somebody comes to {point}",
            every_s=0.01,
        )
        return self.was_let_off(point), time.monotonic()

    # Waiting.

    def wait_for_version(self, version: int, timeout_s: float = START_S) -> float:
        """Until so many updates are committed; the seconds that took."""
        began = time.monotonic()

        def is_there() -> bool:
            self.require_driver()
            return self.version >= version

        wait_until(is_there, timeout_s, f"version {version} of {self.name}")
        return time.monotonic() - began

    def require_driver(self) -> None:
        code = self.driver.poll()
        assert code in (None, 0), f"the driver of {self.name} has ended with {code}\n{self.output}"

    def wait_for_status(
        self, condition: Callable[[dict[str, Any]], Any], what: str, timeout_s: float = START_S
    ) -> dict[str, Any]:
        seen: dict[str, Any] = {}

        def holds() -> bool:
            self.require_driver()
            seen.clear()
            try:
                seen.update(self.status())
            except RemoteError as error:  # a coordinator on its way back
                seen["error"] = str(error)
                return False
            return bool(condition(seen))

        try:
            wait_until(holds, timeout_s, what, every_s=0.1)
        except AssertionError as error:
            raise AssertionError(f"{error}; status: {json.dumps(seen, default=str)}") from None
        return seen

    def wait_for_end(self, expect: int | None = 0, timeout_s: float = END_S) -> str:
        """What the driver printed, once it has ended with the code ``expect``."""
        self.hang_up()
        try:
            code = self.driver.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} has not ended after {timeout_s:g} s\n{self.describe()}") from None
        assert expect in (None, code), f"exit code {code}\n{self.describe()}"
        return self.output

    def finish(self, more_updates: int = 2, timeout_s: float = END_S) -> str:
        """Lets an endless run come to its regular end."""
        ledger = self.ledger()
        steps = ledger.agent_step + more_updates * (ledger.agent_step // max(1, ledger.version))
        self.ask("set", "trainer.total_timesteps", steps)
        return self.wait_for_end(0, timeout_s)

    # Checking.

    def check_books(self) -> None:
        """Ledger balanced, no ticket trained twice, versions in order, steps equal to what environments counted."""
        result = audit_run(self.run_dir)
        assert result.is_balanced, result.fault
        counted_before = self.counted_steps()
        history, now = self.books()
        totals = ledger_of(history).totals()
        assert totals["imbalance"] == 0
        assert totals == ledger_of(now).totals(), "compaction has not changed the ledger"
        assert_versions_in_order(history)
        assert_no_ticket_trained_twice(history)
        self.check_steps(history, counted_before)

    def check_steps(self, history: Sequence[Mapping[str, Any]], counted_before: Mapping[int, int]) -> None:
        """What each worker delivered is what its environments did, but for tickets that were lost.

        counted_before: what they had done when the history was read; in a run that goes on it is more by now.
        """
        delivered: Counter[int] = Counter()
        owed: Counter[int] = Counter()
        issued: dict[int, tuple[int, int]] = {}
        for record in history:
            match record["kind"]:
                case "issue":
                    issued[record["ticket"]] = (record["worker"], record["steps"])
                case "deliver":
                    worker, steps = issued.pop(record["ticket"])
                    delivered[worker] += steps
        for worker, steps in issued.values():
            owed[worker] += steps
        counted = self.counted_steps()
        assert set(delivered) <= set(counted), "workers delivered that the oracle never saw"
        for worker, steps in counted.items():
            low, high = delivered[worker], delivered[worker] + owed[worker]
            about = (
                f"environments of rollout-{worker} did {steps} agent steps; its fragments hold {low}, "
                f"tickets that never came back up to {high - low} more"
            )
            assert low <= steps, about
            assert counted_before.get(worker, 0) <= high, about

    def counted_steps(self) -> dict[int, int]:
        """Worker → agent steps that its environments counted."""
        return {
            int(path.name.rpartition("-")[2]): int.from_bytes(path.read_bytes(), "little")
            for path in (self.oracle / "steps").glob("rollout-*")
        }

    def check_replicas(self) -> int:
        """All replicas had the same weights after each update; how many updates that could be seen for."""
        by_update: dict[str, set[str]] = defaultdict(set)
        seen: Counter[str] = Counter()
        for path in (self.oracle / "digests").glob("learner-*"):
            for line in path.read_text().splitlines():
                update, _, digest = line.rpartition(" ")
                by_update[update].add(digest)
                seen[update] += 1
        different = [update for update, digests in by_update.items() if len(digests) > 1]
        assert not different, f"replicas differ after (group, version) {different}"
        return sum(1 for count in seen.values() if count > 1)

    def check_nothing_is_left(self, timeout_s: float = 10.0 * SLACK) -> float:
        """No process of the run, no actor, no bytes in the object store; how long that took."""
        began = time.monotonic()
        actors = lambda: [name for name in self.ask("named_actors") if name.startswith(f"metta-{self.name}/")]  # noqa: E731
        living = lambda: [pid for role in ROLES for pid in self.children(role).values()]  # noqa: E731
        wait_until(lambda: not living(), timeout_s, "all processes are gone")
        wait_until(lambda: not actors(), timeout_s, "all actors are gone")
        wait_until(lambda: self.ask("object_store_bytes") == 0, timeout_s, "the object store is empty")
        return time.monotonic() - began

    def recorded_state(self) -> str:
        """What the store of runs says, for which nothing of the run need be alive."""
        record = recorded(Where.of(str(self.data_dir), None, None, {}), self.name)
        return record.state if record is not None else ""

    # Ending.

    def hang_up(self) -> None:
        if self._remote is not None:
            self._remote.close()
            self._remote = None

    def end(self) -> None:
        self.hang_up()
        self.session.end()
        if self.head is not None and any(self.children(role) for role in ROLES):
            self._lab.command("stop", self.name, "--force", "--data-dir", self.data_dir)

    def describe(self) -> str:
        """For the message of a failed test."""
        parts = [f"== output of {self.name}\n{self.output[-6000:]}"]
        with suppress(Exception):
            parts.append(f"== ledger\n{json.dumps(self.ledger().totals(), indent=1)}")
        with suppress(Exception):
            parts.append("== last records\n" + "\n".join(str(record)[:300] for record in self.records()[-30:]))
        with suppress(Exception):
            if self.driver.poll() is None:
                parts.append(f"== status\n{json.dumps(self.status(), indent=1, default=str)}")
        with suppress(OSError):
            logs = sorted(self.run_dir.rglob("*.log"))
            parts += [f"== {path.name}\n{path.read_text()[-4000:]}" for path in logs if path.name != "journal.log"]
        return "\n".join(parts)


class RemoteControl:
    """Another process that is connected to the run's cluster: Ray ends what is connected to a cluster that ends."""

    def __init__(self, lab: Lab, run: Run) -> None:
        command = [
            *lab.enter,
            sys.executable,
            str(REMOTE_CONTROL),
            run.name,
            str(run.data_dir),
            run.head.address if run.head else "",
        ]
        self._log = lab.log(f"remote-{run.name}").open("wb")
        self._process = subprocess.Popen(
            command,
            env=lab.environment(),
            cwd=lab.directory,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            start_new_session=True,
        )
        hello = self._read()
        assert hello.get("ok"), hello

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, method: str, *arguments: Any) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([method, *arguments]) + "\n")
        self._process.stdin.flush()
        answer = self._read()
        if "error" in answer:
            raise RemoteError(answer["error"])
        return answer["value"]

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RemoteError("the remote control has ended: " + Path(self._log.name).read_text()[-2000:])
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        with suppress(OSError, ValueError, subprocess.TimeoutExpired):
            self._process.communicate("", timeout=10.0)
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._log.close()


class RemoteError(RuntimeError):
    """What a question to a run raised over there."""


def is_alive(pid: int) -> bool:
    with suppress(psutil.Error):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def kill(pid: int, number: int = signal.SIGKILL) -> float:
    """Sends a signal; when that was."""
    os.kill(pid, number)
    return time.monotonic()


def ledger_of(records: Sequence[Mapping[str, Any]]) -> Ledger:
    """The ledger that these records of a journal lead to."""
    ledger = Ledger()
    for record in records:
        if record["kind"] == SNAPSHOT:
            ledger.load_state_dict(record["state"]["ledger"])
        elif record["kind"] in EVENTS:
            ledger.apply(record)
    return ledger


def assert_versions_in_order(history: Sequence[Mapping[str, Any]]) -> None:
    version = 0
    for record in history:
        if record["kind"] in ("roll_back", "adopt"):
            version = record["version"]
        elif record["kind"] == "commit":
            assert record["version"] == version + 1, record
            version = record["version"]


def assert_no_ticket_trained_twice(history: Sequence[Mapping[str, Any]]) -> None:
    trained = [ticket for record in history if record["kind"] == "commit" for ticket in record["tickets"]]
    twice = [ticket for ticket, times in Counter(trained).items() if times > 1]
    assert not twice, f"tickets {twice} were trained twice"


def staleness_of(history: Sequence[Mapping[str, Any]]) -> list[int]:
    """Of every fragment that was trained on."""
    acted: dict[int, int] = defaultdict(int)
    lags = []
    for record in history:
        if record["kind"] == "deliver":
            acted[record["ticket"]] = record["version"]
        elif record["kind"] == "commit":
            lags += [record["version"] - 1 - acted[ticket] for ticket in record["tickets"]]
    return lags


def node_address() -> str:
    from ray.util import get_node_ip_address

    return str(get_node_ip_address())


def ray_command() -> str:
    return str(Path(sys.executable).parent / "ray")


def living_runs() -> list[Run]:
    """The last ones of all labs that have not ended."""
    return [run for lab in LABS for run in lab.runs[-3:]]
