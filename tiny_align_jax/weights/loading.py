"""Frozen models off a model folder: the family by `model_type`, parameters by its PARAM_MAP.

This module and no other in `weights` looks plug-ins up; it imports none of them by name.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tiny_align_jax import registry
from tiny_align_jax.types import SAMPLE_RATE_HZ, Array, PyTree, Rule, WeightsError
from tiny_align_jax.weights.convert import convert
from tiny_align_jax.weights.folder import ModelFolder

_EMBEDDING = "embedder/embedding"  # where every LLM family keeps its input table
_HEAD = "head/weight"  # and its output matrix, unless that is the table again
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


def load_encoder(folder: ModelFolder, dtype: Any = jnp.float32) -> Loaded:
    """The speech encoder in `folder`.

    Args:
        folder: from `assets.resolve`.
        dtype: of parameters.

    Raises:
        ConfigError: config.json asks for what the family does not handle.
        WeightsError: no family reads the folder, or its tensors do not fit.
    """
    module, config = encoder_config(folder)
    return _load(folder, module, config, encoder_shapes(module, config), dtype)


def load_llm(folder: ModelFolder, dtype: Any = jnp.float32) -> Loaded:
    """The LLM in `folder`; arguments and errors as `load_encoder`."""
    module, config = llm_config(folder)
    return _load(folder, module, config, llm_shapes(module, config), dtype)


def encoder_config(folder: ModelFolder) -> tuple[ModuleType, Any]:
    """Family module and Config of the encoder in `folder`, without its weights."""
    module = find_family("encoders", folder.config)
    return module, module.config_from_hf(folder.config, folder.preprocessor())


def llm_config(folder: ModelFolder) -> tuple[ModuleType, Any]:
    """Family module and Config of the LLM in `folder`, without its weights."""
    module = find_family("llms", folder.config)
    return module, module.config_from_hf(folder.config)


def embedding_rows(folder: ModelFolder, ids: Sequence[int] | np.ndarray) -> np.ndarray:
    """Rows of the LLM's input table as its first layer sees them, [len(ids), D] float32.

    Only those rows are read from the memory map; the LLM's body is never touched.

    Raises:
        WeightsError: an id outside the table, or no family reads the folder.
    """
    module, config = llm_config(folder)
    rows = folder.source().rows(_embedding_name(folder, module), ids).astype(np.float32)
    table = {"embedder": {"embedding": jnp.asarray(rows)}}
    return np.asarray(module.embed(config, table, jnp.arange(len(rows))), np.float32)


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
    init = lambda key: model.init(key, inputs[None], jnp.array([_PROBE_SAMPLES]))  # noqa: E731
    return jax.eval_shape(init, jax.random.key(0))["params"]


def llm_shapes(module: ModuleType, config: Any) -> PyTree:
    """Shapes and dtypes of an LLM's parameters; allocates none."""
    model = module.LLM(config, jnp.float32)
    embeddings: Array = jnp.zeros((1, 2, config.dim), jnp.float32)
    positions, mask = jnp.arange(2)[None], jnp.ones((1, 2), bool)
    init = lambda key: model.init(key, embeddings, positions, mask)  # noqa: E731
    return jax.eval_shape(init, jax.random.key(0))["params"]


def _load(
    folder: ModelFolder, module: ModuleType, config: Any, shapes: PyTree, dtype: Any
) -> Loaded:
    try:
        params = convert(folder.source(), _rules(module, config), shapes, np.dtype(dtype))
    except WeightsError as error:
        raise WeightsError(f"{folder.path} as {module.__name__}: {error}") from error
    return Loaded(module, config, params, folder.fingerprint)


def _rules(module: ModuleType, config: Any) -> tuple[Rule, ...]:
    """The family's table. Some exporters repeat a tied table as the head (Qwen3-0.6B): not used."""
    if not getattr(config, "tied_head", False):
        return module.PARAM_MAP
    return tuple(
        dataclasses.replace(rule, target=None) if rule.target == _HEAD else rule
        for rule in module.PARAM_MAP
    )


def _embedding_name(folder: ModelFolder, module: ModuleType) -> str:
    patterns = [rule.source for rule in module.PARAM_MAP if rule.target == _EMBEDDING]
    names = [n for n in folder.source().names() if any(re.fullmatch(p, n) for p in patterns)]
    if len(names) != 1:
        raise WeightsError(
            f"{folder.path}: expected one tensor for {_EMBEDDING}, found {names or 'none'}"
        )
    return names[0]
