"""The frozen LLM reading a prompt and being held to an answer: what end-to-end objectives share.

`init`, `prepare`, `read` and `min_audio_tokens` are those of the plug-in contract.
"""

import dataclasses
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp

from tiny_align_jax import checks, lora
from tiny_align_jax.objectives import embedlink
from tiny_align_jax.types import Array, Batch, ConfigError, Frozen, PyTree, Reading

Llm = tuple[ModuleType, Any]  # module of the LLM's family and its Config
END_ROW = 0  # row 0 of the table ends the answer


@dataclasses.dataclass(frozen=True)
class Config:
    """How the LLM is run in training: keys of every objective that trains through it.

    Attributes:
        llm_dtype: its compute dtype, 'bfloat16' or 'float32'.
        remat: recompute each layer's activations in the backward pass: memory of one layer instead
            of all, for about a third more time.
        lora_rank: rank of adapters that train in the LLM's attention, 0 for none; for a second stage,
            when the projector can already be read (see `lora`).
    """

    llm_dtype: str = "bfloat16"
    remat: bool = True
    lora_rank: int = 0


def wrong_llm(config: Config) -> list[str]:
    """What is wrong with these keys."""
    rank = config.lora_rank
    problems = [] if rank >= 0 else [f"lora_rank={rank}; expected 0 (no adapters) or more"]
    return [*problems, *checks.unlisted(config, llm_dtype=("float32", "bfloat16"))]


def init(config: Config, key: Array, frozen: Frozen) -> PyTree:
    """{'lora': adapters of the LLM's attention}; {} at rank 0, or where no LLM is loaded."""
    if not config.lora_rank or frozen.llm is None:
        return {}
    return {"lora": lora.init(key, frozen.llm, config.lora_rank)}


def adapted(params: PyTree, frozen: Frozen) -> Frozen:
    """`frozen` with the adapters that train in the LLM's attention, if there are any.

    They change what the LLM makes of the prompt, so that nothing prepared of it holds.
    """
    if "lora" not in params:
        return frozen
    adapted_llm = lora.attach(frozen.llm, params["lora"])
    return dataclasses.replace(frozen, llm=adapted_llm, constants=None)


def prepare(config: Config, frozen: Frozen, llm: Llm | None = None) -> dict[str, PyTree]:
    """What the LLM makes of the prompt before the audio.

    Raises:
        ConfigError: no LLM was loaded.
    """
    return _prompt(llm, frozen, jnp.dtype(config.llm_dtype))


def _prompt(llm: Llm | None, frozen: Frozen, dtype: Any) -> dict[str, PyTree]:
    """Keys and values of the prompt before the audio, one row: without adapters no step changes them.

    They are 24 of the 112 tokens that a step of the benchmark would read in every row.

    Raises:
        ConfigError: no LLM was loaded.
    """
    if llm is None or frozen.llm is None or frozen.prefix_ids_P is None:
        raise ConfigError(
            "this objective reads through the LLM, but none was loaded with its prompt"
        )
    (module, config), ids_P = llm, jnp.asarray(frozen.prefix_ids_P)
    num_tokens = len(ids_P)
    if not num_tokens:
        return {"prefix": None}
    _, cache = module.LLM(config, dtype).apply(
        {"params": frozen.llm},
        module.embed(config, frozen.llm, ids_P)[None],
        jnp.arange(num_tokens)[None],
        jnp.ones((1, num_tokens), bool),
        module.init_cache(config, 1, num_tokens, dtype),
        logits_at=jnp.zeros((1,), jnp.int32),
    )
    return {"prefix": cache}


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
    constants = _prompt(llm, frozen, dtype) if frozen.constants is None else frozen.constants
    assert llm is not None and frozen.prefix_ids_P is not None  # or `_prompt` would have refused
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
    suffix, answer = embed(suffix_ids), embed(ids_BL)
    length = answer.shape[1]
    given = jnp.arange(length)[None] < batch.num_targets_B[:, None]
    all_valid = jnp.ones(suffix.shape[:2], bool)
    mask_BN = jnp.concatenate([heard_mask_BH, all_valid, given], axis=1)
    embeddings_BND = jnp.concatenate([heard_BHD, suffix, answer], axis=1)
    positions_BN = jnp.maximum(jnp.cumsum(mask_BN, axis=1) - 1, 0) + len(frozen.prefix_ids_P)
    first = heard_BHD.shape[1] + suffix.shape[1] - 1
    at_BL = jnp.broadcast_to(first + jnp.arange(length + 1), (rows, length + 1))
    unroll = jax.default_backend() == "gpu" and not remat
    model = module.LLM(config, dtype, remat, unroll=unroll)
    behind = {"prefix": constants["prefix"], "logits_at": at_BL}
    logits, _ = model.apply({"params": frozen.llm}, embeddings_BND, positions_BN, mask_BN, **behind)
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


def read(
    config: Config, params: PyTree, audio_BAD: Array, audio_mask_BA: Array, frozen: Frozen
) -> Reading:
    """Nearest row at each audio token without repeats: a look inside, not how these objectives read.

    Nothing pulls audio tokens to rows of the table here; what counts is the LLM's answer to the raw
    tokens (snap mode 'none').
    """
    return embedlink.read(embedlink.Config(cast="stretch"), {}, audio_BAD, audio_mask_BA, frozen)


def min_audio_tokens(config: Config, num_targets: int, num_repeats: int) -> int:
    """The LLM reads any number of tokens."""
    return 1
