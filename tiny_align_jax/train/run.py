"""One training run in a workdir: prepare, fit, export; what `experiments.train` and sweeps call."""

import json
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import psutil
from absl import logging

from tiny_align_jax.train import checkpoint, loop, setup
from tiny_align_jax.types import CheckpointError

CONFIG_FILE = "config.json"
RESULT_FILE = "train_result.json"


def train(
    config: Mapping[str, Any],
    workdir: str | os.PathLike,
    cache_dir: str,
    *,
    resume: bool = True,
    progress: bool = True,
) -> dict[str, Any]:
    """Trains the projector of a config and exports it to `workdir`.

    Args:
        config: resolved sections, as plain mappings.
        workdir: created if absent; config.json there must equal `config` to resume.
        cache_dir: folder of weights and features.
        resume: go on from the newest checkpoint; False starts over.
        progress: show progress bars.

    Returns:
        A summary: steps, seconds by phase, validation scores, peak memory, parameters.

    Raises:
        TinyAlignError: of any stage; what was saved before stays.
    """
    start_s = time.monotonic()
    folder = Path(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    _settle_config(folder, config, resume)
    prepared = setup.prepare(config, cache_dir, progress)
    prepare_s = time.monotonic() - start_s
    logging.info(
        "%d training utterances of %d speakers, %d validation, %d skipped, %d left out because their "
        "sentence is in the test set; %d table rows; %s trainable parameters",
        len(prepared.run.examples),
        len({u.speaker_id for u in prepared.split.train}),
        len(prepared.split.validation),
        len(prepared.skipped),
        len(prepared.split.dropped),
        len(prepared.run.frozen.row_ids_V),
        f"{count(prepared.state.trainable):,}",
    )
    result = loop.fit(prepared.run, prepared.state, workdir, resume=resume, progress=progress)
    summary = {
        "finished": result.finished,
        "step": result.step,
        "train_s": round(result.train_s, 2),
        "compile_s": round(result.compile_s, 2),
        "prepare_s": round(prepare_s, 2),
        "validation": result.validation,
        "num_utterances": len(prepared.run.examples),
        "num_skipped": len(prepared.skipped),
        "trainable_params": count(prepared.state.trainable),
        "peak_rss_mb": round(peak_rss_bytes() / 1e6, 1),
        "peak_device_mb": _peak_device_mb(),
        "versions": setup.versions(),
    }
    checkpoint.export(folder, result.params, {**prepared.card, "step": result.step})
    checkpoint.write_json(folder / RESULT_FILE, summary)
    return summary


def count(tree) -> int:
    """Number of parameters in a tree."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def peak_rss_bytes() -> int:
    """Peak resident memory of this process."""
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError):  # not Linux: the current size is the best there is
        return psutil.Process().memory_info().rss


def _peak_device_mb() -> float | None:
    stats = jax.devices()[0].memory_stats() or {}
    peak = stats.get("peak_bytes_in_use")
    return None if peak is None else round(peak / 1e6, 1)


def _settle_config(folder: Path, config: Mapping[str, Any], resume: bool) -> None:
    """Writes config.json, or checks it where a run is to be resumed."""
    path = folder / CONFIG_FILE
    saved = folder / checkpoint.STATE_FOLDER
    if not resume and saved.exists():
        shutil.rmtree(saved)
    plain = json.loads(json.dumps(config))
    if resume and saved.exists() and path.exists():
        differences = _differences(json.loads(path.read_text()), plain)
        if differences:
            raise CheckpointError(
                f"{folder} holds a run with another config:\n  " + "\n  ".join(differences[:20])
                + "\nUse another --workdir, or --noresume to start over there."
            )
    checkpoint.write_json(path, plain)


def _differences(a: Any, b: Any, name: str = "") -> list[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        lines = []
        for key in sorted(set(a) | set(b)):
            path = f"{name}.{key}" if name else key
            lines += _differences(a.get(key), b.get(key), path)
        return lines
    return [] if a == b else [f"{name}: {a!r} there, {b!r} here"]
