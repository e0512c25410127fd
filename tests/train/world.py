"""A corpus, an encoder and an LLM in miniature, and the config of a run over them."""

import json
import pathlib

import numpy as np
import soundfile

from configs import common
from tests import tiny_world

SPEAKERS = {"a": 7, "b": 12, "c": 30, "d": 31, "v": 8}
TRAIN_SENTENCES = [*tiny_world.SENTENCES[:2], "the green dog slept", "we call seven apples"]


def make(root: pathlib.Path, **overrides):
    """Builds everything below `root`; returns (config as plain mappings, cache folder)."""
    rng = np.random.default_rng(0)
    tiny_world.make_llm(root / "llm", rng)
    tiny_world.make_encoder(root / "encoder", rng)
    manifest = _corpus(root / "audio", rng)
    return config_of(root, manifest, **overrides), str(root / "cache")


def config_of(root: pathlib.Path, manifest: pathlib.Path, **overrides):
    """The sections of a run of few steps; `overrides` are dotted keys with '__' for the dot."""
    config = common.base()
    config.dataset = common.plugin("datasets", "jsonl", manifest=str(manifest))
    config.split.validation_speakers = 1
    config.encoder.update(asset=str(root / "encoder"), window_s=tiny_world.WINDOW_S)
    config.llm.asset = str(root / "llm")
    config.vocabulary.update(kind="pieces", min_count=1)
    config.objective = common.plugin("objectives", "embedlink")
    config.projector.bridgeformer.update(
        num_layers=1, dim=16, num_heads=2, mlp_dim=32, pooling="adaptive", num_tokens=24
    )
    config.augment.time_masks = 1
    config.train.update(num_steps=6, batch_size=4, num_buckets=1, log_every=1)
    for key, value in overrides.items():
        config.update_from_flattened_dict({key.replace("__", "."): value})
    return json.loads(config.to_json_best_effort())


def _corpus(folder: pathlib.Path, rng: np.random.Generator) -> pathlib.Path:
    """Five speakers of four sentences to train on, one other speaker to test on."""
    folder.mkdir(parents=True)
    rows = []
    for speaker, age in {**SPEAKERS, "t": 9}.items():
        for i, text in enumerate(TRAIN_SENTENCES):
            name = f"{speaker}{i}.wav"
            soundfile.write(folder / name, 0.1 * rng.normal(size=16000 + 3000 * i), 16000)
            row = {"audio": name, "text": text, "speaker": speaker, "age": age, "split": "train"}
            rows.append(row if speaker != "t" else row | {"text": f"apples {i}", "split": "test"})
    manifest = folder / "corpus.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return manifest
