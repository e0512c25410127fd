"""Checkpoints of a run (Orbax) and the exported projector (safetensors), both all-or-nothing.

A checkpoint holds the whole `TrainState`: trainable tree, optimizer, average, step and key. The data
position is the step, because the batch order is a function of (seed, step).
"""

import dataclasses
import errno
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from tiny_align_jax.train.partition import path_name
from tiny_align_jax.train.step import TrainState
from tiny_align_jax.types import AssetError, CheckpointError, PyTree
from tiny_align_jax.weights import safetensors

STATE_FOLDER = "checkpoints"
PROJECTOR_WEIGHTS = "projector.safetensors"
PROJECTOR_CARD = "projector.json"
LORA_WEIGHTS = "lora.safetensors"


def has_checkpoint(workdir: str | os.PathLike) -> bool:
    """Whether a complete checkpoint lies in `workdir`; creates nothing."""
    folder = Path(workdir) / STATE_FOLDER
    return folder.is_dir() and any(path.name.isdigit() for path in folder.iterdir())


class Checkpointer:
    """Saves and restores training states of one workdir; a context manager."""

    def __init__(self, workdir: str | os.PathLike, keep: int = 2):
        self._folder = Path(workdir).absolute() / STATE_FOLDER
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, create=True, enable_async_checkpointing=False
        )
        handler = (
            ocp.StandardCheckpointHandler()
        )  # named, or metadata of older processes is not read
        self._manager = ocp.CheckpointManager(self._folder, options=options, item_handlers=handler)

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, *unused) -> None:
        self._manager.close()

    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint, None if there is none."""
        return self._manager.latest_step()

    def clear(self) -> None:
        """Deletes every checkpoint: the run starts over."""
        for step in self._manager.all_steps():
            self._manager.delete(step)

    def save(self, state: TrainState) -> None:
        """Writes a checkpoint; the previous ones stay valid if this one fails.

        Raises:
            CheckpointError: the disk is full or not writable, or a later step is saved there.
        """
        step, latest = int(state.step), self.latest_step()
        if step == latest:
            return
        if latest is not None and latest > step:
            raise CheckpointError(
                f"cannot save step {step}: {self._folder} already holds step {latest} of another run; "
                "use another --workdir, or --noresume to start over there"
            )
        host_state = jax.tree.map(np.asarray, state)
        self._require_space(_num_bytes(host_state))
        try:
            self._manager.save(step, args=ocp.args.StandardSave(_as_dict(host_state)))
            self._manager.wait_until_finished()
        except Exception as error:  # an OSError, or what TensorStore makes of it
            raise _disk_error(self._folder, error, step) from error

    def restore(self, like: TrainState) -> TrainState:
        """The newest state, with shapes checked against `like`.

        Raises:
            CheckpointError: none there, damaged, or of another shape (another config).
        """
        step = self.latest_step()
        if step is None:
            raise CheckpointError(f"no checkpoint in {self._folder}; train without --resume first")
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, _as_dict(like))
        try:
            differences = _differences(self._manager.item_metadata(step), target)
            if not differences:
                saved = self._manager.restore(step, args=ocp.args.StandardRestore(target))
                return dataclasses.replace(like, **saved)
        except Exception as error:  # Orbax raises many kinds; each means the same to a user.
            raise self._misfit(step, f"it is damaged ({error})") from error
        shown = "\n  ".join(differences[:20])
        raise self._misfit(step, f"it was made with another config:\n  {shown}\n")

    def _misfit(self, step: int, why: str) -> CheckpointError:
        return CheckpointError(
            f"checkpoint {step} in {self._folder} cannot be restored into this run: {why}. Use the "
            "run's own config.json, or a new --workdir, or --noresume to start over."
        )

    def _require_space(self, num_bytes: int) -> None:
        free = shutil.disk_usage(self._folder).free
        if free < num_bytes * 1.1:
            raise CheckpointError(
                f"a checkpoint needs about {num_bytes / 1e6:.0f} MB but {self._folder} has "
                f"{free / 1e6:.0f} MB free; free some space and run the same command again (it "
                f"resumes at step {self.latest_step() or 0})"
            )


def export(
    workdir: str | os.PathLike, params: PyTree, card: Mapping[str, Any], dtype: Any = None
) -> Path:
    """Writes `projector.safetensors` and `projector.json`: all that inference needs of a run.

    Adapters of the LLM, if some were trained, go to `lora.safetensors` beside them.

    Args:
        workdir: folder to write to.
        params: {'projector': ..., 'objective': ...}.
        card: config sections, fingerprints of the frozen parts, vocabulary, versions.
        dtype: stored dtype of matrices, e.g. float16; None keeps float32.

    Returns:
        Path of the weights file.

    Raises:
        CheckpointError: the disk is full or not writable.
    """
    folder = Path(workdir)
    if dtype is not None:
        params = jax.tree.map(lambda p: np.asarray(p, dtype) if np.ndim(p) >= 2 else p, params)
    path = folder / PROJECTOR_WEIGHTS
    objective = dict(params["objective"])
    adapters = objective.pop("lora", None)
    try:
        safetensors.save_tree(path, jax.tree.map(np.asarray, {**params, "objective": objective}))
        if adapters is not None:
            safetensors.save_tree(folder / LORA_WEIGHTS, jax.tree.map(np.asarray, adapters))
        write_json(folder / PROJECTOR_CARD, card)
    except (OSError, AssetError) as error:
        raise _disk_error(folder, error, None) from error
    return path


def write_json(path: Path, value: Any) -> None:
    """Writes JSON so that a reader sees the old file or the whole new one."""
    write_text(path, json.dumps(value, indent=1, sort_keys=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes text so that a reader sees the old file or the whole new one."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def _as_dict(state: TrainState) -> dict[str, Any]:
    fields = ("step", "trainable", "fixed", "opt_state", "average", "key")
    return {name: getattr(state, name) for name in fields}


def _differences(saved: Any, wanted: PyTree) -> list[str]:
    """Arrays that only one of two states has or whose shapes differ, by name."""
    saved = getattr(saved, "tree", saved)  # older versions of Orbax wrap it
    trees = (jax.tree_util.tree_leaves_with_path(tree) for tree in (saved, wanted))
    there, here = ({path_name(p): tuple(x.shape) for p, x in leaves} for leaves in trees)
    return [
        f"{name}: {there.get(name, 'nothing')} there, {here.get(name, 'nothing')} here"
        for name in sorted(there.keys() | here.keys())
        if there.get(name) != here.get(name)
    ]


def _num_bytes(tree: PyTree) -> int:
    return sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(tree))


def _disk_error(folder: Path, error: Exception, step: int | None) -> CheckpointError:
    what = "the exported projector" if step is None else f"the checkpoint of step {step}"
    full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
    why = "the disk is full" if full else str(error)
    return CheckpointError(
        f"cannot write {what} to {folder}: {why}. Earlier checkpoints are intact; free some space "
        "and run the same command again"
    )
