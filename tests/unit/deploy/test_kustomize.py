"""The reader of these tests and kubectl agree on every overlay."""

from __future__ import annotations

import shutil
import subprocess
from typing import Any

import pytest
import yaml

from tests.unit.deploy.manifests import DIRECTORIES, KUBERAY, objects

kubectl = shutil.which("kubectl")


@pytest.mark.parametrize("directory", DIRECTORIES)
@pytest.mark.skipif(kubectl is None, reason="kubectl is not installed")
def test_kubectl_builds_what_these_tests_read(directory: str) -> None:
    answer = subprocess.run(
        [str(kubectl), "kustomize", str(KUBERAY / directory)], capture_output=True, text=True, timeout=60
    )

    assert answer.returncode == 0, answer.stderr
    built = list(yaml.load_all(answer.stdout, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
    assert sorted(built, key=_identity) == sorted(objects(directory), key=_identity)


def _identity(one: dict[str, Any]) -> tuple[str, str]:
    return one["kind"], one["metadata"]["name"]
