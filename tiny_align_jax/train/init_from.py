"""A run that starts from the exported projector of another: later stages, other data, other objectives."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging

from tiny_align_jax.train import checkpoint
from tiny_align_jax.types import CheckpointError, PyTree
from tiny_align_jax.weights import safetensors


def load(folder: str | Path, fresh: PyTree, card: Mapping[str, Any]) -> PyTree:
    """The parameters exported to `folder`, where they fit; fresh ones for another objective.

    Table rows may differ: a projector ends in the LLM's width, not in rows. Objectives whose parameters
    have the same names and shapes hand them on (blank and scale of the CTC family).

    Args:
        folder: workdir, or any folder with projector.safetensors and projector.json.
        fresh: {'projector', 'objective', ...} of the run that starts.
        card: of the run that starts.

    Raises:
        CheckpointError: no projector there, one for other frozen weights or encoder layers, or one of
            other widths.
    """
    folder = Path(folder)
    _require_same_frozen(folder, _read_card(folder / checkpoint.PROJECTOR_CARD), card)
    saved = safetensors.load_tree(folder / checkpoint.PROJECTOR_WEIGHTS)
    there, here = _shapes(saved["projector"]), _shapes(fresh["projector"])
    different = [
        f"{name}: {there.get(name, 'nothing')} there, {here.get(name, 'nothing')} here"
        for name in sorted(there.keys() | here.keys())
        if there.get(name) != here.get(name)
    ]
    if different:
        raise CheckpointError(
            f"train.init_from={folder} holds a projector of another shape:\n  "
            + "\n  ".join(different[:20])
            + f"\nGive this run the projector section of {folder / checkpoint.PROJECTOR_CARD}"
        )
    params = {}
    for part, tree in fresh.items():
        fits = _shapes(saved.get(part, {})) == _shapes(tree)
        params[part] = saved.get(part, tree) if fits else tree
        logging.info("init_from %s: %s %s", folder, part, "goes on" if fits else "starts fresh")
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)


def _read_card(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"train.init_from: cannot read {path} ({error}); expected a folder that experiments.train "
            "wrote"
        ) from error


def _require_same_frozen(folder: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    facts = (("encoder", "fingerprint"), ("encoder", "layers"), ("llm", "fingerprint"))
    different = [
        f"{part} {key}: {there[part][key]} there, {here[part][key]} here"
        for part, key in facts
        if there[part][key] != here[part][key]
    ]
    if different:
        raise CheckpointError(
            f"train.init_from={folder} was trained with other frozen parts: {'; '.join(different)}"
        )


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    return {name: tuple(leaf.shape) for name, leaf in safetensors.named_leaves(tree)}
