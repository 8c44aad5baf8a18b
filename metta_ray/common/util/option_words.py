"""Words of a command line as dotted settings: ``--a.b-c 1 --flag`` → ``{"a.b_c": "1", "flag": "true"}``."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from metta_ray.common.errors import ConfigError


def read_options(words: Sequence[str], long_names: Mapping[str, str] | None = None) -> dict[str, str]:
    """Settings in the order given; a name without a value means ``true``, ``--name=value`` works too.

    long_names: short first parts and what they stand for, e.g. ``{"seed": "trainer.seed"}``.

    Raises ConfigError for a word that is neither a name nor the value of one.
    """
    arguments, given = split_words(words, long_names)
    if arguments:
        raise ConfigError(f"{arguments[0]!r} is not an option; options look like --trainer.ppo.clip-coef 0.2")
    return given


def split_words(
    words: Sequence[str], long_names: Mapping[str, str] | None = None, flags: Collection[str] = ()
) -> tuple[list[str], dict[str, str]]:
    """Words that stand alone, and settings as ``read_options``.

    flags: names that never take the next word as their value.
    """
    left = list(words)
    arguments: list[str] = []
    given: dict[str, str] = {}
    while left:
        word = left.pop(0)
        if not word.startswith("--"):
            arguments.append(word)
            continue
        name, separator, value = word[2:].partition("=")
        name = name.replace("-", "_")
        if not separator:
            takes_value = name not in flags and bool(left) and not left[0].startswith("--")
            value = left.pop(0) if takes_value else "true"
        given[_long_name(name, long_names or {})] = value
    return arguments, given


def _long_name(name: str, long_names: Mapping[str, str]) -> str:
    first, dot, rest = name.partition(".")
    return long_names.get(first, first) + dot + rest
