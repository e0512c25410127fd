"""Frozen models off a model folder: the family by `model_type`, parameters by its PARAM_MAP.

This module and no other in `weights` looks plug-ins up; it imports none of them by name.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tiny_align_jax import registry
from tiny_align_jax.quantize import config as quantize_config
from tiny_align_jax.types import SAMPLE_RATE_HZ, Array, PyTree, Rule, WeightsError
from tiny_align_jax.weights import quantised
from tiny_align_jax.weights.convert import convert, empty, shapes_of
from tiny_align_jax.weights.folder import ModelFolder
from tiny_align_jax.weights.source import TensorSource

_FLOAT = quantize_config.Config()
_ROWS_AT_ONCE = 8192
_PROBE_SAMPLES = SAMPLE_RATE_HZ  # parameters do not depend on the length of the input


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A frozen model, ready to apply.

    Attributes:
        module: the plug-in module of its family.
        config: the family's Config.
        params: numpy pytree, the module's `params` collection.
        fingerprint: of the weights it came from.
    """

    module: ModuleType
    config: Any
    params: PyTree
    fingerprint: str


def load_encoder(
    folder: ModelFolder, dtype: Any = jnp.float32, quantize: quantize_config.Config = _FLOAT
) -> Loaded:
    """The speech encoder in `folder`.

    Args:
        folder: from `assets.resolve`.
        dtype: of parameters.
        quantize: how matrices are held.

    Raises:
        ConfigError: config.json asks for what the family does not handle.
        WeightsError: no family reads the folder, or its tensors do not fit.
    """
    module, config = encoder_config(folder)
    return _load(folder, module, config, encoder_shapes(module, config), dtype, quantize)


def load_llm(
    folder: ModelFolder,
    dtype: Any = jnp.float32,
    quantize: quantize_config.Config = _FLOAT,
    place: Callable[[str, Any], Any] = lambda name, value: value,
) -> Loaded:
    """The LLM in `folder`; arguments and errors as `load_encoder`, `place` as `convert`."""
    module, config = llm_config(folder)
    return _load(folder, module, config, llm_shapes(module, config), dtype, quantize, place)


def held_fingerprint(folder: ModelFolder, quantize: quantize_config.Config) -> str:
    """Fingerprint of the weights as they are held; of floats, the folder's own."""
    return folder.fingerprint + (f"+{quantize.tag}" if quantize.tag else "")


def held_shapes(
    folder: ModelFolder,
    kind: str,
    dtype: Any = jnp.float32,
    quantize: quantize_config.Config = _FLOAT,
) -> PyTree:
    """Shapes and dtypes of what `load_encoder` (kind 'encoders') or `load_llm` ('llms') will return.

    Reads the file's table of contents and allocates nothing; `sum(x.size * x.dtype.itemsize)` over
    the leaves is what the weights take.
    """
    read, shapes = {
        "encoders": (encoder_config, encoder_shapes),
        "llms": (llm_config, llm_shapes),
    }[kind]
    module, config = read(folder)
    source = quantised.source_of(folder, quantize)
    make_store = _make_store(source, dtype, quantize, allocate=False)
    rules = _rules(module, config)
    return shapes_of(source, rules, shapes(module, config), np.dtype(dtype), make_store)


def encoder_config(folder: ModelFolder) -> tuple[ModuleType, Any]:
    """Family module and Config of the encoder in `folder`, without its weights."""
    module = find_family("encoders", folder.config)
    return module, module.config_from_hf(folder.config, folder.preprocessor())


def llm_config(folder: ModelFolder) -> tuple[ModuleType, Any]:
    """Family module and Config of the LLM in `folder`, without its weights."""
    module = find_family("llms", folder.config)
    return module, module.config_from_hf(folder.config)


def held_shapes_of(
    kind: str,
    module: ModuleType,
    config: Any,
    dtype: Any,
    quantize: quantize_config.Config = _FLOAT,
) -> PyTree:
    """As `held_shapes` for a model that is known by its Config alone.

    Raises:
        ConfigError: GGUF blocks, which only a file has.
    """
    shapes = {"encoders": encoder_shapes, "llms": llm_shapes}[kind](module, config)
    rules = _rules(module, config)
    return quantised.shapes_without_file(shapes, rules, quantize, np.dtype(dtype))


def embedding_rows(
    folder: ModelFolder,
    ids: Sequence[int] | np.ndarray,
    quantize: quantize_config.Config = _FLOAT,
) -> np.ndarray:
    """Rows of the LLM's input table as its first layer sees them, [len(ids), D] float32.

    Only those rows are read from the memory map; the LLM's body is never touched. Of a quantised LLM,
    they are the rows that its quantised table gives.

    Raises:
        ConfigError: GGUF blocks of a folder without them.
        WeightsError: an id outside the table, or no family reads the folder.
    """
    module, config = llm_config(folder)
    source = quantised.source_of(folder, quantize)
    name, ids = _embedding_name(folder, source, module), np.asarray(ids)
    # Block by block: a whole vocabulary (Llama-3.2-3B: 1.6 GB of float32) would be held four times over.
    rows = empty((len(ids), config.dim), np.float32)
    with jax.default_device(jax.local_devices(backend="cpu")[0]):  # no programs for an accelerator
        for start in range(0, len(ids), _ROWS_AT_ONCE):
            block = quantised.table_rows(source, name, ids[start : start + _ROWS_AT_ONCE], quantize)
            table, every = {"embedder": {"embedding": block}}, np.arange(len(block))
            rows[start : start + len(block)] = module.embed(config, table, every)
    return rows


def find_family(kind: str, hf_config: Mapping[str, Any]) -> ModuleType:
    """The plug-in of family `kind` whose HF_MODEL_TYPES names the config's `model_type`.

    Raises:
        WeightsError: none does; the message lists what is read.
    """
    model_type = hf_config.get("model_type")
    modules = [registry.resolve(kind, name) for name in registry.names(kind)]
    for module in modules:
        if model_type in module.HF_MODEL_TYPES:
            return module
    known = sorted(t for module in modules for t in module.HF_MODEL_TYPES)
    raise WeightsError(f"model_type {model_type!r} is none of our {kind}: {', '.join(known)}")


def encoder_shapes(module: ModuleType, config: Any) -> PyTree:
    """Shapes and dtypes of an encoder's parameters; allocates none."""
    silence = np.zeros(_PROBE_SAMPLES, np.float32)
    inputs = np.asarray(module.preprocess(config, silence, _PROBE_SAMPLES))
    model = module.Encoder(config, jnp.float32)
    counts = np.array([_PROBE_SAMPLES])
    init = lambda: model.init(jax.random.key(0), inputs[None], counts)  # noqa: E731
    return jax.eval_shape(init)["params"]


def llm_shapes(module: ModuleType, config: Any) -> PyTree:
    """Shapes and dtypes of an LLM's parameters; allocates none."""
    model = module.LLM(config, jnp.float32)
    embeddings: Array = jnp.zeros((1, 2, config.dim), jnp.float32)
    positions, mask = jnp.arange(2)[None], jnp.ones((1, 2), bool)
    init = lambda key: model.init(key, embeddings, positions, mask)  # noqa: E731
    return jax.eval_shape(init, jax.random.key(0))["params"]


def _load(
    folder: ModelFolder,
    module: ModuleType,
    config: Any,
    shapes: PyTree,
    dtype: Any,
    quantize: quantize_config.Config,
    place: Callable[[str, Any], Any] = lambda name, value: value,
) -> Loaded:
    source = quantised.source_of(folder, quantize)
    make_store = _make_store(source, dtype, quantize)
    try:
        params = convert(source, _rules(module, config), shapes, np.dtype(dtype), make_store, place)
    except WeightsError as error:
        raise WeightsError(f"{folder.path} as {module.__name__}: {error}") from error
    return Loaded(module, config, params, folder.fingerprint)


def _make_store(
    source: TensorSource, dtype: Any, quantize: quantize_config.Config, allocate: bool = True
) -> Any:
    if quantize.is_float:
        return None
    return quantised.make_store(source, quantize, dtype, allocate=allocate)


def _rules(module: ModuleType, config: Any) -> tuple[Rule, ...]:
    """The family's table. Some exporters repeat a tied table as the head (Qwen3-0.6B): not used."""
    if not getattr(config, "tied_head", False):
        return module.PARAM_MAP
    return tuple(
        dataclasses.replace(rule, target=None) if rule.target == quantised.HEAD else rule
        for rule in module.PARAM_MAP
    )


def _embedding_name(folder: ModelFolder, source: TensorSource, module: ModuleType) -> str:
    target = quantised.EMBEDDING
    patterns = [rule.source for rule in module.PARAM_MAP if rule.target == target]
    names = [n for n in source.names() if any(re.fullmatch(p, n) for p in patterns)]
    if len(names) != 1:
        raise WeightsError(
            f"{folder.path}: expected one tensor for {target}, found {names or 'none'}"
        )
    return names[0]
