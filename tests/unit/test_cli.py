"""The command line: what it understands, what it refuses, and how soon."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from metta_ray import cli
from metta_ray.common.errors import ConfigError, RunUnreachableError
from metta_ray.service import connection
from metta_ray.service.connection import Where, put_record
from metta_ray.service.run_config import RunConfig
from metta_ray.state.journal import Journal
from metta_ray.state.records import RunRecord

ROOT = Path(__file__).parents[2]
COMMANDS = ("train", "submit", "status", "attach", "logs", "scale", "pause", "unpause", "checkpoint", "set", "stop")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("DATA_DIR", "METTA_RUN", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


class Handle:
    """A run that answers, and remembers what it was asked."""

    def __init__(self, **answers: Any):
        self.calls: list[tuple[Any, ...]] = []
        self.answers = answers

    def __getattr__(self, method: str) -> Any:
        def call(*arguments: Any) -> Any:
            self.calls.append((method, *arguments))
            answer = self.answers.get(method, {"ok": True, "message": f"{method} is done"})
            if isinstance(answer, Exception):
                raise answer
            return answer

        return call


@pytest.fixture
def live(monkeypatch: pytest.MonkeyPatch):
    """Makes every run answer by the given handle."""

    def use(handle: Handle) -> Handle:
        @contextmanager
        def connected(_: Where, run: str):
            handle.calls.append(("connect", run))
            yield handle

        monkeypatch.setattr(connection, "connected", connected)
        return handle

    return use


def store_run(tmp_path: Path, **changes: Any) -> None:
    facts: dict[str, Any] = {"run_dir": str(tmp_path / "train_dir" / "nav-7"), "state": "done", "generation": 1}
    record = RunRecord(name="nav-7", started=1.0, updated=time.time(), **(facts | changes))
    put_record(Where.of(None, None, None, {}), record)


def loaded_by(*words: str) -> tuple[set[str], str]:
    """Top-level modules loaded by a command in a process of its own, and what it printed."""
    code = (
        f"import sys, metta_ray.cli\ntry:\n    metta_ray.cli.main({list(words)!r})\nexcept SystemExit:\n    pass\n"
        "print('\\n' + ' '.join(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    printed, _, names = done.stdout.rstrip().rpartition("\n")
    return set(names.split()), printed


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["status", "--help"]])
def test_help_loads_nothing_and_so_comes_at_once(words: list[str]):
    loaded, printed = loaded_by(*words)

    assert loaded & {"torch", "ray", "mettagrid", "pydantic", "rich", "numpy"} == set()
    assert "usage: metta-ray" in printed


def test_a_dry_run_loads_neither_torch_nor_ray_nor_an_engine():
    for command in ("train", "submit"):
        loaded, printed = loaded_by(command, "deploy/runs/smoke.yaml", "--dry-run")

        assert loaded & {"torch", "ray", "mettagrid"} == set()
        assert "preset: smoke" in printed


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        cli.main(["--help"])

    shown = capsys.readouterr().out
    assert ended.value.code == 0
    for name in (*COMMANDS, "runs", "audit", "bench"):
        assert name in shown


def test_a_dry_run_prints_the_settings_that_it_would_train(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    words = "--seed 7 --workers 2:4 --run a --dry-run"

    assert cli.main(["train", str(ROOT / "deploy/runs/smoke.yaml"), *words.split()]) == 0

    config = RunConfig.from_yaml(capsys.readouterr().out)
    assert (config.run, config.trainer.seed, config.rollout.max_workers) == ("a", 7, 4)
    assert config.data_dir == str(tmp_path / "train_dir")


def test_flags_do_not_take_the_file_for_their_value(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["train", "--new", "--dry-run", str(ROOT / "deploy/runs/smoke.yaml")]) == 0

    shown = yaml.safe_load(capsys.readouterr().out)
    assert (shown["preset"], shown["new"]) == ("smoke", True)


def test_a_dry_submit_prints_the_exact_entry_command(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    (tmp_path / "x.yaml").write_text("preset: smoke\n")

    assert cli.main(["submit", "x.yaml", "--run", "a", "--seed", "7", "--dry-run"]) == 0

    shown = capsys.readouterr().out
    assert "\n# entry command: python -m metta_ray train x.yaml --run=a --trainer.seed=7\n" in shown
    assert yaml.safe_load(shown)["run"] == "a"


def test_a_submit_to_this_machine_keeps_the_run_where_train_would(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    assert cli.main(["submit", "--run", "a", "--address", "http://127.0.0.1:8265", "--dry-run"]) == 0

    assert f"--data-dir={tmp_path}/train_dir" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("train --trainer.ppo.clip-ceof 1", "did you mean 'trainer.ppo.clip_coef'"),
        ("train no_such.yaml", "no_such.yaml cannot be read"),
        ("train a.yaml b.yaml", "'b.yaml' is one file too many"),
        ("train --run ../elsewhere", "run_name='../elsewhere' cannot name a directory"),
        ("train --num-workers 3", "--workers for rollout workers"),
        ("train --workers none", "use 8, or 2:16"),
        ("submit --run a", "a job needs a cluster"),
        ("", "the following arguments are required: COMMAND"),
        ("strat", "invalid choice: 'strat'"),
        ("status", "the following arguments are required: RUN; see metta-ray status --help"),
        ("scale nav-7", "required: --workers"),
        ("status nav-8", "run 'nav-8' is unknown"),
        ("logs nav-8", "run 'nav-8' is unknown"),
        ("audit nav-8", "run 'nav-8' is unknown"),
        ("scale nav-8 --workers 0", "workers='0'"),
        ("stop nav-8 --force", "run 'nav-8' is unknown"),
        ("runs --state redis://me:canary@x", "holds a password"),
    ],
)
def test_bad_input_is_one_readable_line_and_exit_code_2(
    words: str, said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    assert cli.main(words.split()) == 2

    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert said in lines[0]


@pytest.mark.parametrize(
    ("words", "call"),
    [
        ("scale nav-7 --workers 2:16", ("scale", "2:16")),
        ("pause nav-7", ("pause",)),
        ("unpause nav-7", ("unpause",)),
        ("checkpoint nav-7", ("checkpoint",)),
        ("set nav-7 trainer.optimizer.learning-rate 1e-4", ("set", "trainer.optimizer.learning_rate", "1e-4")),
    ],
)
def test_commands_reach_the_run_and_print_its_answer(
    live: Any, words: str, call: tuple[Any, ...], capsys: pytest.CaptureFixture[str]
):
    handle = live(Handle())

    assert cli.main(words.split()) == 0

    assert handle.calls == [("connect", "nav-7"), call]
    assert capsys.readouterr().out == f"{call[0]} is done\n"


@pytest.mark.parametrize(
    ("answer", "code", "said"),
    [
        ({"ok": False, "message": "paused runs cannot be scaled"}, 3, "paused runs"),
        (ConfigError("unknown setting 'x'"), 2, "unknown setting"),
        (RunUnreachableError("the coordinator is gone"), 3, "is gone"),
    ],
)
def test_what_a_run_refuses_is_an_error(
    live: Any, answer: Any, code: int, said: str, capsys: pytest.CaptureFixture[str]
):
    live(Handle(set=answer))

    assert cli.main(["set", "nav-7", "x", "1"]) == code

    assert said in capsys.readouterr().err


def test_status_is_a_table_or_json(live: Any, capsys: pytest.CaptureFixture[str]):
    status = {"run": "nav-7", "state": "running", "agent_step": 5, "total_timesteps": 10}
    live(Handle(status=status))

    assert cli.main(["status", "nav-7"]) == 0
    assert "5 of 10 (50%)" in capsys.readouterr().out
    assert cli.main(["status", "nav-7", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == status


def test_of_a_run_that_has_ended_the_record_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    store_run(tmp_path, message="all agent steps", agent_step=10, total_timesteps=10)

    assert cli.main(["status", "nav-7", "--watch"]) == 0

    shown = capsys.readouterr().out
    assert "done" in shown
    assert "all agent steps" in shown


def test_attaching_to_a_run_that_has_ended_says_how(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    store_run(tmp_path, state="failed", message="no such map", ray_address="127.0.0.1:1")

    assert cli.main(["attach", "nav-7"]) == 3
    assert capsys.readouterr().out == "run nav-7: failed, no such map\n"


def test_attaching_shows_progress_until_the_end(live: Any, capsys: pytest.CaptureFixture[str]):
    line = {"number": 0, "epoch": 1, "agent_step": 64, "text": "epoch 1"}
    live(Handle(progress={"lines": [line], "state": "done"}))

    assert cli.main(["attach", "nav-7"]) == 0
    assert capsys.readouterr().out == "epoch 1\n"


def test_interrupting_a_watch_leaves_the_run_alone(live: Any, capsys: pytest.CaptureFixture[str]):
    handle = live(Handle(progress=_interrupt()))

    assert cli.main(["attach", "nav-7"]) == 130
    assert "goes on" in capsys.readouterr().err
    assert [call[0] for call in handle.calls] == ["connect", "progress"]


def _interrupt() -> Any:
    class Interrupting(dict):
        def __getitem__(self, key: str) -> Any:
            raise KeyboardInterrupt

    return Interrupting()


def test_runs_lists_the_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["runs"]) == 0
    assert "no runs in sqlite:///" in capsys.readouterr().out

    store_run(tmp_path)
    assert cli.main(["runs"]) == 0
    assert "nav-7" in capsys.readouterr().out
    assert cli.main(["runs", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["name"] == "nav-7"


def test_logs_prints_the_runs_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    store_run(tmp_path)
    (tmp_path / "train_dir" / "nav-7").mkdir(parents=True)
    (tmp_path / "train_dir" / "nav-7" / "run.log").write_text("worker 0 is ready\n")

    assert cli.main(["logs", "nav-7", "--follow"]) == 0
    assert capsys.readouterr().out == "worker 0 is ready\n"


def test_audit_accounts_for_every_step_and_fails_where_it_cannot(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    store_run(tmp_path)
    journal, _ = Journal.open(tmp_path / "train_dir" / "nav-7" / "journal.log")
    journal.append({"kind": "issue", "ticket": 0, "worker": 0, "steps": 64})
    journal.append({"kind": "deliver", "ticket": 0, "version": 0, "counted": 64})
    journal.append({"kind": "commit", "version": 1, "tickets": [0]})

    assert cli.main(["audit", "nav-7"]) == 0
    assert "balanced: 64 agent steps issued" in capsys.readouterr().out
    assert cli.main(["audit", "nav-7", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["workers"]["0"]["trained"] == 64

    journal.append({"kind": "commit", "version": 2, "tickets": [0]})
    assert cli.main(["audit", "nav-7"]) == 3
    assert "ticket 0 is closed" in capsys.readouterr().err


def test_bench_passes_its_words_on(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        cli.main(["bench", "env", "--help"])

    assert ended.value.code == 0
    assert "--seconds" in capsys.readouterr().out


def test_python_m_metta_ray_is_the_same_command():
    words = [sys.executable, "-m", "metta_ray", "train", "--run", "x/y"]

    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)

    assert done.returncode == 2
    assert done.stderr.startswith("error: run_name='x/y'")


def test_evaluate_asks_a_run_that_is_going_on_and_waits_for_its_table(
    tmp_path: Path, live: Any, capsys: pytest.CaptureFixture[str]
):
    store_run(tmp_path, state="running")
    asked = {"ok": True, "message": "evaluation 3 of model_0012 is asked for", "number": 3}
    handle = live(Handle(evaluate=asked, await_evaluation={"ok": True, "state": "done", "text": "the table"}))

    assert cli.main(["evaluate", "nav-7", "--suite", "memory", "--epoch", "12", "--seed", "5"]) == 0
    assert "evaluation 3 of model_0012" in capsys.readouterr().out
    assert handle.calls[1:] == [("evaluate", "memory", 12, None, 5)]

    assert cli.main(["evaluate", "nav-7", "--wait"]) == 0
    assert capsys.readouterr().out == "the table\n"
    assert handle.calls[-2:] == [("evaluate", "", None, None, 0), ("await_evaluation", 3)]


def test_an_evaluation_that_failed_says_why(tmp_path: Path, live: Any, capsys: pytest.CaptureFixture[str]):
    store_run(tmp_path, state="running")
    live(
        Handle(
            evaluate={"ok": True, "message": "", "number": 0}, await_evaluation={"state": "failed", "reason": "gone"}
        )
    )

    assert cli.main(["evaluate", "nav-7", "--wait"]) == 3
    assert "error: gone" in capsys.readouterr().err


def test_what_no_run_is_called_is_a_policy_to_be_played_here(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["evaluate", "no_such_policy"]) == 3
    assert "no policy at 'no_such_policy'" in capsys.readouterr().err


def test_evaluations_are_listed_with_the_best_policy_also_after_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    one = {"number": 0, "policy": "model_0012", "suite": "navigation", "asked_by": "interval", "state": "done"}
    one |= {"score": 0.5, "low": 0.4, "high": 0.6, "episodes": 120, "verdict": "promoted", "reason": "", "seconds": 9.5}
    one |= {"asked_at": time.time(), "ended_at": time.time()}
    best = {"path": "/runs/nav-7/checkpoints/model_0012", "version": 12, "suite": "navigation", "score": 0.5}
    store_run(tmp_path, best=best | {"low": 0.4, "high": 0.6}, evaluations={"done": 1, "list": [one]})

    assert cli.main(["evaluations", "nav-7"]) == 0
    shown = capsys.readouterr().out
    assert "0.500 [0.400, 0.600]" in shown
    assert "best: /runs/nav-7/checkpoints/model_0012 (epoch 12" in shown
    assert cli.main(["status", "nav-7"]) == 0
    shown = capsys.readouterr().out
    assert "best policy" in shown
    assert "1 done" in shown
    assert cli.main(["evaluations", "nav-7", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["best"]["version"] == 12


def test_a_run_without_evaluations_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    store_run(tmp_path)

    assert cli.main(["evaluations", "nav-7"]) == 0
    assert "has no evaluations yet" in capsys.readouterr().out


def test_the_curriculum_of_a_run_is_a_table(tmp_path: Path, live: Any, capsys: pytest.CaptureFixture[str]):
    store_run(tmp_path, state="running")
    rows = [{"task": "near", "probability": 0.25, "attempts": 8, "score": 0.5, "learning_progress": None}]
    rows.append({**rows[0], "task": "far", "probability": 0.75})
    live(Handle(curriculum={"ok": True, "rows": rows, "epoch": 3, "agent_step": 4096}))

    assert cli.main(["curriculum", "nav-7"]) == 0
    title, header, first, _ = capsys.readouterr().out.splitlines()
    assert "4,096 agent steps" in title
    assert header.split() == ["task", "probability", "attempts", "score"]
    assert first.split() == ["far", "0.75", "8", "0.5"]


def test_a_run_without_a_curriculum_is_refused_in_words(tmp_path: Path, live: Any, capsys: pytest.CaptureFixture[str]):
    store_run(tmp_path, state="running")
    live(Handle(curriculum={"ok": False, "message": "one environment, without a curriculum"}))

    assert cli.main(["curriculum", "nav-7"]) == 3
    assert "without a curriculum" in capsys.readouterr().err
