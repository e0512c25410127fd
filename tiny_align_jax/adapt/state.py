"""A user's state: one small safetensors file that names its user, its method and its base.

Arrays are kept in float16: a delta is small beside what it is added to. The file is worth nothing on
another base, so it carries the SHA-256 of the base's weights and is refused elsewhere.
"""

import dataclasses
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tiny_align_jax.types import AssetError, CheckpointError, ConfigError, WeightsError
from tiny_align_jax.weights import safetensors

SUFFIX = ".safetensors"
_FORMAT = "tiny_align_jax user 1"
_NAME = re.compile(r"[\w.@+-]{1,80}")


@dataclasses.dataclass(frozen=True)
class State:
    """What is kept of a user.

    Attributes:
        user: name.
        base: SHA-256 of the base's weights file.
        delta: what the user's copy differs in, see `adapt.delta`; empty where the base was kept.
        extra_row_ids: LLM ids of table rows that the base does not read but the user says.
        row_bias: float [rows with the extra ones], the user's word prior; None without.
        about: method, scores, numbers of utterances and the like, in plain values.
    """

    user: str
    base: str
    delta: Mapping[str, np.ndarray]
    extra_row_ids: np.ndarray
    row_bias: np.ndarray | None
    about: Mapping[str, Any]


def path_of(folder: str | os.PathLike, user: str) -> Path:
    """Where a user's state lies.

    Raises:
        ConfigError: a name that makes no file name.
    """
    if not _NAME.fullmatch(user) or user.startswith("."):
        raise ConfigError(
            f"user {user!r}: expected 1 to 80 letters, digits or . _ - + @, not starting with a dot"
        )
    return Path(folder) / f"{user}{SUFFIX}"


def save(folder: str | os.PathLike, state: State) -> Path:
    """Writes a user's state, all or nothing; returns its path.

    Raises:
        ConfigError: a name that makes no file name.
        AssetError: the disk is full or not writable; an earlier state is as it was.
    """
    arrays: dict[str, np.ndarray] = {
        f"delta/{k}": np.asarray(v, np.float16) for k, v in state.delta.items()
    }
    if len(state.extra_row_ids):
        arrays["extra_row_ids"] = np.asarray(state.extra_row_ids, np.int32)
    if state.row_bias is not None:
        arrays["row_bias"] = np.asarray(state.row_bias, np.float16)
    metadata = {
        "format": _FORMAT,
        "user": state.user,
        "base": state.base,
        "about": json.dumps(dict(state.about), sort_keys=True),
    }
    path = path_of(folder, state.user)
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: safetensors.Tensor(array.dtype, array.shape, lambda array=array: (array,))
        for name, array in arrays.items()
    }
    safetensors.write(path, tensors, metadata)
    return path


def load(path: str | os.PathLike) -> State:
    """Reads what `save` wrote.

    Raises:
        AssetError: no such file.
        CheckpointError: damaged, or no user's state.
    """
    try:
        source = safetensors.SafetensorsSource(path)
        metadata = source.metadata
        if metadata.get("format") != _FORMAT:
            raise CheckpointError(
                f"{path} is no user's state ({metadata.get('format')!r}, expected {_FORMAT!r})"
            )
        arrays = {name: np.array(source.read(name)) for name in source.names()}
        about = json.loads(metadata["about"])
    except (WeightsError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); personalise again") from error
    delta = {
        name.removeprefix("delta/"): array.astype(np.float32)
        for name, array in arrays.items()
        if name.startswith("delta/")
    }
    bias = arrays.get("row_bias")
    return State(
        user=metadata["user"],
        base=metadata["base"],
        delta=delta,
        extra_row_ids=arrays.get("extra_row_ids", np.zeros(0, np.int32)),
        row_bias=None if bias is None else bias.astype(np.float32),
        about=about,
    )


def find(folder: str | os.PathLike, user: str) -> State:
    """The state of a user by name.

    Raises:
        AssetError: there is none; lists the users there are.
        CheckpointError: damaged.
    """
    path = path_of(folder, user)
    if not path.is_file():
        known = ", ".join(p.stem for p in _files(folder)) or "nobody"
        raise AssetError(f"no user {user!r} in {folder}; there are: {known}")
    return load(path)


def listed(folder: str | os.PathLike) -> list[tuple[Path, State | CheckpointError]]:
    """Every state in a folder, damaged ones with their error, sorted by name."""
    found: list[tuple[Path, State | CheckpointError]] = []
    for path in _files(folder):
        try:
            found.append((path, load(path)))
        except CheckpointError as error:
            found.append((path, error))
    return found


def table(folder: str | os.PathLike) -> str:
    """The users of a folder, one a line; what a terminal shows."""
    rows = [f"{'user':20} {'MB':>6} {'utterances':>10}  base"]
    for path, found in listed(folder):
        size = f"{path.stat().st_size / 1e6:6.2f}"
        if isinstance(found, CheckpointError):
            rows.append(f"{path.stem:20} {size} {'':>10}  damaged: {found}")
        else:
            count = len(found.about.get("texts", ()))
            rows.append(f"{found.user:20} {size} {count:>10}  {found.base[:12]}")
    return "\n".join(rows) if len(rows) > 1 else f"no users in {folder}"


def export(folder: str | os.PathLike, user: str, target: str | os.PathLike) -> Path:
    """Copies a user's state to a file or folder, after reading it whole.

    Raises:
        AssetError: no such user, or the target cannot be written.
        CheckpointError: damaged.
    """
    find(folder, user)
    source, goal = path_of(folder, user), Path(target)
    if goal.is_dir():
        goal = goal / source.name
    try:
        shutil.copyfile(source, goal)
    except OSError as error:
        raise AssetError(f"cannot write {goal}: {error.strerror}") from error
    return goal


def delete(folder: str | os.PathLike, user: str) -> Path:
    """Deletes a user's state for good.

    Raises:
        AssetError: no such user.
    """
    path = path_of(folder, user)
    if not path.is_file():
        find(folder, user)
    path.unlink()
    return path


def _files(folder: str | os.PathLike) -> list[Path]:
    return sorted(Path(folder).glob(f"*{SUFFIX}"))
