"""Lowered programs kept on disk, so that a new process neither traces nor lowers what an earlier one has.

JAX keeps compiled programs, but finds them by what it lowers: Python traces the whole model first, which takes
longer than to read the program. Here the lowered form (StableHLO bytes, written by `jax.export`) stands beside
JAX's cache, and is found by what it was made from: the function, its static arguments, shapes, versions,
device, and the source of this package. It computes what the function does.
"""

import contextlib
import dataclasses
import functools
import hashlib
import importlib.util
import os
import tempfile
import threading
from collections.abc import Callable, Hashable, Sequence
from concurrent import futures
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import flax.linen as nn
import jax
import jax.core
import jax.export
from absl import logging

FOLDER = "lowered"  # inside of JAX's compilation cache
MOST_FILES = 256  # of 0.03 to 2 MB; those longest unused go first
# What changes a program besides its arguments.
_OPTIONS = (
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
)
# Kernels that JAX promises nothing about: versions are part of what a program is found by.
_NO_CHECKS = (jax.export.DisabledSafetyCheck.custom_call("ALL"),)
_ALL: list["Kept"] = []
_AHEAD: dict[Path, futures.Future] = {}  # by file: programs that are being read


def result_type(cls: type) -> type:
    """A class decorator: kept functions may return this `flax.struct.dataclass` of arrays."""
    name = f"{cls.__module__}.{cls.__qualname__}"
    jax.export.register_pytree_node_serialization(
        cls,
        serialized_name=name,
        serialize_auxdata=lambda _: b"",
        deserialize_auxdata=lambda _: (),
    )
    return cls


class Kept:
    """A jitted function whose lowered programs are kept where JAX keeps compiled ones.

    Just `jax.jit` where JAX keeps none, beside several devices, under another transformation, and with static
    arguments from outside of this package, whose source nobody watches.
    """

    def __init__(self, function: Callable[..., Any], num_static: int) -> None:
        """Args: the function; how many of its arguments stand first that are no trees of arrays.

        Those are hashable, and their `repr` says all of them.
        """
        functools.update_wrapper(self, function)
        self._function, self._num_static = function, num_static
        self._name = f"{function.__module__}.{function.__name__}"
        self._jitted = jax.jit(function, static_argnums=tuple(range(num_static)))
        self.lower, self._lock = self._jitted.lower, threading.Lock()
        self._found: dict[Hashable, futures.Future] = {}
        _ALL.append(self)

    def __call__(self, *arguments: Any) -> Any:
        leaves, tree = jax.tree.flatten(arguments[self._num_static :])
        program = self._program(arguments[: self._num_static], leaves, tree)
        return program(*leaves) if program else self._jitted(*arguments)

    def prepare(self, *arguments: Any) -> None:
        """Reads the program for such arguments (shapes are enough) if it was kept, to be called in a thread.

        What is not there is left to the call itself: two compilers at work would take their memory at once.
        """
        leaves, tree = jax.tree.flatten(arguments[self._num_static :])
        self._program(arguments[: self._num_static], leaves, tree, make=False)

    def last_used(self, folder: str, most: int) -> list[Path]:
        """Its newest files that this process could use, the last used first."""
        kept = []
        for path in (Path(folder) / FOLDER).glob(f"{self._prefix()}*"):
            with contextlib.suppress(FileNotFoundError):  # another process tidies up
                kept.append((path.stat().st_mtime, path))
        return [path for _, path in sorted(kept, reverse=True)[:most]]

    def load(self, path: Path) -> Callable[..., Any] | None:
        """The program of a file; None if there is no such file, or a damaged one."""
        exported = _read(path)
        return self._compiled(exported) if exported else None

    def forget(self) -> None:
        """Lets go of the programs in memory."""
        self._found.clear()

    def _program(self, static, leaves, tree, make: bool = True) -> Callable[..., Any] | None:
        """None where jit is to do it, or nothing is kept and nothing to be made."""
        folder = _folder()
        if not folder or _are_elsewhere(leaves):
            return None
        # Every call comes here, with hundreds of leaves: only what is new is given shapes.
        key = (folder, static, tree, tuple(map(_form, leaves)))
        if not make and not self._path(folder, static, tree, _shapes(leaves)).is_file():
            return None
        with self._lock:
            is_new = key not in self._found
            future = self._found.setdefault(key, futures.Future())
        if is_new:
            try:
                future.set_result(self._find(folder, static, tree, _shapes(leaves)))
            except Exception as error:  # jit tells what is wrong with the arguments, if anything is
                logging.info("%s is not kept: %r", self._name, error)
                future.set_result(None)
        return future.result()

    def _prefix(self) -> str:
        surroundings = hashlib.sha256("\n".join(_surroundings()).encode()).hexdigest()
        return f"{self._function.__name__}-{surroundings[:16]}-"

    def _path(self, folder: str, static, tree, shapes) -> Path:
        said = (self._name, repr(static), str(tree), str(shapes))
        digest = hashlib.sha256("\n".join(said).encode()).hexdigest()
        return Path(folder) / FOLDER / f"{self._prefix()}{digest}"

    def _find(self, folder: str, static, tree, shapes) -> Callable[..., Any] | None:
        has_address = " at 0x" in repr(static)  # which is another in every process
        if has_address or not _is_ours(static):
            return None
        path = self._path(folder, static, tree, shapes)
        ahead = _AHEAD.pop(path, None)
        program = (ahead.result() if ahead else None) or self.load(path)
        if program is None:
            flat = self._named(lambda *x: self._function(*static, *jax.tree.unflatten(tree, x)))
            exported = jax.export.export(flat, disabled_checks=_NO_CHECKS)(*shapes)
            _write(path, exported.serialize())
            # As the next process will have it, so that both find the same compiled program.
            program = self.load(path) or self._compiled(exported)
        with contextlib.suppress(OSError):
            os.utime(path)  # the last used
        return program

    def _compiled(self, exported: jax.export.Exported) -> Callable[..., Any]:
        return self._named(exported.call).lower(*exported.in_avals).compile()

    def _named(self, work: Callable[..., Any]) -> Any:
        """Jitted under the function's name, which profiles and logs show."""

        def named(*leaves):
            return work(*leaves)

        named.__name__ = self._function.__name__
        return jax.jit(named)


def kept(num_static: int) -> Callable[[Callable[..., Any]], Kept]:
    """`Kept` as a decorator."""
    return functools.partial(Kept, num_static=num_static)


def read_ahead(functions: Sequence[Kept], most: int = 2) -> None:
    """Begins to read, in threads, what the processes before this one called last.

    A call knows late which program it wants, and a GPU's takes seconds to read; most are the last user's.

    Args:
        functions: whose programs.
        most: programs of each.
    """
    folder = _folder()
    found = [(f, path) for f in functions for path in f.last_used(folder, most)] if folder else []
    if not found:
        return
    pool = futures.ThreadPoolExecutor(len(found), thread_name_prefix="programs")
    for function, path in found:
        _AHEAD[path] = pool.submit(_quietly, function.load, path)
    pool.shutdown(wait=False)


def _quietly(load: Callable[[Path], Any], path: Path) -> Any:
    """None where it cannot be read: the call that wants it says what is wrong."""
    try:
        return load(path)
    except Exception as error:
        logging.info("%s is not read ahead: %r", path, error)
        return None


def _folder() -> str | None:
    """Where programs are kept; None where none are."""
    folder = _option("jax_enable_compilation_cache") and _option("jax_compilation_cache_dir")
    return folder if folder and _can_write() and jax.device_count() == 1 else None


def forget() -> None:
    """Lets go of all programs in memory, as `jax.clear_caches` does of JAX's."""
    _AHEAD.clear()
    for function in _ALL:
        function.forget()


def _is_ours(static: Any) -> bool:
    """Whether modules and classes in a static argument are all of this package."""
    if isinstance(static, tuple):
        return all(map(_is_ours, static))
    if isinstance(static, ModuleType):
        return _is_inside(static.__name__)
    if not dataclasses.is_dataclass(static):
        return True
    hidden = ("parent", "name") if isinstance(static, nn.Module) else ()
    values = [getattr(static, f.name) for f in dataclasses.fields(static) if f.name not in hidden]
    return _is_inside(type(static).__module__) and _is_ours(tuple(values))


def _is_inside(module: str) -> bool:
    return module.partition(".")[0] == __name__.partition(".")[0]


def _are_elsewhere(leaves: Sequence[Any]) -> bool:
    """Whether a leaf is under a transformation, or on another device than new arrays are."""
    here = {jax.devices()[0]}
    return _option("jax_default_device") is not None or any(
        isinstance(leaf, jax.core.Tracer)
        or (isinstance(leaf, jax.Array) and leaf.devices() != here)
        for leaf in leaves
    )


def _form(leaf: Any) -> tuple[tuple[int, ...], Any, bool]:
    return leaf.shape, leaf.dtype, getattr(leaf, "weak_type", False)


def _shapes(leaves: Sequence[Any]) -> tuple[jax.ShapeDtypeStruct, ...]:
    forms = map(_form, leaves)
    return tuple(jax.ShapeDtypeStruct(shape, dtype, weak_type=weak) for shape, dtype, weak in forms)


def _read(path: Path) -> jax.export.Exported | None:
    """None if there is no such file, or a damaged one."""
    try:
        return jax.export.deserialize(bytearray(path.read_bytes()))
    except FileNotFoundError:
        return None
    except Exception as error:
        logging.warning("%s cannot be read and is made anew: %r", path, error)
        return None


def _write(path: Path, data: bytes | bytearray) -> None:
    """Whole or not at all; a folder that cannot be written keeps nothing."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        by_age = sorted(path.parent.iterdir(), key=lambda p: p.stat().st_mtime)
        for old in by_age[: max(0, len(by_age) - MOST_FILES + 1)]:
            old.unlink(missing_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(data)
        os.replace(file.name, path)
    except OSError as error:
        logging.debug("%s is not kept: %s", path, error)


def _surroundings() -> Sequence[str]:
    """Everything else that a program is made of."""
    device = jax.devices()[0]
    versions = map(metadata.version, ("jax", "jaxlib", "flax", "optax"))
    kind = (device.platform, device.device_kind, device.client.platform_version)
    return (*versions, *kind, *(str(_option(name)) for name in _OPTIONS), _source_digest())


def _option(name: str) -> Any:
    return getattr(jax.config, name)


@functools.cache
def _can_write() -> bool:
    """`jax.export` writes and reads with flatbuffers, which JAX does not require."""
    return importlib.util.find_spec("flatbuffers") is not None


@functools.cache
def _source_digest() -> str:
    """Of this package: a program of other code is another program."""
    digest, root = hashlib.sha256(), Path(__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()
