"""The frozen LLM reading a prompt and being held to an answer: what end-to-end objectives share."""

import dataclasses
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp

from tiny_align_jax import lora
from tiny_align_jax.objectives import embedlink
from tiny_align_jax.types import Array, Batch, ConfigError, Frozen, PyTree, Reading

Llm = tuple[ModuleType, Any]  # module of the LLM's family and its Config
END_ROW = 0  # row 0 of the table ends the answer


def check_rank(name: str, rank: int) -> list[str]:
    """What is wrong with a rank of LoRA, in words."""
    return [] if rank >= 0 else [f"{name}={rank}; expected 0 (no adapters) or more"]


def init_adapters(rank: int, key: Array, frozen: Frozen) -> PyTree:
    """{'lora': adapters of the LLM's attention}; {} at rank 0, or where no LLM is loaded."""
    if not rank or frozen.llm is None:
        return {}
    return {"lora": lora.init(key, frozen.llm, rank)}


def adapted(params: PyTree, frozen: Frozen) -> Frozen:
    """`frozen` with the adapters that train in the LLM's attention, if there are any."""
    if "lora" not in params:
        return frozen
    return dataclasses.replace(frozen, llm=lora.attach(frozen.llm, params["lora"]))


def answer_logits(
    llm: Llm | None,
    frozen: Frozen,
    heard_BHD: Array,
    heard_mask_BH: Array,
    batch: Batch,
    dtype: Any,
    remat: bool,
) -> Array:
    """Logits at every place of the answer under teacher forcing, float32 [B, L + 1, V].

    A row reads `prefix | heard | suffix | answer`; what is not valid is masked and takes no position,
    so that padding changes nothing.

    Args:
        llm: family module and Config.
        frozen: with parameters and prompt.
        heard_BHD: stands in the prompt's slot; H places.
        heard_mask_BH: its valid places.
        batch: the answer is its targets.
        dtype: compute dtype of the LLM.
        remat: recompute each layer's activations in the backward pass.

    Raises:
        ConfigError: no LLM was loaded, or the prompt has nothing after the audio.
    """
    if llm is None or frozen.llm is None or frozen.prefix_ids_P is None:
        raise ConfigError(
            "this objective reads through the LLM, but none was loaded with its prompt"
        )
    module, config = llm
    suffix_ids = jnp.asarray(frozen.suffix_ids_P)
    if not suffix_ids.size:
        raise ConfigError(
            "the prompt ends with the audio; an answer needs at least one token after it"
        )
    rows = heard_BHD.shape[0]

    def embed(ids):
        vectors = module.embed(config, frozen.llm, ids).astype(heard_BHD.dtype)
        return vectors if vectors.ndim == 3 else jnp.broadcast_to(vectors, (rows, *vectors.shape))

    ids_BL = jnp.take(jnp.asarray(frozen.row_ids_V), batch.target_ids_BL, axis=0)
    prefix, suffix, answer = embed(frozen.prefix_ids_P), embed(suffix_ids), embed(ids_BL)
    length = answer.shape[1]
    given = jnp.arange(length)[None] < batch.num_targets_B[:, None]
    mask_BN = jnp.concatenate([_true(prefix), heard_mask_BH, _true(suffix), given], axis=1)
    embeddings_BND = jnp.concatenate([prefix, heard_BHD, suffix, answer], axis=1)
    positions_BN = jnp.maximum(jnp.cumsum(mask_BN, axis=1) - 1, 0)
    first = prefix.shape[1] + heard_BHD.shape[1] + suffix.shape[1] - 1
    at_BL = jnp.broadcast_to(first + jnp.arange(length + 1), (rows, length + 1))
    model = module.LLM(config, dtype, remat, unroll=_on_gpu() and not remat)
    logits, _ = model.apply(
        {"params": frozen.llm}, embeddings_BND, positions_BN, mask_BN, logits_at=at_BL
    )
    return logits


def answer_labels(frozen: Frozen, batch: Batch) -> tuple[Array, Array]:
    """LLM ids of the answer with its end, [B, L + 1], and which of them count."""
    place = jnp.arange(batch.target_ids_BL.shape[1] + 1)[None]
    padded = jnp.pad(jnp.asarray(batch.target_ids_BL), ((0, 0), (0, 1)))
    count = jnp.asarray(batch.num_targets_B)[:, None]
    rows_BL = jnp.where(place < count, padded, END_ROW)
    return jnp.take(jnp.asarray(frozen.row_ids_V), rows_BL, axis=0), place <= count


def cross_entropy(logits_BLV: Array, labels_BL: Array, valid_BL: Array) -> Array:
    """Mean over the valid places of a row, float32[B]."""
    # Not taken by index: that gradient is a scatter into zeros, in two kernels more over all logits.
    is_label_BLV = jnp.arange(logits_BLV.shape[-1]) == labels_BL[..., None]
    right_BL = jnp.sum(jnp.where(is_label_BLV, logits_BLV, 0.0), axis=-1)
    loss_BL = jax.nn.logsumexp(logits_BLV, axis=-1) - right_BL
    return mean_valid(loss_BL, valid_BL)


def mean_valid(x_BL: Array, valid_BL: Array) -> Array:
    """Mean over the valid places of a row, float32[B]."""
    return jnp.where(valid_BL, x_BL, 0.0).sum(-1) / jnp.maximum(valid_BL.sum(-1), 1)


def accuracy(logits_BLV: Array, labels_BL: Array, valid_BL: Array, batch: Batch) -> Array:
    """Share of the answer's tokens that the LLM ranks first, over real rows."""
    counted = valid_BL & (jnp.asarray(batch.weight_B) > 0)[:, None]
    hits = (jnp.argmax(logits_BLV, axis=-1) == labels_BL) & counted
    return hits.sum() / jnp.maximum(counted.sum(), 1)


def nearest_rows(audio_BAD: Array, audio_mask_BA: Array, frozen: Frozen) -> Reading:
    """Nearest row at each audio token without repeats: a look inside, not how these objectives read.

    Nothing pulls audio tokens to rows of the table here; what counts is the LLM's answer to the raw
    tokens (snap mode 'none').
    """
    return embedlink.read(embedlink.Config(cast="stretch"), {}, audio_BAD, audio_mask_BA, frozen)


def _true(x: Array) -> Array:
    return jnp.ones(x.shape[:2], bool)


def _on_gpu() -> bool:
    return jax.default_backend() == "gpu"
