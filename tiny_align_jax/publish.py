"""A trained projector as a folder that others can use: float16, checked, without paths of the machine.

The folder holds what `Aligner.load` reads (projector.safetensors, projector.json, config.json), the replay
that personalisation needs (replay.safetensors), tuned reading with its texts (reading.json, *.txt), how
it was trained and what the conversion changed (publish.json), scores (metrics*.json) and a model card
(README.md, by `publish_card`).
"""

import dataclasses
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import jax
import numpy as np

from tiny_align_jax import evaluate, reading, reading_config, scoring
from tiny_align_jax.adapt import replay
from tiny_align_jax.aligner import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE, Aligner
from tiny_align_jax.features import cache
from tiny_align_jax.train import checkpoint, run
from tiny_align_jax.types import CheckpointError, ConfigError
from tiny_align_jax.weights import safetensors

ABOUT_FILE = "publish.json"
METRICS = "metrics*.json"
VALIDATION = "metrics.validation.no_llm.json"
TRANSCRIPTS_FILE = "transcripts.txt"
SENTENCES_FILE = "sentences.txt"
MAX_BYTES = 10_000_000
NORMALIZER = "whisper_english"
_PATH_OF_FOLDER = ("root", "cache_dir", "voice")  # keys of a config that name folders, not files


@dataclasses.dataclass(frozen=True)
class Config:
    """How to publish.

    Attributes:
        replay_count: training utterances in replay.safetensors.
        max_wer_change: how far the word error rate on validation may move by the conversion.
        command: trains the projector; for the card.
    """

    replay_count: int = 24
    max_wer_change: float = 0.002
    command: str = ""


def publish(
    base: Aligner,
    workdir: str | os.PathLike,
    out: str | os.PathLike,
    cache_dir: str,
    config: Config,
    *,
    progress: bool = False,
) -> dict[str, Any]:
    """Writes a workdir's projector to `out`, reads the validation utterances with both, and says so.

    Scores of the workdir are copied only where they must be those of the published file: all if the
    conversion changed no weight, those on validation without the LLM if it changed no reading there.
    For the others the published folder has to be evaluated itself.

    Args:
        base: the workdir's aligner, which finds its corpus here.
        workdir: where it was loaded from.
        out: folder to write; what a former call wrote is replaced.
        cache_dir: folder of weights and features.
        config: how.
        progress: show progress bars.

    Returns:
        Contents of publish.json.

    Raises:
        ConfigError: frozen parts that others could not find by their names.
        CheckpointError: a file of more than MAX_BYTES, or a reading that the conversion changed by more
            than `config.max_wer_change`.
    """
    source, folder = Path(workdir), Path(out)
    require_public(base.card)
    folder.mkdir(parents=True, exist_ok=True)
    weights = safetensors.load_tree(source / WEIGHTS_FILE)
    checkpoint.export(folder, weights, base.card, np.float16)
    _write_compact(folder / CARD_FILE, base.card)
    num_bytes = (folder / WEIGHTS_FILE).stat().st_size
    if num_bytes > MAX_BYTES:
        raise CheckpointError(
            f"{folder / WEIGHTS_FILE} has {num_bytes:,} bytes, at most {MAX_BYTES:,} are published: train "
            "a projector of at most 5 million parameters"
        )
    checkpoint.write_json(folder / CONFIG_FILE, without_paths(base.config))
    replay.save(folder / replay.FILE, replay.of_corpus(base, cache_dir, config.replay_count))
    copy_reading(base, source, folder)
    about = {
        "num_parameters": run.count(weights),
        "num_bytes": num_bytes,
        "sha256": cache.file_sha256(folder / WEIGHTS_FILE),
        "command": config.command,
        "training": _training(source / run.RESULT_FILE),
        "conversion": compare(
            base, Aligner.load(folder, cache_dir, need_llm=False), cache_dir, progress
        ),
    }
    about["conversion"]["weights_changed"] = not _same(weights, folder / WEIGHTS_FILE)
    checkpoint.write_json(folder / ABOUT_FILE, about)
    change = abs(about["conversion"]["wer_published"] - about["conversion"]["wer_original"])
    if change > config.max_wer_change:
        raise CheckpointError(
            f"in float16 the word error rate on validation moved by {change:.4f}, at most "
            f"{config.max_wer_change} are published; train with weights that float16 can hold"
        )
    for path in sorted(source.glob(_same_scores(about["conversion"]))):
        shutil.copyfile(path, folder / path.name)
    return about


def copy_reading(base: Aligner, source: Path, folder: Path) -> None:
    """Takes tuned reading along, with the texts that it counts and shows: it then needs no corpus."""
    if not (source / reading_config.FILE).is_file():
        return
    tuned = json.loads((source / reading_config.FILE).read_text(encoding="utf-8"))
    (folder / TRANSCRIPTS_FILE).write_text("\n".join(reading.transcripts(base)) + "\n", "utf-8")
    for method, settings in tuned["methods"].items():
        settings["transcripts"] = TRANSCRIPTS_FILE
        if settings["ngram_texts"]:
            found = reading_config.load_config(source, method).ngram_texts
            shutil.copyfile(found, folder / SENTENCES_FILE)
            settings["ngram_texts"] = SENTENCES_FILE
    kept = {key: tuned[key] for key in ("methods", "greedy_wer", "num_utterances")}
    checkpoint.write_json(folder / reading_config.FILE, kept)


def _same_scores(conversion: Mapping[str, Any]) -> str:
    """Pattern of the workdir's scores that hold for the published file, too."""
    if not conversion["weights_changed"]:
        return METRICS
    return VALIDATION if not conversion["num_changed"] else "none"


def compare(
    original: Aligner, published: Aligner, cache_dir: str, progress: bool = False
) -> dict[str, Any]:
    """What both read on the validation utterances of the original's corpus."""
    what = evaluate.Config(split="validation", use_llm=False)
    utterances, frames, *_ = evaluate.frames_of(original, cache_dir, what, progress=progress)
    heard = {
        name: evaluate.hear_all(aligner, frames, what, progress=progress)[0]
        for name, aligner in (("original", original), ("published", published))
    }
    settings = scoring.Config(metrics=("wer",), normalizers=(NORMALIZER,), num_resamples=1)
    scores = scoring.score(settings, utterances, heard)[NORMALIZER]["scores"]
    changed = sum(a != b for a, b in zip(heard["original"], heard["published"], strict=True))
    return {
        "num_utterances": len(utterances),
        "num_changed": changed,
        **{f"wer_{name}": scores[name][scoring.ALL]["wer"]["value"] for name in heard},
    }


def require_public(card: Mapping[str, Any]) -> None:
    """Refuses frozen parts that are folders of this machine.

    Raises:
        ConfigError: names each of them.
    """
    local = [
        f"{part} {card[part]['name']!r}"
        for part in ("encoder", "llm")
        if _is_path(card[part]["name"])
    ]
    if local:
        raise ConfigError(
            f"{', '.join(local)}: a path of this machine; train with the name of an asset or a hub id, so "
            "that others find the weights"
        )


def without_paths(config: Any, key: str = "") -> Any:
    """A config without what only this machine knows: folders are empty, files keep their last name."""
    if isinstance(config, Mapping):
        return {k: without_paths(v, k) for k, v in config.items()}
    if not _is_path(config):
        return config
    return "" if key in _PATH_OF_FOLDER else PurePosixPath(config.replace("\\", "/")).name


def clean_metrics(folder: Path) -> None:
    """Takes this machine's folders out of metrics*.json: of settings, and of why utterances were left out."""
    for path in folder.glob(METRICS):
        metrics = without_paths(json.loads(path.read_text(encoding="utf-8")))
        reasons = metrics.get("skipped", {})
        metrics["skipped"] = {name: re.sub(r"/\S*/", "", why) for name, why in reasons.items()}
        path.write_text(json.dumps(metrics, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_compact(path: Path, card: Mapping[str, Any]) -> None:
    """One line a section: the table's rows are ten thousand numbers."""
    lines = ",\n".join(f" {json.dumps(key)}: {json.dumps(value)}" for key, value in card.items())
    path.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")


def _is_path(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    return (
        PurePosixPath(value).is_absolute()
        or PureWindowsPath(value).is_absolute()
        or value[:1] == "~"
    )


def _same(weights: Any, path: Path) -> bool:
    saved = jax.tree.leaves(safetensors.load_tree(path))
    pairs = zip(jax.tree.leaves(weights), saved, strict=True)
    return all(
        np.array_equal(np.asarray(a, np.float32), np.asarray(b, np.float32)) for a, b in pairs
    )


def _training(path: Path) -> dict[str, Any]:
    """What the card says of the training run, if it left its result."""
    if not path.is_file():
        return {}
    found = json.loads(path.read_text(encoding="utf-8"))
    return {k: found[k] for k in ("num_utterances", "train_s", "compile_s", "versions")}
