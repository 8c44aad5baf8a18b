"""A process that keeps what it frees does not fetch it from the system again."""

import os
import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys
from metta_ray.common.util.memory import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def use():
    return bytes(64 << 20).count(1)
for _ in range(3):
    use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str, **environment: str) -> int:
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, how], env=os.environ | environment, capture_output=True, text=True, check=True
    )
    return int(run.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_pages_are_found_once():
    given_back = faults("default")
    assert faults("keep") < given_back / 10
    own = faults("keep", MALLOC_MMAP_THRESHOLD_="65536", MALLOC_TRIM_THRESHOLD_="65536")
    assert own > given_back / 2, "what the user has set up stays"
