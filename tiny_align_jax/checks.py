"""One wording for what is wrong with a config section, and with a file of lines that it names."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tiny_align_jax.types import ConfigError, DataError


def below(config: Any, minimum: float, *names: str) -> list[str]:
    """What is wrong with the fields `names` that are not `minimum` or more."""
    values = ((name, getattr(config, name)) for name in names)
    return [f"{k}={v}; expected {minimum} or more" for k, v in values if not v >= minimum]


def not_positive(config: Any, *names: str) -> list[str]:
    """What is wrong with the fields `names` that are not more than 0."""
    values = ((name, getattr(config, name)) for name in names)
    return [f"{k}={v}; expected a positive number" for k, v in values if not v > 0]


def no_fraction(config: Any, *names: str) -> list[str]:
    """What is wrong with the fields `names` that are not from 0 to below 1."""
    values = ((name, getattr(config, name)) for name in names)
    return [f"{k}={v}; expected 0 <= x < 1" for k, v in values if not 0 <= v < 1]


def unlisted(config: Any, **choices: Sequence[str]) -> list[str]:
    """What is wrong with the fields whose value is none of their choices."""
    values = ((name, getattr(config, name), known) for name, known in choices.items())
    return [f"{k}={v!r}; expected one of {', '.join(c)}" for k, v, c in values if v not in c]


def refuse(section: str, problems: Sequence[str]) -> None:
    """Does nothing without problems.

    Raises:
        ConfigError: all of them at once, after the section's name.
    """
    if problems:
        raise ConfigError(f"{section}: " + "; ".join(problems))


def lines_of(key: str, path: str | os.PathLike, expected: str = "a UTF-8 text file") -> list[str]:
    """Lines of the text file that the config key or flag `key` names.

    Raises:
        DataError: it cannot be read; the message says what was expected.
    """
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(
            f"{key}={os.fspath(path)!r} cannot be read ({error}); expected {expected}"
        ) from error
