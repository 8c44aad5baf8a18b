"""The pages as a person meets them: a real browser, real clicks, and what is on the screen compared with the data."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from metta_ray.envs.env_batch import SeedRoot
from metta_ray.envs.registry import MettaGridFactory
from metta_ray.mettagrid.held_out import fixed_table
from metta_ray.mettagrid.replay_source import ReplaySource
from metta_ray.mettagrid.task_spec import TaskSpec
from metta_ray.report.commands import show_replay, show_report
from metta_ray.report.replay_model import Replay, replay_of
from metta_ray.sim.replay import ReplayRecorder, read_replay
from tests.e2e.browser import Browser

STEPS = 60


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    window = Browser(tmp_path_factory.mktemp("browser"))
    yield window
    window.close()


# --- replay ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def episode(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 agents, moved by chance, each expecting something else at each step."""
    table = fixed_table([TaskSpec(kind="arena", num_agents=24, max_steps=STEPS)], 1)
    batch = MettaGridFactory("mettagrid:x", table=table, stagger=False).build(1)
    batch.reset(SeedRoot(4))
    recorder, chance = ReplayRecorder(ReplaySource(batch.episodes[0])), np.random.default_rng(0)
    for _ in range(STEPS):
        batch.arrays.actions[:] = chance.integers(1, 5, 24)
        batch.step()
        recorder.record(batch.arrays.rewards, chance.normal(size=24).astype(np.float32))
    batch.close()
    return recorder.write(tmp_path_factory.mktemp("episode") / "arena.json.z")


@pytest.fixture
def replay(browser: Browser, episode: Path, tmp_path: Path) -> Replay:
    page = show_replay(str(episode), out=str(tmp_path / "replay.html"))
    browser.open(f"file://{page}")
    browser.wait_for("document.querySelector('#step').textContent !== ''")
    return replay_of(read_replay(episode), "r")


def shown_state(browser: Browser) -> dict[str, Any]:
    names = ("step", "action", "reward", "total", "value", "inventory", "position")
    return {name: browser.text(f"#{name}") for name in names}


def expected_state(replay: Replay, step: int, agent: int) -> dict[str, Any]:
    thing = replay.agents[agent]
    own = thing.agent
    assert own is not None
    assert own.value is not None
    held = ", ".join(f"{replay.item_name(item)} {amount}" for item, amount in thing.inventory.at(step))
    x, y = thing.location.at(step)
    return {
        "step": f"step {step} of {replay.steps - 1}",
        "action": f"{replay.action_name(own.action.at(step))} {'done' if own.succeeded.at(step) else 'failed'}",
        "reward": f"{own.reward.at(step):.4g}",
        "total": f"{own.total_reward.at(step):.4g}",
        "value": f"{own.value.at(step):.4g}",
        "inventory": held or "nothing",
        "position": f"column {x}, row {y}",
    }


def on_the_map(browser: Browser, replay: Replay, agent: int, step: int) -> tuple[float, float]:
    """Where on the map's canvas, as shares of its width and height, an agent is drawn while the whole map is shown."""
    width, height = browser.evaluate("[document.querySelector('#map').width, document.querySelector('#map').height]")
    scale = min(width / replay.width, height / replay.height)
    x, y = replay.agents[agent].location.at(step)
    left, top = (width - scale * replay.width) / 2, (height - scale * replay.height) / 2
    return (left + (x + 0.5) * scale) / width, (top + (y + 0.5) * scale) / height


def legend(browser: Browser, chart: str) -> dict[str, str]:
    """Name → value that a chart's legend tells."""
    entries = f"[...document.querySelectorAll('{chart} .u-legend .u-series')]"
    parts = "['.u-label', '.u-value'].map((part) => entry.querySelector(part).textContent)"
    return dict(browser.evaluate(f"{entries}.map((entry) => {parts})"))


def test_every_step_shows_what_the_replay_says(browser: Browser, replay: Replay) -> None:
    assert shown_state(browser) == expected_state(replay, 0, 0)
    browser.click("#forward")
    browser.click("#forward")
    assert shown_state(browser) == expected_state(replay, 2, 0)
    browser.press("ArrowRight", shift=True)
    assert shown_state(browser) == expected_state(replay, 12, 0)
    browser.click("#back")
    assert shown_state(browser) == expected_state(replay, 11, 0)
    browser.choose("#scrub", "40")
    assert shown_state(browser) == expected_state(replay, 40, 0)
    browser.press("End")
    assert shown_state(browser) == expected_state(replay, STEPS - 1, 0)
    browser.press("Home")
    assert shown_state(browser) == expected_state(replay, 0, 0)
    assert browser.errors == []


def test_another_agent_is_followed_from_list_table_and_keyboard(
    browser: Browser, replay: Replay, tmp_path: Path
) -> None:
    browser.choose("#scrub", "30")
    browser.choose("#agent", "17")
    assert shown_state(browser) == expected_state(replay, 30, 17)
    browser.click("#agents tbody tr:nth-child(5)")
    assert shown_state(browser) == expected_state(replay, 30, 4)
    browser.press("d")
    assert shown_state(browser) == expected_state(replay, 30, 5)

    browser.click("#fit")
    browser.click("#map", *on_the_map(browser, replay, agent=9, step=30))
    assert shown_state(browser) == expected_state(replay, 30, 9)
    browser.hover("#map", *on_the_map(browser, replay, agent=9, step=30))
    assert "agent 9" in browser.text("#tip")
    totals = [browser.text(f"#agents tbody tr:nth-child({row}) td:nth-child(3)") for row in range(1, 25)]
    assert totals == [f"{thing.agent.total_reward.at(30):.4g}" for thing in replay.agents if thing.agent]
    browser.screenshot(tmp_path / "replay.png")
    print("screenshot:", tmp_path / "replay.png")


def test_the_window_tells_what_is_in_sight(browser: Browser, replay: Replay) -> None:
    browser.choose("#scrub", "25")
    thing = replay.agents[0]
    x, y = thing.location.at(25)
    half = TaskSpec(kind="arena").window // 2
    seen: dict[str, int] = {}
    for other in replay.things:
        other_x, other_y = other.location.at(25)
        if other is not thing and abs(other_x - x) <= half and abs(other_y - y) <= half:
            seen[other.type_name] = seen.get(other.type_name, 0) + 1

    expected = ", ".join(f"{count} {name}" for name, count in sorted(seen.items()))
    assert browser.text("#seen") == f"in sight: {expected}"


def test_the_curve_tells_the_step_that_is_shown(browser: Browser, replay: Replay) -> None:
    browser.hover("h1")  # away from the curve
    browser.choose("#scrub", "25")

    told = legend(browser, "#chart")
    own = replay.agents[0].agent
    assert own is not None
    assert own.value is not None
    assert told["step"] == "25"
    assert told["value estimate"] == f"{own.value.at(25):.4g}"


def test_it_plays_pauses_and_ends(browser: Browser, replay: Replay) -> None:
    browser.choose("#speed", "10")
    browser.click("#play")
    assert browser.text("#play") == "Pause"
    browser.wait_for("parseInt(document.querySelector('#step').textContent.slice(5)) > 3")
    browser.press(" ")
    assert browser.text("#play") == "Play"
    step = int(browser.text("#step").split()[1])
    assert shown_state(browser) == expected_state(replay, step, 0)
    browser.choose("#speed", "200")
    browser.press(" ")
    browser.wait_for(f"document.querySelector('#step').textContent === 'step {STEPS - 1} of {STEPS - 1}'")
    browser.wait_for("document.querySelector('#play').textContent === 'Play'")


def test_a_click_on_the_curve_goes_there(browser: Browser, replay: Replay) -> None:
    browser.hover(".u-over", across=0.5)
    index = int(browser.evaluate("replayPlayer.chart.cursor.idx"))
    value = replay.agents[0].agent.value.at(index)  # type: ignore[union-attr]
    assert legend(browser, "#chart")["value estimate"] == f"{value:.4g}"
    browser.click(".u-over", across=0.5)
    assert shown_state(browser) == expected_state(replay, index, 0)


# --- report ------------------------------------------------------------------------------------------------

EPOCHS = 20


def returns_of(run: int) -> list[float]:
    return [round(epoch * (1.5 + run), 2) for epoch in range(1, EPOCHS + 1)]


def write_run(directory: Path, run: int) -> Path:
    directory.mkdir()
    names = ("environments", "inference", "transport", "no_ticket")
    lines = [
        {
            "epoch": epoch,
            "agent_step": 1000 * epoch,
            "time": 1e9 + 10 * epoch,
            "epoch_seconds": 10.0,
            "agent_steps_per_second": 100.0,
            "reward": returns_of(run)[epoch - 1],
            "workers/wanted": 2 if epoch < 10 else 3,
            "workers/ready": 2 if epoch < 12 else 3,
            "staleness/mean": 0.5,
            "staleness/count/0": 2,
            "staleness/count/1": 6,
            **{f"share/{name}": share for name, share in zip(names, (0.5, 0.3, 0.05, 0.15), strict=True)},
            **{
                f"share/{name}": share
                for name, share in zip(("training", "staging", "no_data"), (0.7, 0.1, 0.2), strict=True)
            },
        }
        for epoch in range(1, EPOCHS + 1)
    ]
    put_lines(directory / "metrics.jsonl", lines)
    events = [
        {"at": 1e9 + 95, "kind": "resize", "text": "3 workers wanted: asked for"},
        {"at": 1e9 + 120, "kind": "crash", "text": "rollout-1 was killed"},
    ]
    put_lines(directory / "events.jsonl", events)
    tasks = [
        {
            "epoch": epoch,
            "agent_step": 1000 * epoch,
            "tasks": {"easy": [1 - epoch / 40, 1, None, None], "hard": [epoch / 40, 1, None, None]},
        }
        for epoch in range(1, EPOCHS + 1)
    ]
    put_lines(directory / "curriculum.jsonl", tasks)
    trainer = {"seed": run, "ppo": {"gamma": 0.9}}
    (directory / "config.yaml").write_text(yaml.safe_dump({"run": directory.name, "trainer": trainer}))
    return directory


def put_lines(path: Path, values: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(value) + "\n" for value in values))


@pytest.fixture
def report(browser: Browser, tmp_path: Path) -> Path:
    runs = [(name, str(write_run(tmp_path / name, number))) for number, name in enumerate(("one", "two"))]
    page = Path(show_report(runs, out=str(tmp_path / "report.html")))
    browser.open(f"file://{page}")
    browser.wait_for("document.querySelectorAll('#report > section').length === 10")
    browser.wait_for("document.querySelectorAll('.uplot').length > 5")
    return page


CURVE = "#learning-curves .grid > .card:first-child"


def test_curves_tell_their_values_on_hover(browser: Browser, report: Path) -> None:
    assert "Return of an episode" in browser.text(f"{CURVE} h3")
    assert "reward per agent" in browser.text(f"{CURVE} h3")
    browser.hover(f"{CURVE} .u-over", across=0.5)

    told = legend(browser, CURVE)
    epoch = int(told["agent steps"].replace(",", "")) // 1000
    assert [float(told[name]) for name in ("one", "two")] == [returns_of(run)[epoch - 1] for run in (0, 1)]
    assert browser.errors == []


def test_without_a_pointer_curves_tell_their_last_values(browser: Browser, report: Path) -> None:
    browser.wait_for(f"document.querySelector('{CURVE} .u-legend .u-value').textContent === '{1000 * EPOCHS:,}'")

    told = legend(browser, CURVE)
    assert [float(told[name]) for name in ("one", "two")] == [returns_of(run)[-1] for run in (0, 1)]


def test_colours_of_tasks_are_told_with_the_even_share_in_the_middle(browser: Browser, report: Path) -> None:
    scale = " ".join(browser.text("#curriculum .card:first-child .heat-scale").split())

    assert scale == "0 % 100 % 50 %: all alike"


def test_curves_can_be_hidden_smoothed_and_drawn_along_time(browser: Browser, report: Path) -> None:
    browser.click(f"{CURVE} .u-legend .u-series:nth-child(2) .u-label")
    assert browser.evaluate(
        f"document.querySelector('{CURVE} .u-legend .u-series:nth-child(2)').classList.contains('u-off')"
    )

    browser.choose("#along", "epoch")
    browser.choose("#smoothing", "5")
    browser.hover(f"{CURVE} .u-over", across=0.99)

    told = legend(browser, CURVE)
    assert told["epochs"] == str(EPOCHS)
    assert float(told["two"]) == pytest.approx(sum(returns_of(1)[-5:]) / 5)


def test_sections_show_shares_staleness_events_tasks_and_differences(
    browser: Browser, report: Path, tmp_path: Path
) -> None:
    browser.hover("#where-the-time-went .card:first-child .u-over")
    assert legend(browser, "#where-the-time-went .card:first-child")["inference"] == "30 %"
    staleness = " ".join(browser.text("#staleness .card:first-child").split())
    assert "0 versions behind 40 (25 %)" in staleness
    assert "1 version behind 120 (75 %)" in staleness
    events = browser.text("#workers-and-events .card:first-child .scroll table")
    assert "rollout-1 was killed" in events
    assert "12,000" in events  # where it was at that time
    browser.hover("#curriculum .card:first-child canvas", across=0.999, down=0.1)
    assert browser.text("#curriculum .tip").split("\n") == ["easy", "50 % at 20,000 agent steps"]
    settings = browser.text("#configuration table")
    assert "trainer.seed" in settings
    assert "trainer.ppo.gamma" not in settings  # the same in both
    browser.click("#configuration input[type=checkbox]")
    assert "trainer.ppo.gamma" in browser.text("#configuration table")
    browser.screenshot(tmp_path / "report.png", whole=True)
    print("screenshot:", tmp_path / "report.png")


def test_what_is_not_there_is_said(browser: Browser, report: Path) -> None:
    assert "No evaluation is recorded" in browser.text("#evaluations")
    assert "There is no ledger" in browser.text("#ledger")
    assert "No checkpoint is kept" in browser.text("#checkpoints")
