"""One training run in a workdir: prepare, fit, export; what `experiments.train` and sweeps call."""

import dataclasses
import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import psutil
from absl import logging

from tiny_align_jax import registry
from tiny_align_jax.data import batching
from tiny_align_jax.train import checkpoint, lanes, loop, setup
from tiny_align_jax.types import CheckpointError, TinyAlignError

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
        workdir: created if absent; to resume, config, frozen weights and utterances must be those that
            the run there began with.
        cache_dir: folder of weights and features.
        resume: go on from the newest checkpoint; False starts over, once everything is prepared.
        progress: show progress bars.

    Returns:
        A summary: steps, seconds by phase (training and compilation since `timed_from_step`, over all
        processes), validation scores, peak memory, parameters.

    Raises:
        TinyAlignError: of any stage; what was saved before stays.
    """
    start_s = time.monotonic()
    folder = Path(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    resumes = resume and checkpoint.has_checkpoint(folder)
    if resumes:
        _require_same_config(folder, config)
    prepared = setup.prepare(config, cache_dir, progress)
    card = {**prepared.card, "examples": _digest(prepared.run.examples)}
    if resumes:
        _require_same_parts(folder, card)
    else:
        _start_over(folder, config, card)
    prepare_s = time.monotonic() - start_s
    _log_sizes(prepared)
    result = loop.fit(prepared.run, prepared.state, workdir, progress=progress)
    before = _result_before(folder, result.first_step)
    summary = _summary(prepared, result, before) | {"prepare_s": round(prepare_s, 2)}
    checkpoint.export(folder, result.params, {**card, "step": result.step})
    checkpoint.write_json(folder / RESULT_FILE, summary)
    return summary


def train_lanes(
    configs: Sequence[Mapping[str, Any]],
    workdirs: Sequence[str | os.PathLike],
    cache_dir: str,
    *,
    progress: bool = True,
) -> list[dict[str, Any] | TinyAlignError]:
    """Trains runs that differ by seed and learning rate alone as one program, see `train.lanes`.

    Whatever the workdirs hold is replaced.

    Args:
        configs: resolved sections; equal but for `seed` and `optimizer.learning_rate`.
        workdirs: one a config.
        cache_dir: folder of weights and features.
        progress: show a progress bar while features are extracted.

    Returns:
        A summary a run, as of `train`, with the number of 'lanes', whose seconds they share; the error
        of a run whose loss became infinite.

    Raises:
        TinyAlignError: of any stage before the first step.
    """
    start_s = time.monotonic()
    prepared = setup.prepare(configs[0], cache_dir, progress)
    reference = configs[0]["optimizer"]["learning_rate"]
    card = {**prepared.card, "examples": _digest(prepared.run.examples)}
    runs = []
    for config, workdir in zip(configs, workdirs, strict=True):
        Path(workdir).mkdir(parents=True, exist_ok=True)
        _start_over(Path(workdir), config, card)
        run = dataclasses.replace(prepared.run, seed=config["seed"])
        rate = config["optimizer"]["learning_rate"] / reference
        runs.append(lanes.Lane(run, setup.first_state(run, card), rate, workdir))
    prepare_s = round(time.monotonic() - start_s, 2)
    found: list[dict[str, Any] | TinyAlignError] = []
    for lane, result in zip(runs, lanes.fit(runs), strict=True):
        if isinstance(result, TinyAlignError):
            found.append(result)
            continue
        folder, shared = Path(lane.workdir), {"prepare_s": prepare_s, "lanes": len(runs)}
        summary = _summary(prepared, result, {}) | shared
        checkpoint.export(folder, result.params, {**card, "step": result.step})
        checkpoint.write_json(folder / RESULT_FILE, summary)
        found.append(summary)
    return found


def _log_sizes(prepared: setup.Prepared) -> None:
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


def _summary(
    prepared: setup.Prepared, result: loop.Result, before: Mapping[str, Any]
) -> dict[str, Any]:
    """What became of a run; times and peak memory include those of the process `before`."""
    train_s = result.train_s + before.get("train_s", 0)
    input_s = result.input_s + before.get("input_s", 0)
    return {
        "finished": result.finished,
        "step": result.step,
        "timed_from_step": before.get("timed_from_step", result.first_step),
        "train_s": round(train_s, 2),
        "input_s": round(input_s, 4),
        "input_share": round(input_s / max(train_s, 1e-9), 5),
        "compile_s": round(result.compile_s + before.get("compile_s", 0), 2),
        "first_step_s": round(max(result.first_group_at_s - process_start_s(), 0), 2),
        "validation": result.validation,
        "best_validation": result.best,
        "stopped": result.stopped,
        "num_utterances": len(prepared.run.examples),
        "num_skipped": len(prepared.skipped),
        "trainable_params": count(prepared.state.trainable),
        "peak_rss_mb": max(round(peak_rss_bytes() / 1e6, 1), before.get("peak_rss_mb", 0)),
        "peak_device_mb": _peak_device_mb(),
        "versions": setup.versions(),
    }


def count(tree) -> int:
    """Number of parameters in a tree."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def process_start_s() -> float:
    """When this process began, seconds since the epoch."""
    return psutil.Process().create_time()


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


def _require_same_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuses to go on from checkpoints that another config made; where it runs does not matter."""
    there, here = (
        registry.without_unread(c)
        for c in (_read_json(folder / CONFIG_FILE), json.loads(json.dumps(config)))
    )
    differences = _differences(there | {"device": {}}, here | {"device": {}})
    if differences:
        raise CheckpointError(
            f"{folder} holds a run with another config:\n  "
            + "\n  ".join(differences[:20])
            + "\nUse another --workdir, or --noresume to start over there."
        )


def _require_same_parts(folder: Path, card: Mapping[str, Any]) -> None:
    """Refuses to go on with other weights, table rows or utterances than the run began with.

    Their names in the config may be the same: a folder's contents can change.
    """
    there = _read_json(folder / checkpoint.PROJECTOR_CARD)
    differences = []
    for part in ("encoder", "llm"):
        differences += _differences(there.get(part), json.loads(json.dumps(card[part])), part)
    for part in ("vocabulary", "examples"):
        if there.get(part) != json.loads(json.dumps(card[part])):
            differences.append(f"{part}: not what the run began with")
    if differences:
        raise CheckpointError(
            f"{folder} holds checkpoints of a run over other data or frozen weights:\n  "
            + "\n  ".join(differences[:20])
            + "\nBring those back, or use another --workdir or --noresume."
        )


def _start_over(folder: Path, config: Mapping[str, Any], card: Mapping[str, Any]) -> None:
    """Clears what an earlier run left, then writes what this one is; in that order, should it be killed."""
    shutil.rmtree(folder / checkpoint.STATE_FOLDER, ignore_errors=True)
    exported = (checkpoint.PROJECTOR_WEIGHTS, checkpoint.LORA_WEIGHTS, checkpoint.PROJECTOR_CARD)
    for name in (*exported, RESULT_FILE):
        (folder / name).unlink(missing_ok=True)
    checkpoint.write_json(folder / CONFIG_FILE, registry.without_unread(config))
    checkpoint.write_json(folder / checkpoint.PROJECTOR_CARD, {**card, "step": 0})


def _result_before(folder: Path, first_step: int) -> dict[str, Any]:
    """The summary of the process that this one went on from; {} if it was killed or there was none."""
    path = folder / RESULT_FILE
    result = _read_json(path) if first_step and path.is_file() else {}
    return result if result.get("step") == first_step else {}


def _digest(data: batching.Examples) -> str:
    """Hash of what is trained on: ids, lengths and targets, in order."""
    arrays = (data.num_frames_N, data.target_ids_NL, data.num_targets_N)
    parts = ["\n".join(data.ids).encode(), *(a.tobytes() for a in arrays)]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def _read_json(path: Path) -> dict[str, Any]:
    """A file of the workdir.

    Raises:
        CheckpointError: missing or damaged.
    """
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is missing or damaged ({error}), so nothing says what the checkpoints beside it "
            "belong to; use another --workdir, or --noresume to start over there"
        ) from error


def _differences(a: Any, b: Any, name: str = "") -> list[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        lines = []
        for key in sorted(set(a) | set(b)):
            path = f"{name}.{key}" if name else key
            lines += _differences(a.get(key), b.get(key), path)
        return lines
    return [] if a == b else [f"{name}: {a!r} there, {b!r} here"]
