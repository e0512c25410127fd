"""Stand-ins for weights and recordings that are not there: what memory and speed depend on, made up.

A model folder gets random weights in the shape of a published size and a tokenizer with as many entries; a
corpus gets noise as speech and made-up words as transcripts. The real loaders read all of it.
"""

import itertools
import json
import os
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import soundfile

from tiny_align_jax import published
from tiny_align_jax.types import SAMPLE_RATE_HZ, ConfigError
from tiny_align_jax.weights import random_weights
from tiny_align_jax.weights.folder import ASSET_FILE, ModelFolder, open_folder

_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_SPACE = "\u0120"  # how byte-level tokenizers write a space


def make_model(
    kind: str, name: str | Mapping[str, Any], path: str | os.PathLike, dtype: Any = np.float32
) -> ModelFolder:
    """A model folder of random weights; an LLM gets a tokenizer, too.

    Args:
        kind: 'encoders' or 'llms'.
        name: a published size, or a parsed config.json.
        path: folder to make.
        dtype: of the weights in the file.

    Raises:
        ConfigError: no published size of that name.
    """
    hf = published.find(kind, name) if isinstance(name, str) else dict(name)
    if hf is None:
        raise ConfigError(f"{name!r} is no published size; docs/models.md lists them")
    if kind == "llms":
        hf = {**hf, "eos_token_id": _SPECIAL.index("<|im_end|>")}
        write_tokenizer(Path(path), hf["vocab_size"])
    return random_weights.write_folder(path, kind, hf, dtype)


def make_model_once(kind: str, name: str, models: Path, dtype: Any = np.float32) -> ModelFolder:
    """`make_model` in a folder below `models`, unless it is there; processes side by side wait for each other."""
    path = models / f"{name}.{np.dtype(dtype).name}"
    models.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{path}.lock"):
        if (path / ASSET_FILE).is_file():  # written last
            return open_folder(path)
        return make_model(kind, name, path, dtype)


def write_tokenizer(folder: Path, vocab_size: int) -> None:
    """A byte-level BPE tokenizer of made-up syllables with `vocab_size` entries and a chat template."""
    folder.mkdir(parents=True, exist_ok=True)
    from tokenizers import pre_tokenizers  # half a second, and only here

    tokens = [*_SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    merges = list(itertools.islice(_merges(), max(vocab_size - len(tokens), 0)))
    tokens += ["".join(pair) for pair in merges]
    added = [
        {"id": i, "content": text, "special": True}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for i, text in enumerate(_SPECIAL)
    ]
    model = {
        "type": "BPE",
        "vocab": {token: i for i, token in enumerate(tokens[:vocab_size])},
        "merges": [" ".join(pair) for pair in merges],
    }
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    byte_level["use_regex"] = True
    tokenizer = {
        "version": "1.0",
        "added_tokens": added,
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "model": model,
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "chat_template": _TEMPLATE,
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


def _merges():
    """Pairs of tokens that make new ones: words of two letters and more, after a space and without."""
    letters = string.ascii_lowercase
    for length in itertools.count(2):
        for word in itertools.product(letters, repeat=length):
            text = "".join(word)
            if length == 2 and text[1] == "a":
                yield _SPACE, text[0]
            yield text[:-1], text[-1]
            yield _SPACE + text[:-1], text[-1]


def make_corpus(
    folder: str | os.PathLike, num_utterances: int, seconds: float, *, num_speakers: int = 4
) -> Path:
    """A `jsonl` corpus of noise, all of one length, with six made-up words each; returns its manifest.

    The last speaker's utterances are split 'test', the others' 'train'.
    """
    folder, rng = Path(folder), np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(num_utterances):
        noise = 0.1 * rng.normal(size=round(seconds * SAMPLE_RATE_HZ))
        soundfile.write(folder / f"{i:04d}.wav", noise.clip(-1, 1), SAMPLE_RATE_HZ)
        letters = rng.choice(list(string.ascii_lowercase), (6, 4))
        row = {
            "audio": f"{i:04d}.wav",
            "text": " ".join("".join(word) for word in letters),
            "speaker": f"s{i % num_speakers}",
            "split": "test" if i % num_speakers == num_speakers - 1 else "train",
        }
        rows.append(row)
    manifest = folder / "corpus.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return manifest
