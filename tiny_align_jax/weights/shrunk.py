"""Model folders of an LLM with fewer table rows or fewer layers, made once and kept in the cache.

Here and in `shrunk_tokenizer`, and nowhere else, ids are renumbered: the result is a model folder like any
other, whose tokenizer, table, head and special ids agree with each other. Its GGUF file, if there is one,
keeps its blocks bit for bit.
"""

import dataclasses
import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from tiny_align_jax.types import ConfigError
from tiny_align_jax.weights import assets, folder, loading, quantised, shrunk_tokenizer
from tiny_align_jax.weights._gguf_file import StoredTensor, read_table
from tiny_align_jax.weights.folder import ModelFolder
from tiny_align_jax.weights.safetensors import WEIGHTS_FILE, SafetensorsSource, Tensor, write

_SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
_GENERATION_FILE = "generation_config.json"
_GGUF_TABLES = ("token_embd.weight", "output.weight")
_VERSION = 1  # raised when the same choice gives another folder


@dataclasses.dataclass(frozen=True)
class Choice:
    """What stays of an LLM.

    Attributes:
        ids: of the tokens that stay, rising; None for all.
        layers: indices of the layers that stay, rising; None for all.
    """

    ids: tuple[int, ...] | None = None
    layers: tuple[int, ...] | None = None

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> "Choice":
        """The choice that `dataclasses.asdict` wrote, perhaps through a file."""
        return cls(**{k: None if v is None else tuple(v) for k, v in saved.items()})

    @property
    def is_whole(self) -> bool:
        """Whether nothing goes."""
        return self.ids is None and self.layers is None


def resolve(whole: ModelFolder, choice: Choice, cache_dir: str | os.PathLike) -> ModelFolder:
    """The folder of what stays of an LLM; made if the cache does not have it.

    Args:
        whole: the LLM.
        choice: what stays; ids closed under `shrunk_tokenizer.closure`.
        cache_dir: where models are kept.

    Raises:
        ConfigError: ids or layers that the LLM does not have, a tokenizer whose ids cannot be renumbered,
            or layers that differ in kind by a rule in config.json.
        AssetError: full disk.
    """
    if choice.is_whole:
        return whole
    key = [_VERSION, whole.fingerprint, dataclasses.asdict(choice)]
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:12]

    def build(staging: Path) -> None:
        _write(whole, choice, staging)
        folder.write_record(
            staging,
            name=f"{whole.name} (shrunk)",
            source=f"{whole.name}, fingerprint {whole.fingerprint}",
            licence=whole.licence,
            weights=[WEIGHTS_FILE],
        )

    return assets.cached(f"{whole.path.name}-shrunk-{digest}", Path(cache_dir).expanduser(), build)


def _write(whole: ModelFolder, choice: Choice, out: Path) -> None:
    module, config = loading.llm_config(whole)
    ids = tuple(range(config.vocab_size)) if choice.ids is None else choice.ids
    layers = tuple(range(config.num_layers)) if choice.layers is None else choice.layers
    _check("ids", ids, config.vocab_size)
    _check("layers", layers, config.num_layers)
    for file in whole.path.glob("*.json"):
        if file.name != folder.ASSET_FILE and "safetensors" not in file.name:
            shutil.copyfile(file, out / file.name)
    if choice.ids is not None:
        shrunk_tokenizer.rewrite(out, ids)
    hf = _shrunk_config(whole.config, ids, layers)
    kinds = list(module.config_from_hf(hf).layer_kinds)
    if kinds != [config.layer_kinds[i] for i in layers]:
        raise ConfigError(
            f"{whole.name}: config.json says by a rule which layers have which attention; layers "
            f"{list(layers)} would get another kind. Drop layers of an LLM whose layers are alike"
        )
    folder.write_json(out / folder.CONFIG_FILE, hf)
    if (out / _GENERATION_FILE).is_file():
        generation = _renumbered(folder.read_json(out / _GENERATION_FILE), ids)
        folder.write_json(out / _GENERATION_FILE, generation)
    _write_weights(whole.source(), module, ids, layers, out / WEIGHTS_FILE)
    if (whole.path / quantised.GGUF_FILE).is_file():
        _write_gguf(whole.path / quantised.GGUF_FILE, ids, layers, out / quantised.GGUF_FILE)


def _check(name: str, chosen: Sequence[int], count: int) -> None:
    if (
        not chosen
        or list(chosen) != sorted(set(chosen))
        or not 0 <= chosen[0] <= chosen[-1] < count
    ):
        raise ConfigError(
            f"{name} to keep: {list(chosen)[:8]}...; expected some of 0..{count - 1}, rising"
        )


def _shrunk_config(
    hf: Mapping[str, Any], ids: Sequence[int], layers: Sequence[int]
) -> dict[str, Any]:
    made = _renumbered(hf, ids) | {"vocab_size": len(ids), "num_hidden_layers": len(layers)}
    if types := hf.get("layer_types"):
        made["layer_types"] = [types[i] for i in layers]
    return made


def _renumbered(hf: Mapping[str, Any], ids: Sequence[int]) -> dict[str, Any]:
    """A config with its special ids as they are among `ids`; those that go are left out."""
    new = {old: i for i, old in enumerate(ids)}
    made = dict(hf)
    for key in _SPECIAL_IDS:
        if made.get(key) is None:
            continue
        old = made[key] if isinstance(made[key], list) else [made[key]]
        kept = [new[i] for i in old if i in new]
        made[key] = kept if isinstance(made[key], list) else (kept[0] if kept else None)
    return made


def _write_weights(
    source: SafetensorsSource, module: Any, ids: Sequence[int], layers: Sequence[int], path: Path
) -> None:
    tensors = {}
    for name in source.names():
        found = [(m, r) for r in module.PARAM_MAP if (m := re.fullmatch(r.source, name))]
        match, rule = found[0] if found else (None, None)
        shape, rows = source.shape(name), None
        if rule is not None and rule.target in (quantised.EMBEDDING, quantised.HEAD):
            rows, shape = np.array(ids), (len(ids), *shape[1:])
        layer = match.groupdict().get("layer") if match else None
        if layer is None:
            renamed = name
        elif int(layer) in layers:
            start, end = match.span("layer")  # type: ignore[union-attr]
            renamed = f"{name[:start]}{layers.index(int(layer))}{name[end:]}"
        else:
            continue
        tensors[renamed] = Tensor(
            source.dtype(name),
            shape,
            lambda name=name, rows=rows: (
                source.read(name) if rows is None else source.rows(name, rows),
            ),
        )
    write(path, tensors, {})


def _write_gguf(file: Path, ids: Sequence[int], layers: Sequence[int], path: Path) -> None:
    metadata, stored = read_table(file)
    architecture = metadata["general.architecture"]
    writer = gguf.GGUFWriter(path, architecture)
    metadata = {**metadata, f"{architecture}.block_count": len(layers)}
    for key, value in metadata.items():
        if not key.startswith(("general.architecture", "general.alignment", "tokenizer.")):
            _add(writer, key, value)
    for name, tensor in stored.items():
        if (renamed := _gguf_name(name, layers)) is None:
            continue
        data = _stored_rows(file, tensor)
        if name in _GGUF_TABLES:
            data = data[np.array(ids)]
        floats = {
            gguf.GGMLQuantizationType.F32: np.float32,
            gguf.GGMLQuantizationType.F16: np.float16,
        }
        if tensor.kind in floats:
            data = np.ascontiguousarray(data).view(floats[tensor.kind])
            writer.add_tensor(renamed, data.reshape(-1, *tensor.shape[1:]))
        else:
            writer.add_tensor(renamed, np.ascontiguousarray(data), raw_dtype=tensor.kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _gguf_name(name: str, layers: Sequence[int]) -> str | None:
    """A tensor's name among the layers that stay; None if its layer goes."""
    match = re.match(r"blk\.(\d+)\.", name)
    if not match:
        return name
    layer = int(match[1])
    return f"blk.{layers.index(layer)}.{name[match.end() :]}" if layer in layers else None


def _stored_rows(file: Path, tensor: StoredTensor) -> np.ndarray:
    num_rows = int(np.prod(tensor.shape[:-1], dtype=np.int64))
    shape = (num_rows, tensor.num_bytes // num_rows)
    return np.memmap(file, np.uint8, "r", offset=tensor.offset, shape=shape)


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    """Metadata that readers of weights need: numbers and texts; lists belong to the tokenizer."""
    kind = gguf.GGUFValueType.get_type(value)
    if kind is gguf.GGUFValueType.INT32 and value >= 0:  # counts, which llama.cpp writes unsigned
        kind = gguf.GGUFValueType.UINT32
    if kind is not gguf.GGUFValueType.ARRAY:
        writer.add_key_value(key, value, kind)
