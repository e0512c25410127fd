"""Safetensors folders as tensor sources, and pytrees on disk in the same format.

We read the format ourselves because every tensor is mapped on its own and unmapped as soon as it
is dropped: mapping the whole file counts every page touched as resident memory.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tiny_align_jax.types import AssetError, PyTree, WeightsError
from tiny_align_jax.weights._safetensors_file import Entry, Tensor, num_bytes, read_header, write
from tiny_align_jax.weights.source import select_rows

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

__all__ = [
    "INDEX_FILE",
    "WEIGHTS_FILE",
    "SafetensorsSource",
    "Tensor",
    "load_tree",
    "named_leaves",
    "num_bytes",
    "read_metadata",
    "save_tree",
    "weight_files",
    "weight_map",
    "write",
]


class SafetensorsSource:
    """TensorSource over one file, or over a folder with one file or with an index and shards.

    Attributes:
        path: the file or folder it was opened on.
        metadata: string metadata of the file (of the first shard, if sharded).
    """

    def __init__(self, path: str | os.PathLike):
        """Reads the headers only.

        Raises:
            AssetError: nothing to read there.
            WeightsError: a truncated or corrupt file, or shards that disagree with their index.
        """
        self.path = Path(path)
        self.metadata: dict[str, str] = {}
        self._entries: dict[str, Entry] = {}
        files = weight_files(self.path)
        for file in files:
            entries, metadata = read_header(file)
            self._entries.update(entries)
            self.metadata = self.metadata or metadata
        index = self.path / INDEX_FILE
        if len(files) > 1 or (self.path.is_dir() and index.is_file()):
            _check_index(index, self._entries)

    def names(self) -> tuple[str, ...]:
        """All tensor names, sorted."""
        return tuple(sorted(self._entries))

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor, without reading it."""
        return self._entry(name).shape

    def dtype(self, name: str) -> np.dtype:
        """Dtype of one tensor, without reading it."""
        return self._entry(name).dtype

    def read(self, name: str) -> np.ndarray:
        """One tensor as a read-only memory map, released with the array."""
        entry = self._entry(name)
        if 0 in entry.shape:
            return np.empty(entry.shape, entry.dtype)  # an empty range cannot be mapped
        return np.memmap(entry.path, entry.dtype, "r", offset=entry.start, shape=entry.shape)

    def rows(self, name: str, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Rows `ids` of a matrix, [len(ids), width], copied out of the memory map.

        Raises:
            WeightsError: an id outside the matrix, or not a matrix.
        """
        return select_rows(name, self.shape(name), ids, lambda ids: np.array(self.read(name)[ids]))

    def _entry(self, name: str) -> Entry:
        if name not in self._entries:
            raise WeightsError(
                f"no tensor {name!r} in {self.path}; it has {len(self._entries)} others"
            )
        return self._entries[name]


def weight_files(path: Path) -> list[Path]:
    """The safetensors files of a file path or model folder.

    Raises:
        AssetError: none, or a shard named by the index is missing.
        WeightsError: the index cannot be read.
    """
    if path.is_file():
        return [path]
    if (path / WEIGHTS_FILE).is_file():
        return [path / WEIGHTS_FILE]
    if (path / INDEX_FILE).is_file():
        files = [path / name for name in sorted(set(weight_map(path / INDEX_FILE).values()))]
        missing = [f.name for f in files if not f.is_file()]
        if missing:
            raise AssetError(f"{path} lacks shard(s) {', '.join(missing)}; fetch the folder again")
        return files
    raise AssetError(_nothing_to_read(path))


def _nothing_to_read(path: Path) -> str:
    if not path.exists():
        return f"{path} does not exist; expected a model folder or a .safetensors file"
    pickles = sorted(p.name for p in path.glob("*.bin")) + sorted(
        p.name for p in path.glob("*.pt*")
    )
    if pickles:
        return (
            f"{path} has only {', '.join(pickles[:3])}: pickled weights run code when opened and are "
            f"never read. Convert them to safetensors, or take a revision that has {WEIGHTS_FILE}."
        )
    return f"{path} has neither {WEIGHTS_FILE} nor {INDEX_FILE}"


def weight_map(index: Path) -> dict[str, str]:
    """Tensor name -> shard file name.

    Raises:
        WeightsError: not an index, or one that names files outside its folder.
    """
    try:
        shards = json.loads(index.read_text())["weight_map"]
        names = set(shards.values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"{index} is no safetensors index ({error!r}); fetch it again"
        ) from error
    outside = sorted(n for n in names if Path(n).name != n)
    if outside:
        raise WeightsError(f"{index} names files outside its folder: {', '.join(outside)}")
    return shards


def _check_index(index: Path, entries: Mapping[str, Entry]) -> None:
    expected = weight_map(index)
    lost = sorted(
        n for n, file in expected.items() if n not in entries or entries[n].path.name != file
    )
    if lost:
        raise WeightsError(
            f"{index} promises {len(lost)} tensor(s) that their shards do not hold: "
            f"{', '.join(lost[:10])}; fetch the folder again"
        )


def save_tree(
    path: str | os.PathLike, tree: PyTree, metadata: Mapping[str, str] | None = None
) -> None:
    """Saves any pytree of arrays under '/'-joined names; readable by every safetensors library.

    Raises:
        AssetError: full disk or unwritable folder; `path` is as it was.
        WeightsError: a key that holds '/', or an array the format cannot hold.
    """
    tensors = {}
    for name, leaf in named_leaves(tree):
        array = np.asarray(leaf)
        tensors[name] = Tensor(array.dtype, array.shape, lambda array=array: (array,))
    write(path, tensors, metadata or {})


def load_tree(path: str | os.PathLike, like: PyTree | None = None) -> PyTree:
    """Loads what `save_tree` wrote, as nested dicts of numpy arrays, or in the structure of `like`.

    Raises:
        AssetError: no such file.
        WeightsError: a corrupt file, or names or shapes that differ from `like`.
    """
    source = SafetensorsSource(path)
    arrays = {name: np.array(source.read(name)) for name in source.names()}
    if like is None:
        return _nest(arrays)
    expected = {name: np.shape(leaf) for name, leaf in named_leaves(like)}
    problems = [f"missing {n}" for n in sorted(set(expected) - set(arrays))]
    problems += [f"unexpected {n}" for n in sorted(set(arrays) - set(expected))]
    problems += [
        f"{n} has shape {arrays[n].shape}, expected {shape}"
        for n, shape in sorted(expected.items())
        if n in arrays and arrays[n].shape != shape
    ]
    if problems:
        raise WeightsError(f"{path} does not fit: " + "; ".join(problems))
    return jax.tree.unflatten(jax.tree.structure(like), [arrays[n] for n in expected])


def read_metadata(path: str | os.PathLike) -> dict[str, str]:
    """String metadata of a safetensors file.

    Raises:
        AssetError: no such file.
        WeightsError: a corrupt file.
    """
    return dict(SafetensorsSource(path).metadata)


def named_leaves(tree: PyTree) -> list[tuple[str, Any]]:
    """('/'-joined path, leaf) of every leaf, in `jax.tree.leaves` order.

    Raises:
        WeightsError: a key that holds '/', or two leaves of one name.
    """
    leaves = [
        (tuple(_key(k) for k in path), leaf) for path, leaf in jax.tree.leaves_with_path(tree)
    ]
    wrong = [p for p, _ in leaves if any("/" in k for k in p)]
    names = ["/".join(p) for p, _ in leaves]
    if wrong or len(set(names)) != len(names):
        raise WeightsError(f"tree keys must be unique and free of '/': {wrong or sorted(names)}")
    return list(zip(names, (leaf for _, leaf in leaves), strict=True))


def _key(entry: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    return str(entry)


def _nest(arrays: Mapping[str, np.ndarray]) -> PyTree:
    tree: dict[str, Any] = {}
    for name, array in arrays.items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = array
    return tree
