"""Hosts that are one machine's network namespaces: each with its address, host name and shared memory, on one switch.

    network = Network(3, directory)
    head, first, second = network.hosts
    network.session(head, ["ray", "start", …], env=…, log=…)
    second.unplug()                       # silence, as when somebody pulls the cable
    second.plug()
    network.end()

Files are the same for all of them, as on a shared file system. Everything is named after this process, and removed by
these names.
"""

from __future__ import annotations

import ipaddress
import os
import shutil
import socket
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from tests.ray.harness import Session, wait_until

NETWORKS = ipaddress.ip_network("198.18.0.0/15")  # for tests of network equipment; nobody's real network


class NoNamespacesError(RuntimeError):
    """Why there can be no hosts here."""


class Host:
    def __init__(self, name: str, address: str, cable: str) -> None:
        self.name = name
        self.address = address
        self._cable = cable
        self.anchor: Session | None = None

    def inside(self, command: Sequence[str], directory: Path) -> list[str]:
        """The command as it runs on this host, in that directory."""
        assert self.anchor is not None
        enter = ["nsenter", f"--target={self.anchor.process.pid}", "--mount", "--net", "--uts"]
        return [*enter, "--", "env", "-C", str(directory), *command]

    def unplug(self) -> None:
        ip("link", "set", self._cable, "down")

    def plug(self) -> None:
        ip("link", "set", self._cable, "up")


class Network:
    """A switch, its hosts, and this machine at the address ``.1``. NoNamespacesError where the kernel refuses."""

    def __init__(self, hosts: int, directory: Path) -> None:
        if os.geteuid() != 0:
            raise NoNamespacesError("network namespaces need root")
        missing = [program for program in ("ip", "unshare", "nsenter", "mount") if shutil.which(program) is None]
        if missing:
            raise NoNamespacesError(f"network namespaces need {' and '.join(missing)} (iproute2, util-linux)")
        self.directory = directory
        self._switch = f"mr{os.getpid()}"
        self._sessions: list[Session] = []
        network = free_network()
        self.address = str(network[1])
        self.hosts = [
            Host(f"{self._switch}h{number}", str(network[10 + number]), f"{self._switch}v{number}")
            for number in range(hosts)
        ]
        try:
            ip("link", "add", self._switch, "type", "bridge")
            ip("addr", "add", f"{self.address}/24", "dev", self._switch)
            ip("link", "set", self._switch, "up")
            for host in self.hosts:
                self._add(host)
        except BaseException:
            self.end()
            raise

    def session(self, host: Host, command: Sequence[str], *, env: Mapping[str, str], log: Path) -> Session:
        session = Session(host.inside(command, self.directory), cwd=self.directory, env=env, log=log)
        self._sessions.append(session)
        return session

    def end(self) -> None:
        """Ends what runs on the hosts, then takes everything down; also what is only half there."""
        for session in reversed(self._sessions):
            session.end()
        self._sessions = []
        for command in (*(("netns", "del", host.name) for host in self.hosts), ("link", "del", self._switch)):
            with suppress(NoNamespacesError):
                ip(*command)

    def _add(self, host: Host) -> None:
        cable = host._cable
        ip("netns", "add", host.name)
        ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", host.name)
        ip("link", "set", cable, "master", self._switch, "up")
        ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", "eth0")
        for interface in ("lo", "eth0"):
            ip("-n", host.name, "link", "set", interface, "up")
        # A process that holds the host's other namespaces open. Its last word is that they are as they should be.
        setup = f"hostname {host.name} && mount -t tmpfs -o size=1g tmpfs /dev/shm && echo ready && exec sleep infinity"
        command = ["ip", "netns", "exec", host.name, "unshare", "--mount", "--uts", "sh", "-c", setup]
        log = self.directory / f"{host.name}.log"
        host.anchor = Session(command, cwd=self.directory, env=os.environ, log=log)
        self._sessions.append(host.anchor)

        def is_ready() -> bool:
            assert host.anchor is not None
            if host.anchor.process.poll() is not None:
                raise NoNamespacesError(host.anchor.output.strip())
            return "ready" in host.anchor.output

        wait_until(is_ready, 10.0, f"host {host.name} is there")


def ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode:
        raise NoNamespacesError(f"ip {' '.join(words)}: {done.stderr.strip()}")


def free_network() -> ipaddress.IPv4Network:
    """One that this machine has no address in."""
    taken = [
        ipaddress.ip_address(entry.address)
        for entries in psutil.net_if_addrs().values()
        for entry in entries
        if entry.family == socket.AF_INET
    ]
    candidates = list(NETWORKS.subnets(new_prefix=24))
    start = os.getpid() % len(candidates)
    return next(n for n in candidates[start:] + candidates[:start] if not any(address in n for address in taken))
