"""What ``metta-ray replay`` and ``metta-ray report`` do, once words are parsed."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from metta_ray.common.errors import CheckpointError, ConfigError
from metta_ray.common.util import places
from metta_ray.report.replay_model import Replay, replay_of
from metta_ray.report.replay_page import replay_page
from metta_ray.report.run_data import read_run
from metta_ray.report.run_page import run_page
from metta_ray.report.text_player import play_text
from metta_ray.sim.replay import parse_replay

REPLAY_SUFFIXES = (".json.z", ".json.gz", ".json")


def show_replay(
    what: str,
    *,
    out: str | None,
    text_to: TextIO | None = None,
    env: str | None = None,
    seed: int = 0,
    agent: int = 0,
    every: int = 1,
    data_dir: str | Path = "./train_dir",
) -> str | None:
    """Where the page of an episode was written; None where it was shown as text instead (``text_to``).

    what: a replay file, by path or URL, or a policy, which then plays an episode.
    """
    replay, title, facts = _recorded(what) if is_replay_file(what) else _played(what, env, seed, data_dir)
    if not 0 <= agent < len(replay.agents):
        raise ConfigError(f"--agent {agent}: the episode has agents 0 to {len(replay.agents) - 1}")
    if every < 1:
        raise ConfigError(f"--every {every}: use 1 or more")
    if text_to is not None:
        play_text(replay, text_to, agent=agent, every=every)
        return None
    target = out or f"{title.split(' ')[0].replace('/', '_').removesuffix('.json.z')}.replay.html"
    write_page(target, replay_page(replay, title, facts))
    return target


def is_replay_file(what: str) -> bool:
    return what.endswith(REPLAY_SUFFIXES) or places.local_path(what).is_file()


def write_page(target: str, html: str) -> None:
    """ConfigError where it cannot be written."""
    try:
        places.write_bytes(target, html.encode())
    except OSError as error:
        raise ConfigError(f"--out {target} cannot be written: {error}") from None


def _recorded(place: str) -> tuple[Replay, str, dict[str, object]]:
    name = place.rpartition("/")[2]
    try:
        data = places.read_bytes(place)
    except OSError as error:
        raise CheckpointError(f"the replay {place} cannot be read: {error.strerror or error}") from None
    return replay_of(parse_replay(data, place), place), name, {}


def _played(policy: str, env: str | None, seed: int, data_dir: str | Path) -> tuple[Replay, str, dict[str, object]]:
    from metta_ray.report.play import play_episode  # loads torch and the engine
    from metta_ray.sim.replay import read_replay

    with tempfile.TemporaryDirectory() as folder:
        played = play_episode(policy, Path(folder), env=env, seed=seed, data_dir=data_dir)
        replay = replay_of(read_replay(played.path), played.player)
    return replay, f"{played.player} in {played.env}", {"policy": played.player, "played with seed": seed}


def show_report(runs: Sequence[tuple[str, str]], *, out: str | None) -> str:
    """Where the page of one or several runs (name, place) was written."""
    data = [read_run(name, place) for name, place in runs]
    target = out or f"{'_'.join(run.name for run in data)}.report.html"
    write_page(target, run_page(data))
    return target
