"""Where a child lives and what is installed there."""

from __future__ import annotations

from dataclasses import replace

import pytest

from metta_ray.common.errors import ConfigError
from metta_ray.rl.run_directories import package_versions
from metta_ray.service.process_info import MUST_AGREE, ProcessInfo, require_same_versions


def test_a_child_with_the_same_packages_is_accepted():
    info = ProcessInfo.of_this_process("a")

    require_same_versions(package_versions(), "rollout-0", info)


@pytest.mark.parametrize("package", MUST_AGREE)
def test_another_version_on_a_node_is_refused_with_both_named(package: str):
    info = ProcessInfo.of_this_process("a")
    other = replace(info, host="node-7", versions=info.versions | {package: "0.0.1"})

    with pytest.raises(ConfigError, match=rf"{package} is .* on the coordinator's node and 0\.0\.1 on node-7"):
        require_same_versions(package_versions(), "rollout-0", other)
