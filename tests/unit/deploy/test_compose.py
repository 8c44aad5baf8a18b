"""The compose file: unprivileged, closed to the outside, and everything it mounts or runs is there."""

from __future__ import annotations

import re

import pytest

from tests.unit.deploy.containers import DOCKER, check_of, command_of, compose

SERVICES = compose()["services"]
OURS = ("head", "worker")

of_every_service = pytest.mark.parametrize("name", SERVICES)


def test_the_services_are_those_of_a_whole_cluster() -> None:
    assert set(SERVICES) == {"head", "worker", "redis", "prometheus", "grafana"}


@of_every_service
def test_a_service_has_no_privileges(name: str) -> None:
    service = SERVICES[name]

    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "network_mode", "cap_add", "pid"} & set(service)


@of_every_service
def test_ports_are_published_on_loopback_only(name: str) -> None:
    for port in SERVICES[name].get("ports", ()):
        assert port.startswith("127.0.0.1:")


@of_every_service
def test_images_are_pinned(name: str) -> None:
    assert re.search(r":v?\d+\.\d+\.\d+", SERVICES[name]["image"])


@of_every_service
def test_a_service_is_healthy_or_not_if_it_lasts(name: str) -> None:
    service = SERVICES[name]

    # The image of workers has a check of its own.
    assert "healthcheck" in service or service["image"].startswith("metta-ray-cpu")
    if "healthcheck" in service:
        assert check_of(service)
    for dependency, how in service.get("depends_on", {}).items():
        assert how == {"condition": "service_healthy"}
        assert "healthcheck" in SERVICES[dependency]


@pytest.mark.parametrize("name", OURS)
def test_ray_asks_for_the_token(name: str) -> None:
    environment = SERVICES[name]["environment"]

    assert environment["RAY_AUTH_MODE"] == "token"
    assert environment["RAY_AUTH_TOKEN_PATH"] == "/run/secrets/ray_token"
    assert "ray_token" in SERVICES[name]["secrets"]


@of_every_service
def test_no_secret_is_in_the_file(name: str) -> None:
    service = SERVICES[name]

    for variable, value in service.get("environment", {}).items():
        if re.search("PASSWORD|TOKEN", variable):
            assert str(value).startswith("/run/secrets/")
    for word in command_of(service) if "command" in service else []:
        for secret in re.findall(r"(?:password|requirepass)[ =]+(\S+)", word):
            assert "$(cat" in secret or secret.startswith("%s")


@of_every_service
def test_volumes_and_secrets_that_are_used_are_declared(name: str) -> None:
    content, service = compose(), SERVICES[name]

    for volume in service.get("volumes", ()):
        source = volume.split(":")[0]
        assert source in content["volumes"] or source.startswith("../"), volume
    assert set(service.get("secrets", ())) <= set(content["secrets"])
    assert set(service["networks"]) <= set(content["networks"])


def test_prometheus_and_grafana_read_the_files_of_this_repository() -> None:
    mounts = [volume for name in ("prometheus", "grafana") for volume in SERVICES[name]["volumes"]]

    ours = {volume.split(":")[0] for volume in mounts if volume.startswith("../")}

    assert ours == {"../deploy/prometheus", "../dashboards/provisioning", "../dashboards/grafana"}
    assert all(volume.endswith(":ro") for volume in mounts if volume.startswith("../"))
    assert all((DOCKER / source).is_dir() for source in ours)


def test_prometheus_sees_the_list_of_nodes_that_the_head_writes() -> None:
    assert "ray:/tmp/ray" in SERVICES["head"]["volumes"]
    assert "ray:/tmp/ray:ro" in SERVICES["prometheus"]["volumes"]


def test_secrets_stay_out_of_the_repository() -> None:
    assert "docker/secrets/" in (DOCKER.parent / ".gitignore").read_text().splitlines()
    assert {secret["file"].split("/")[0] for secret in compose()["secrets"].values()} == {"secrets"}
