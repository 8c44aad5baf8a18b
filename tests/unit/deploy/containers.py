"""Reads Dockerfiles and the compose file as Docker does, as far as these tests need it."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

DOCKER = Path(__file__).parents[3] / "docker"
DOCKERFILES = ("cpu.Dockerfile", "gpu.Dockerfile")


@dataclass(frozen=True)
class Instruction:
    """One line of a Dockerfile: ``RUN``, and what comes after it, with continued lines joined."""

    word: str
    text: str

    @property
    def words(self) -> list[str]:
        """Of the JSON form, or as a shell would split it."""
        return json.loads(self.text) if self.text.startswith("[") else shlex.split(self.text)

    @property
    def shell(self) -> str:
        """A RUN's command without its mounts."""
        return re.sub(r"^(--mount=\S+\s+)+", "", self.text)


@dataclass(frozen=True)
class Stage:
    base: str
    name: str
    instructions: tuple[Instruction, ...]

    def of(self, word: str) -> list[Instruction]:
        return [one for one in self.instructions if one.word == word]

    @property
    def environment(self) -> dict[str, str]:
        pairs = (word.split("=", 1) for one in self.of("ENV") for word in one.words)
        return dict(pairs)


def stages(dockerfile: str) -> list[Stage]:
    """The stages of a file in ``docker/``, first to last."""
    lines = (DOCKER / dockerfile).read_text().splitlines()
    joined = re.sub(r"\\\n\s*", "", "\n".join(line for line in lines if not line.startswith("#")))
    found: list[Stage] = []
    for line in joined.splitlines():
        word, _, text = line.partition(" ")
        if word == "FROM":
            base, _, name = text.partition(" AS ")
            found.append(Stage(base, name, ()))
        elif word:
            last = found.pop()
            found.append(Stage(last.base, last.name, (*last.instructions, Instruction(word, text.strip()))))
    return found


def compose() -> dict[str, Any]:
    """``docker/compose.yaml`` with its anchors resolved."""
    content: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    return content


def command_of(service: dict[str, Any]) -> list[str]:
    """What the container runs; compose writes ``$`` as ``$$``."""
    return [word.replace("$$", "$") for word in service["command"]]


def check_of(service: dict[str, Any]) -> list[str]:
    """The health check as words."""
    kind, *words = service["healthcheck"]["test"]
    words = [word.replace("$$", "$") for word in words]
    return ["sh", "-c", *words] if kind == "CMD-SHELL" else words
