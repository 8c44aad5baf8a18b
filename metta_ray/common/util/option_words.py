"""Words of a command line as dotted settings: ``--a.b-c 1 --flag`` → ``{"a.b_c": "1", "flag": "true"}``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from metta_ray.common.errors import ConfigError


def read_options(words: Sequence[str], long_names: Mapping[str, str] | None = None) -> dict[str, str]:
    """Settings in the order given; a name without a value means ``true``, ``--name=value`` works too.

    long_names: short first parts and what they stand for, e.g. ``{"seed": "trainer.seed"}``.

    Raises ConfigError for a word that is neither a name nor the value of one.
    """
    left = list(words)
    given: dict[str, str] = {}
    while left:
        word = left.pop(0)
        if not word.startswith("--"):
            raise ConfigError(f"{word!r} is not an option; options look like --trainer.ppo.clip-coef 0.2")
        name, separator, value = word[2:].partition("=")
        if not separator:
            value = left.pop(0) if left and not left[0].startswith("--") else "true"
        given[_long_name(name.replace("-", "_"), long_names or {})] = value
    return given


def _long_name(name: str, long_names: Mapping[str, str]) -> str:
    first, dot, rest = name.partition(".")
    return long_names.get(first, first) + dot + rest
