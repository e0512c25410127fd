"""From a config to what is learnt from and scored: split, texts, cached frames, examples.

Reads no LLM, and holds the encoder only while features are missing.
"""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from absl import logging

from tiny_align_jax import checks, registry
from tiny_align_jax.data import batching, splits, vocabulary
from tiny_align_jax.features import extract, hashing
from tiny_align_jax.quantize import config as quantize
from tiny_align_jax.types import ConfigError, DataError, Utterance
from tiny_align_jax.weights import assets, loading


def read_split(config: Mapping[str, Any]) -> splits.Split:
    """The split that the config names; speakers are disjoint unless the corpus says otherwise."""
    module, module_config = registry.from_section("datasets", config["dataset"])
    section = config["split"]
    train = module.read(module_config, section["train"])
    test = module.read(module_config, section["test"]) if section["test"] else []
    if section.get("num_folds"):  # not in configs of earlier runs
        if test:
            raise ConfigError(
                f"split.num_folds={section['num_folds']} beside split.test={section['test']!r}: folds make "
                "a test set of train's speakers; set split.test to ''"
            )
        train, test = splits.speaker_fold(
            train, section["num_folds"], section["fold"], section["seed"]
        )
    split = splits.held_out(
        train,
        test,
        section["validation_speakers"],
        section["seed"],
        section["train_speakers"] or None,
    )
    if section["validation"]:
        own = module.read(module_config, section["validation"])
        split = dataclasses.replace(split, validation=tuple(own))
    fraction = section["train_fraction"]
    if not 0 < fraction <= 1:
        raise ConfigError(f"split.train_fraction={fraction}; expected 0 < x <= 1")
    keep = np.random.default_rng(section["seed"]).permutation(len(split.train))
    kept = sorted(keep[: max(1, round(fraction * len(split.train)))])
    return dataclasses.replace(split, train=tuple(split.train[i] for i in kept))


def audio_digests(split: splits.Split, cache_dir: str) -> dict[str, str]:
    """SHA-256 of every audio file of a split that can be read; kept in the feature cache's memo."""
    everything = (*split.train, *split.validation, *split.test)
    memo = pathlib.Path(cache_dir) / "features" / extract.HASHES_FILE
    return hashing.hash_files((u.audio_path for u in everything), memo, os.cpu_count() or 1)[0]


def vocabulary_texts(config: Mapping[str, Any], split: splits.Split) -> list[str]:
    """Training transcripts, and the lines of `vocabulary.texts`.

    Raises:
        DataError: a text file that cannot be read.
    """
    texts = [u.text for u in split.train]
    path = config["vocabulary"].get("texts", "")
    if not path:
        return texts
    lines = checks.lines_of("vocabulary.texts", path)
    return [*texts, *(line for line in lines if vocabulary.spoken_form(line))]


def drawn(utterances: Sequence[Utterance], limit: int) -> Sequence[Utterance]:
    """At most `limit` of them in their order, drawn by seed 0; 0 for all."""
    if not limit or limit >= len(utterances):
        return utterances
    chosen = np.random.default_rng(0).permutation(len(utterances))[:limit]
    return [utterances[i] for i in sorted(chosen)]


def features(
    config: Mapping[str, Any],
    cache_dir: str,
    utterances: Sequence[Utterance],
    progress: bool,
    features_dir: str = "",
):
    """Cached frames of the utterances, the extraction's report, and the encoder's card.

    They lie in `features_dir`, by default beside the weights in `cache_dir`.
    """
    section = config["encoder"]
    folder = assets.resolve(section["asset"], cache_dir)
    module, module_config = loading.encoder_config(folder)
    dtype = jnp.dtype(section["dtype"])
    held = registry.make_config(quantize, section.get("quantize", {}))
    cache, report = extract.extract(
        utterances,
        module,
        module_config,
        lambda: loading.load_encoder(folder, dtype, held).params,
        loading.held_fingerprint(folder, held),
        window_s=section["window_s"],
        cache_dir=features_dir or f"{cache_dir}/features",
        layers=tuple(section["layers"]),
        batch_size=config["features"]["batch_size"],
        dtype=dtype,
        long=config["features"]["too_long"],
        bad_audio=config["features"]["bad_audio"],
        progress=progress,
    )
    card = {
        "name": section["asset"],
        "fingerprint": folder.fingerprint,
        "window_s": section["window_s"],
        "layers": list(section["layers"]),
        "dtype": section["dtype"],
        "quantize": dataclasses.asdict(held),
        "dim": module_config.dim,
    }
    return cache, report, card


def examples(
    role: str,
    utterances: Sequence[Utterance],
    cache,
    report: extract.Report,
    rows: vocabulary.Vocabulary,
    can_emit,
    targets: bool = True,
) -> tuple[batching.Examples, dict[str, str]]:
    """Examples of the utterances that have frames and a usable transcript; the rest by reason.

    Raises:
        DataError: none has; names the role and some of the reasons.
    """
    skipped = {
        u.utterance_id: report.skipped[u.utterance_id]
        for u in utterances
        if u.utterance_id in report.skipped
    }
    ids, keys, target_rows = [], [], []
    for u in utterances:
        if u.utterance_id in skipped:
            continue
        key = report.keys[u.utterance_id]
        try:
            target = rows.encode(u.text) if targets else np.zeros(1, np.int32)
        except DataError as error:
            skipped[u.utterance_id] = str(error)
            continue
        if targets and not can_emit(cache.num_frames(key), target):
            skipped[u.utterance_id] = (
                f"{cache.num_frames(key)} frames are too few for {len(target)} targets"
            )
            continue
        ids.append(u.utterance_id)
        keys.append(key)
        target_rows.append(target)
    for utterance_id, reason in skipped.items():
        logging.warning("skipped %s: %s", utterance_id, reason)
    if not ids:
        reasons = "".join(f"\n  {name}: {why}" for name, why in list(skipped.items())[:8])
        raise DataError(f"none of {len(utterances)} {role} utterance(s) can be used:{reasons}")
    lengths = [cache.num_frames(k) for k in keys]
    made = batching.make_examples(ids, lengths, target_rows, lambda i: cache.frames(keys[i]))
    return made, skipped


def warn_of_cut(data: batching.Examples, num_audio_tokens: Callable[[int], int]) -> int:
    """Logs how many transcripts an objective of fixed length cannot hold whole; returns the number."""
    tokens_N = np.array([num_audio_tokens(int(n)) for n in data.num_frames_N])
    cut_N = data.num_targets_N > tokens_N
    if cut_N.any():
        logging.warning(
            "%d of %d transcripts have more tokens (up to %d) than the projector gives (%d): their "
            "ends are cut, or squeezed; a larger num_tokens of the projector holds them",
            cut_N.sum(),
            len(data),
            data.num_targets_N.max(),
            tokens_N.min(),
        )
    return int(cut_N.sum())
