"""Hugging Face tokenizer files reduced to some of their tokens, ids renumbered.

A byte-pair tokenizer with a subset of its merges cuts a text as before if every token on the way to the
text's tokens stays: of the pairs that could be merged next the whole tokenizer takes the earliest, it is in
the subset, and the subset has no earlier one. Any other text falls apart into smaller tokens, down to bytes
or characters, which always stay.
"""

import json
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from tiny_align_jax.types import ConfigError

_FILE, _CONFIG_FILE = "tokenizer.json", "tokenizer_config.json"
_KINDS = ("BPE", "Unigram")
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


def closure(folder: Path, ids: Collection[int]) -> tuple[int, ...]:
    """`ids` and all ids that must stay with them, rising.

    These are control tokens, bytes or single characters, and of a byte-pair tokenizer every token that
    merges pass on the way.

    Args:
        folder: model folder.
        ids: wanted ids.

    Raises:
        ConfigError: a kind of tokenizer that cannot be reduced.
    """
    tokenizer = _read(folder)
    id_of = _vocabulary(tokenizer["model"])
    token_of = {i: token for token, i in id_of.items()}
    kept = {added["id"] for added in tokenizer["added_tokens"]} | {*ids}
    has_bytes = tokenizer["model"].get("byte_fallback", False)
    kept |= {i for token, i in id_of.items() if _is_smallest(token, has_bytes)}
    parents: dict[str, list[tuple[str, str]]] = {}
    for left, right in _merges(tokenizer["model"]):
        parents.setdefault(left + right, []).append((left, right))
    waiting = [token_of[i] for i in kept if i in token_of]
    while waiting:
        for pair in parents.get(waiting.pop(), ()):
            new = [token for token in pair if id_of[token] not in kept]
            kept.update(id_of[token] for token in new)
            waiting += new
    return tuple(sorted(kept))


def rewrite(folder: Path, ids: Sequence[int]) -> None:
    """Reduces the tokenizer files of `folder`, in place, to `ids`, which get the ids 0, 1, ...

    Raises:
        ConfigError: a kind of tokenizer that cannot be reduced.
    """
    tokenizer = _read(folder)
    new = {old: i for i, old in enumerate(ids)}
    model = tokenizer["model"]
    if model["type"] == "BPE":
        kept = {token: new[i] for token, i in model["vocab"].items() if i in new}
        model["merges"] = [
            [left, right]
            for left, right in _merges(model)
            if left in kept and right in kept and left + right in kept
        ]
        model["vocab"] = kept
    else:
        model["vocab"] = [entry for i, entry in enumerate(model["vocab"]) if i in new]
        model["unk_id"] = new.get(model.get("unk_id"))
    tokenizer["added_tokens"] = [
        added | {"id": new[added["id"]]} for added in tokenizer["added_tokens"]
    ]
    for processor in _templates(tokenizer.get("post_processor")):
        for special in processor["special_tokens"].values():
            special["ids"] = [new[i] for i in special["ids"]]
    _write(folder / _FILE, tokenizer)
    config = json.loads((folder / _CONFIG_FILE).read_text(encoding="utf-8"))
    if decoder := config.get("added_tokens_decoder"):
        config["added_tokens_decoder"] = {
            str(new[int(i)]): token for i, token in decoder.items() if int(i) in new
        }
    _write(folder / _CONFIG_FILE, config)


def _read(folder: Path) -> dict[str, Any]:
    tokenizer = json.loads((folder / _FILE).read_text(encoding="utf-8"))
    kind = tokenizer["model"].get("type")
    if kind not in _KINDS:
        raise ConfigError(
            f"the tokenizer in {folder} is a {kind}; only {' and '.join(_KINDS)} can be reduced. "
            "Keep its whole vocabulary"
        )
    return tokenizer


def _vocabulary(model: dict[str, Any]) -> dict[str, int]:
    if model["type"] == "BPE":
        return model["vocab"]
    return {token: i for i, (token, _) in enumerate(model["vocab"])}


def _merges(model: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Pairs in their order; old files write them as one text."""
    for pair in model.get("merges", ()):
        left, right = pair.split(" ") if isinstance(pair, str) else pair
        yield left, right


def _is_smallest(token: str, has_bytes: bool) -> bool:
    """Whether a text may fall apart to this token: a byte, or a character where bytes do not stand in."""
    if has_bytes:
        return (
            bool(_BYTE.fullmatch(token))
            or (len(token) == 1 and token < "\x80")
            or token == "\u2581"
        )
    return len(token) == 1


def _templates(processor: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """Post-processors that hold ids.

    Raises:
        ConfigError: one that holds them in a way we do not know.
    """
    if processor is None or processor["type"] == "ByteLevel":
        return
    if processor["type"] == "Sequence":
        for part in processor["processors"]:
            yield from _templates(part)
    elif processor["type"] == "TemplateProcessing":
        yield processor
    else:
        raise ConfigError(
            f"the tokenizer's post-processor {processor['type']} holds ids that cannot be renumbered; "
            "keep its whole vocabulary"
        )


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
