"""The commands by which ``ray up`` starts Ray on virtual machines start a cluster of two nodes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.e2e.deploy.place import TOKEN, Place
from tests.ray.harness import ROOT, Session, wait_until

pytestmark = pytest.mark.chaos

CLUSTER = yaml.safe_load((ROOT / "deploy" / "vm" / "aws.yaml").read_text())
AUTOSCALER = " --autoscaling-config=~/ray_bootstrap_config.yaml"
"""Left out: with it the head asks the cloud for machines."""


@pytest.fixture
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    place = Place(tmp_path_factory.mktemp("vm"))
    home = place.directory / "home"
    (home / "venv").symlink_to(sys.prefix)
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text(TOKEN)
    yield place
    place.end()


def test_head_and_worker_find_each_other_with_the_token(place: Place) -> None:
    (start_head,) = [command for command in CLUSTER["head_start_ray_commands"] if "ray start" in command]
    (start_worker,) = [command for command in CLUSTER["worker_start_ray_commands"] if "ray start" in command]
    assert AUTOSCALER in start_head

    head_ports = place.agent_ports()
    head_line = start_head.replace(AUTOSCALER, "") + extra(place, head_ports)
    wait_for_exit(place.start(["bash", "-c", head_line], {}, name="head", ports=head_ports))
    worker_ports = place.agent_ports()
    wait_for_exit(
        place.start(["bash", "-c", start_worker + extra(None, worker_ports)], {}, name="worker", ports=worker_ports)
    )

    status = "ray list nodes --address http://localhost:8265 --filter state=ALIVE | grep -c ALIVE | grep -q '^2$'"
    place.wait_for_success(["bash", "-c", status], {"RAY_AUTH_MODE": "token"}, ports={}, timeout_s=45)


def extra(head_of: Place | None, ports: dict[str, int]) -> str:
    """Two nodes on one machine cannot share ports."""
    line = f" --dashboard-agent-listen-port={ports['52365']} --object-store-memory=200000000"
    return line + (f" --dashboard-port={head_of.ports['8265']}" if head_of else "")


def wait_for_exit(session: Session) -> None:
    wait_until(lambda: session.process.poll() is not None, 60, "ray start has ended")
    assert session.process.returncode == 0, session.output
    assert Path(session.log).read_text().count("Ray runtime started") == 1
