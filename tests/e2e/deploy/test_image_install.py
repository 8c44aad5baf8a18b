"""The Python steps of the CPU image run in a clean environment, in their order, on what the image would copy.

The other image differs from it in the line that installs torch alone (``tests/unit/deploy/test_dockerfiles.py``).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from tests.ray.harness import ROOT
from tests.unit.deploy.containers import stages

pytestmark = pytest.mark.chaos


def test_installing_and_the_default_command_work(tmp_path: Path) -> None:
    foreign, own, runtime = stages("cpu.Dockerfile")
    image = Image(tmp_path)

    for stage in (foreign, own):
        for one in stage.instructions:
            if one.word == "COPY":
                image.copy(one.words)
            if one.word == "RUN":
                image.run(one.shell)
    (install,) = [one.shell for one in runtime.of("RUN") if "pip install" in one.shell]
    image.run(install)

    (default,) = runtime.of("CMD")
    assert "train" in image.run(" ".join(default.words))
    image.run("metta-ray train --preset navigation --dry-run")
    versions = image.run("python -c 'import mettagrid, ray, torch; print(ray.__version__, torch.__version__)'")
    ray_version, torch_version = versions.split()
    assert ray_version == metadata.version("ray")
    # Behind the "+": for which device, which is the image's own choice.
    assert torch_version.partition("+")[0] == metadata.version("torch").partition("+")[0]
    where = image.run("cd / && python -c 'import metta_ray; print(metta_ray.__file__)'")
    assert where.startswith(str(tmp_path)), "our own code is inside of the image, not a link to the sources"


class Image:
    """A directory that stands for the image's file system."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._source = root / "src"
        self._source.mkdir()

    def copy(self, words: list[str]) -> None:
        *sources, target = words
        for source in sources:
            path = ROOT / source
            into = self._source / target
            if path.is_dir():
                shutil.copytree(path, into, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(path, into)

    def run(self, command: str) -> str:
        """A RUN, with the image's directories where they are here, and its Python as ours."""
        for there in ("/opt/metta-ray", "/wheels"):
            command = command.replace(there, str(self._root / there.strip("/")))
        if "-m venv" in command:
            command = command.replace("python ", f"{sys.executable} ", 1)
        kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
        answer = subprocess.run(
            ["bash", "-euc", command],
            cwd=self._source,
            env=kept
            | {
                "PATH": f"{self._root}/opt/metta-ray/bin:{os.environ['PATH']}",
                "TORCH_INDEX": package_index(),
                "PIP_DISABLE_PIP_VERSION_CHECK": "1",
                "PYTHONDONTWRITEBYTECODE": "1",
            },
            capture_output=True,
            text=True,
            timeout=500,
        )
        assert answer.returncode == 0, f"{command}\n{answer.stdout[-2000:]}\n{answer.stderr[-3000:]}"
        return answer.stdout


def package_index() -> str:
    """Where this machine gets packages; the index of wheels without CUDA may be out of reach."""
    answer = subprocess.run(
        [sys.executable, "-m", "pip", "config", "get", "global.index-url"], capture_output=True, text=True
    )
    return os.environ.get("PIP_INDEX_URL") or answer.stdout.strip() or "https://pypi.org/simple"
