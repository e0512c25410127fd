"""Checkpoints of random weights in a model's published shape: for measuring memory and speed.

Names come from the family's own mapping table, so that the real loaders read them. Values are one block
of normal numbers over and over: what is written is random enough to compute with, and quickly made.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tiny_align_jax.types import Rule, WeightsError
from tiny_align_jax.weights import folder, loading, safetensors
from tiny_align_jax.weights.safetensors import named_leaves
from tiny_align_jax.weights.source import select_rows

_SPREAD = 0.02  # what decoders are initialised with: activations stay finite at any depth
_BLOCK_VALUES = 1 << 20


class RandomSource:
    """TensorSource of a model that has no weights."""

    def __init__(self, kind: str, hf_config: Mapping[str, Any], dtype: Any = np.float32):
        """Allocates nothing.

        Args:
            kind: 'encoders' or 'llms'.
            hf_config: parsed config.json.
            dtype: of the tensors.

        Raises:
            WeightsError: no family reads it, or its mapping table is beyond us.
        """
        module = loading.find_family(kind, hf_config)
        config = module.config_from_hf(hf_config)
        shapes = loading.encoder_shapes if kind == "encoders" else loading.llm_shapes
        self._dtype = np.dtype(dtype)
        self._shapes = dict(_tensors(module.PARAM_MAP, dict(named_leaves(shapes(module, config)))))
        draw = np.random.default_rng(0).normal(size=_BLOCK_VALUES)
        self._values = (_SPREAD * draw).astype(self._dtype)

    def names(self) -> tuple[str, ...]:
        """All tensor names, sorted."""
        return tuple(sorted(self._shapes))

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor."""
        return self._shapes[name]

    def dtype(self, name: str) -> np.dtype:
        """Dtype of every tensor."""
        del name
        return self._dtype

    def read(self, name: str) -> np.ndarray:
        """One tensor."""
        return np.concatenate([b.ravel() for b in self.blocks(name)]).reshape(self.shape(name))

    def rows(self, name: str, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Rows of a matrix."""
        return select_rows(name, self.shape(name), ids, lambda ids: self.read(name)[ids])

    def blocks(self, name: str) -> Iterator[np.ndarray]:
        """One tensor in pieces: norms are 1, biases 0."""
        left = int(np.prod(self.shape(name)))
        while left:
            piece = self._values[: min(left, _BLOCK_VALUES)]
            if len(self.shape(name)) == 1:
                piece = np.full_like(piece, 0 if name.endswith("bias") else 1)
            yield piece
            left -= len(piece)


def write_folder(
    path: str | os.PathLike, kind: str, hf_config: Mapping[str, Any], dtype: Any = np.float32
) -> folder.ModelFolder:
    """A model folder of random weights, written block by block.

    Raises:
        AssetError: full disk.
        WeightsError: as `RandomSource`.
    """
    source, path = RandomSource(kind, hf_config, dtype), Path(path)
    path.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: safetensors.Tensor(
            source.dtype(name), source.shape(name), lambda name=name: source.blocks(name)
        )
        for name in source.names()
    }
    safetensors.write(path / safetensors.WEIGHTS_FILE, tensors, {})
    (path / folder.CONFIG_FILE).write_text(json.dumps(dict(hf_config)), encoding="utf-8")
    # A record, so that nobody hashes gigabytes of noise to tell them apart.
    folder.write_json(
        path / folder.ASSET_FILE,
        {
            "name": path.name,
            "source": "random",
            "licence": "none",
            "fingerprint": f"random {path.name}",
            "files": {},
        },
    )
    return folder.open_folder(path)


def _tensors(
    rules: Sequence[Rule], shapes: Mapping[str, jax.ShapeDtypeStruct]
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes that fill every parameter of `shapes`."""
    filled = set()
    for rule in rules:
        if rule.target is None or rule.target not in shapes or rule.target in filled:
            continue
        filled.add(rule.target)
        dims = tuple(shapes[rule.target].shape)
        stacked = "(?P<layer>" in rule.source
        for layer in range(dims[0] if stacked else 1):
            yield _name(rule.source, layer), _as_stored(rule, dims[stacked:])
    if missing := sorted(set(shapes) - filled):
        raise WeightsError(f"no rule fills {', '.join(missing[:5])}")


def _name(pattern: str, layer: int) -> str:
    """A name that the pattern of a rule matches: optional groups left out, first alternatives taken."""
    name = pattern.replace(r"(?P<layer>\d+)", str(layer))
    name = re.sub(r"\(\?:[^()]*\)\?", "", name)
    name = re.sub(r"\(\?:([^()|]*)\|[^()]*\)", r"\1", name).replace(r"\.", ".")
    if not re.fullmatch(pattern, name):
        raise WeightsError(f"no example of a tensor name like {pattern!r}; {name!r} is none")
    return name


def _as_stored(rule: Rule, dims: tuple[int, ...]) -> tuple[int, ...]:
    return dims[::-1] if rule.transform in ("linear", "conv1d") else dims
