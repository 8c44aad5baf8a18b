"""The commands and health checks of ``docker/compose.yaml`` run: Redis, head and worker make a cluster that trains."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator

import pytest

from tests.e2e.deploy.place import PASSWORD, TOKEN, Place
from tests.unit.deploy.containers import DOCKER, check_of, command_of, compose, stages

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.skipif(shutil.which("redis-server") is None, reason="redis-server is not installed"),
]

SERVICES = compose()["services"]


@pytest.fixture
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    place = Place(tmp_path_factory.mktemp("compose"))
    for name, secret in (("ray_token", TOKEN), ("redis_password", PASSWORD)):
        (place.directory / "secrets" / name).write_text(secret)
    yield place
    place.end()


def test_redis_head_and_worker_come_up_healthy_and_train(place: Place) -> None:
    head, worker = SERVICES["head"], SERVICES["worker"]
    head_ports, worker_ports = place.agent_ports(), place.agent_ports()

    place.start(command_of(SERVICES["redis"]), {}, name="redis", ports={})
    place.wait_for_success(check_of(SERVICES["redis"]), {}, ports={}, timeout_s=10)
    place.wait_for_node(place.start(command_of(head), head["environment"], name="head", ports=head_ports))
    place.wait_for_success(check_of(head), {}, ports=head_ports)
    place.wait_for_node(place.start(command_of(worker), worker["environment"], name="worker", ports=worker_ports))
    (image_check,) = stages("cpu.Dockerfile")[-1].of("HEALTHCHECK")
    place.wait_for_success(words_of_check(image_check.text), {}, ports=worker_ports)

    train = re.search(r"docker compose exec head (metta-ray train .*)", (DOCKER / "compose.yaml").read_text())
    assert train
    answer = place.run(
        ["bash", "-c", f"{train[1]} --total-timesteps 8192 --evaluate false"],
        head["environment"],
        ports={},
        timeout_s=120,
    )
    assert answer.returncode == 0, answer.stdout[-3000:] + answer.stderr[-3000:]
    assert (place.directory / "data" / "first" / "checkpoints").is_dir()


def words_of_check(instruction: str) -> list[str]:
    """The words after CMD of a HEALTHCHECK."""
    words: list[str] = json.loads(instruction.partition("CMD ")[2])
    return words
