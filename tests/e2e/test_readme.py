"""Everything in the README's code blocks runs.

- ```python blocks start with a comment that is their file name. They are written to a directory together with run.py,
  and, if they are a program, run there.
- ```bash blocks are run there line by line, with this Python first in PATH. So that a line takes seconds, SHORTER
  appends options to what would train for minutes; making a virtual environment and installing is left out here
  (.ci/run does both, with the README's own line) and pytest only collects.
- The ```bash block of commands for a live run (its first line is `metta-ray status demo`) is run beside such a run.
- ```console blocks: lines after "$ " are run, the others must be printed by them.
"""

from __future__ import annotations

import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from metta_ray import cli
from metta_ray.mettagrid.curriculum.resolve import resolve_curriculum
from metta_ray.rl.presets import PRESETS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)
INSTALL = re.compile(r"python3 -m venv \.venv && \.venv/bin/pip install -e (\.|'\.\[test\]') && ")

# Where a line would take minutes, what is appended to it (later options win).
SHORTER = {
    ".venv/bin/metta-ray train": "--total-timesteps 16384",
    "metta-ray train --env gym:CartPole-v1": "--total-timesteps 2048",
    "gym:CartPole-v1": "--total-timesteps 4096",
    "mettagrid:arena": "--total-timesteps 12288 --evaluate false",
    "--total-timesteps 100000": "--total-timesteps 10240",
    "--total-timesteps 200000": "--total-timesteps 14336",
    "--fresh": "--total-timesteps 4096",
    "--num-workers 2": "--total-timesteps 4096",
    "--run-name two": "--total-timesteps 8192",
    "my_env:": "--total-timesteps 5120",
    "my_network:": "--total-timesteps 4096",
}


def of_language(language: str) -> list[str]:
    return [text for name, text in BLOCKS if name == language]


def bash_lines() -> list[str]:
    return [line for block in of_language("bash") for line in block.splitlines() if line.strip()]


def file_name(block: str) -> str:
    name = re.match(r"# (\w+\.py)\n", block)
    assert name, f"the first line of a python block names its file: {block[:80]}"
    return name[1]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory as the reader has it: run.py and the files of the README."""
    directory = tmp_path_factory.mktemp("readme")
    shutil.copy(ROOT / "run.py", directory)
    shutil.copytree(ROOT / "deploy", directory / "deploy")
    for block in of_language("python"):
        (directory / file_name(block)).write_text(block)
    return directory


def reader_environment() -> dict[str, str]:
    """Without what other tests set for themselves."""
    ours = ("DATA_DIR", "METTA_RUN", "RAY_AUTH_MODE", "RAY_ADDRESS")
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    return environment | {"PYTHONPATH": str(ROOT)}


def run(command: str, directory: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["timeout", "--signal=TERM", "300", "bash", "-euc", command],
        cwd=directory,
        env=reader_environment(),
        capture_output=True,
        text=True,
    )


def start(command: str, directory: Path) -> subprocess.Popen[bytes]:
    """A command that goes on; its output goes to ``live.log``."""
    with (directory / "live.log").open("wb") as log:
        return subprocess.Popen(
            command.split(), cwd=directory, env=reader_environment(), stdout=log, stderr=log, start_new_session=True
        )


def wait_for_output(process: subprocess.Popen[bytes], text: str, timeout_s: float = 120.0) -> None:
    deadline = time.monotonic() + timeout_s
    log = Path(f"/proc/{process.pid}/cwd/live.log")
    while text not in log.read_text():
        assert process.poll() is None, "it ended early"
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)


def end(process: subprocess.Popen[bytes]) -> None:
    """Everything in its session."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def as_run_here(line: str) -> str:
    """The line without installation, with this environment's programs, and short."""
    options = [more for part, more in SHORTER.items() if part in line]
    line = INSTALL.sub("", line).replace(".venv/bin/", "")
    if line == "pytest":
        return f"pytest --collect-only -q {ROOT / 'tests' / 'unit'} --rootdir {ROOT} -c {ROOT / 'pyproject.toml'}"
    return " ".join([line, *options])


LIVE = "metta-ray status demo"


@pytest.mark.parametrize(
    "block", [b for b in of_language("bash") if not b.startswith(LIVE)], ids=lambda block: block.splitlines()[0]
)
def test_shell_lines_run(block: str, workshop: Path):
    for line in block.splitlines():
        command = as_run_here(line)

        result = run(command, workshop)

        assert result.returncode == 0, f"{command}\n{result.stdout[-2000:]}\n{result.stderr[-4000:]}"
        if "run.py" in line:
            assert "100%" in result.stdout, command
            assert "checkpoint: file://" in result.stdout, command
            assert ("evaluation of model_" in result.stdout) == ("--evaluate false" not in command)
        if "metta-ray train" in line and "--dry-run" not in line:
            assert "100%" in result.stdout, command
            assert "evaluation of model_" in result.stdout, command
        if "--total-timesteps 200000" in line:
            name = "one" if line.startswith("metta-ray") else "first"
            assert f"continuing {name} after epoch 5, 10,240 agent steps" in result.stdout


def test_commands_of_a_live_run(workshop: Path):
    (block,) = [block for block in of_language("bash") if block.startswith(LIVE)]
    training = start("metta-ray train deploy/runs/smoke.yaml --run demo --total-timesteps 10000000", workshop)
    try:
        wait_for_output(training, "epoch 2 ")
        for line in block.splitlines():
            result = run(line, workshop)

            assert result.returncode == 0, f"{line}\n{result.stdout[-2000:]}\n{result.stderr[-4000:]}"
        assert "demo" in result.stdout, "the last one lists the runs"
        assert training.wait(timeout=60) == 130, "it was stopped"
    finally:
        end(training)


@pytest.mark.chaos  # takes a training of its own
def test_commands_that_leave_the_name_of_the_run_to_the_reader(workshop: Path):
    blocks = "".join(of_language("text"))
    lines = [line for line in blocks.splitlines() if line.startswith("metta-ray ") and re.search(r"\bRUN\b", line)]
    training = start("metta-ray train deploy/runs/smoke.yaml --run mine --total-timesteps 10000000", workshop)
    try:
        wait_for_output(training, "epoch 21 ")
        for line in lines:
            newest = max(path.name for path in (workshop / "train_dir" / "mine" / "checkpoints").glob("model_*"))
            here = re.sub(r"\b(RUN|OTHER)\b", "mine", line)
            result = run(re.sub(r"--epoch \d+", f"--epoch {int(newest.removeprefix('model_'))}", here), workshop)

            assert result.returncode == 0, f"{line}\n{result.stdout[-2000:]}\n{result.stderr[-4000:]}"
        assert run("metta-ray stop mine", workshop).returncode == 0
        assert training.wait(timeout=60) == 130, "it was stopped"
    finally:
        end(training)
    assert {line.split()[1] for line in lines} == {"report", "replay", "evaluate", "evaluations", "curriculum"}


def shell_lines(handbook: Path) -> list[str]:
    """All commands that start with metta-ray, also where another program starts them."""
    blocks = re.findall(r"^```(?:text|sh|bash)\n(.*?)^```$", handbook.read_text(), flags=re.DOTALL | re.MULTILINE)
    found = re.findall(r"(?<!namespace )(?:metta-ray|python -m metta_ray) +([a-z]+ .*)", "".join(blocks))
    return [re.split(r" *#| *&| *\|", line)[0] for line in found]


@pytest.mark.parametrize("handbook", ["README.md", "deploy/README.md"])
def test_what_needs_a_cluster_is_at_least_understood(handbook: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    lines = shell_lines(ROOT / handbook)
    for line in lines:
        words = shlex.split(line)
        file = next((word for word in words if word.endswith(".yaml")), None)
        if words[0] in ("train", "submit"):
            if file is None or (ROOT / file).exists():
                assert cli.main([*words, "--dry-run"]) == 0, line
        elif words[0] not in ("bench", "plan"):
            cli.build_parser().parse_args(words)
    assert len(lines) > 10


@pytest.mark.parametrize("block", of_language("console"))
def test_console_example_prints_what_is_shown(block: str, workshop: Path):
    expected: list[tuple[str, list[str]]] = []
    for line in block.splitlines():
        if line.startswith("$ "):
            expected.append((line[2:], []))
        else:
            expected[-1][1].append(line)

    for command, output in expected:
        result = run(command, workshop)
        printed = (result.stdout + result.stderr).splitlines()
        assert [line for line in output if line not in printed] == [], printed
        assert result.returncode == 2, "the examples shown are of refused input"


def test_own_loop_learns_and_continues(workshop: Path):
    first = run("python my_loop.py", workshop)
    assert first.returncode == 0, first.stderr
    rewards = [float(found) for found in re.findall(r"reward ([\d.-]+|nan)", first.stdout)]
    rewards = [reward for reward in rewards if not math.isnan(reward)]

    again = run("sed -i s/60_000/66_000/ my_loop.py && python my_loop.py", workshop)

    assert rewards[0] < 3 < 10 < rewards[-1]
    assert again.stdout.startswith("epoch 31: 63488 agent steps")


def test_quick_start_runs(workshop: Path):
    result = run("python quick_start.py", workshop)

    assert result.returncode == 0, result.stderr


def test_evaluation_example_prints_a_table_and_leaves_replays(workshop: Path):
    train = run("python run.py --preset smoke --run first --fresh --total-timesteps 4096", workshop)
    assert train.returncode == 0, train.stderr

    result = run("python evaluate.py", workshop)

    assert result.returncode == 0, result.stderr
    assert "mettagrid/smoke" in result.stdout
    assert list((workshop / "replays").rglob("*.json.z"))


def test_every_python_block_is_run_by_a_test():
    run_here = {"my_loop.py", "quick_start.py", "evaluate.py"}
    imported = {"my_env.py": "my_env:Corridor", "my_network.py": "my_network:GatedNetwork"}

    names = {file_name(block) for block in of_language("python")}

    assert names == run_here | imported.keys()
    for name in imported.values():
        assert any(name in line for line in bash_lines())
    assert {language for language, _ in BLOCKS} == {"python", "bash", "console", "text", "yaml"}


def test_the_curriculum_in_a_file_is_one(tmp_path):
    (text,) = of_language("yaml")
    (tmp_path / "curriculum.yaml").write_text(text)

    curriculum = resolve_curriculum(str(tmp_path / "curriculum.yaml"))

    assert len(curriculum.task_table().probabilities) == 2


def test_own_loop_is_short():
    (loop,) = [block for block in of_language("python") if file_name(block) == "my_loop.py"]

    assert len(loop.splitlines()) <= 45


def test_presets_table_is_that_of_the_code():
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in README.splitlines() if line.startswith("| `")]

    listed = {row[0].strip("`"): int(row[3].replace(",", "")) for row in rows}

    assert listed == {name: preset["trainer"]["total_timesteps"] for name, preset in PRESETS.items()}


def test_folders_of_the_picture_exist_and_none_is_missing():
    (picture,) = [block for block in of_language("text") if "metta_ray/api.py" in block]
    shown = {line.split()[0] for line in picture.splitlines()}

    assert [path for path in shown if not (ROOT / path).exists()] == []
    folders = {f"metta_ray/{path.parent.name}" for path in (ROOT / "metta_ray").glob("*/__init__.py")}
    assert folders <= shown


def test_ci_takes_its_commands_from_the_readme():
    lines = bash_lines()

    assert len([line for line in lines if INSTALL.match(line)]) == 2
    assert lines[1].endswith(".venv/bin/pytest")
    assert "README.md" in (ROOT / ".ci" / "run").read_text()
