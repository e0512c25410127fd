"""Sampling that must write one given token a row: it grows likelier until written, nothing ends before.

The loop of `decode_loop` for a batch whose rows differ in nothing but that token.
"""

import dataclasses
import functools

import flax.struct
import jax
import jax.numpy as jnp

from tiny_align_jax import decode_loop
from tiny_align_jax.types import Array, PyTree


@dataclasses.dataclass(frozen=True)
class Writer:
    """What the compiled program depends on.

    Attributes:
        model: the frozen LLM.
        sampling: how to draw.
        boost: added to the logit of the token owed, for every step that it is late.
    """

    model: decode_loop.LanguageModel
    sampling: decode_loop.Sampling
    boost: float


@flax.struct.dataclass
class Draft:
    """What the loop carries; `step` tokens of every row are known.

    Attributes:
        cache: the family's KV cache.
        logits_BV: of the next token.
        ids_BM: tokens so far, NO_TOKEN where there is none.
        said_B: True where the token owed was written.
        ended_B: True where an end was written.
        log_prob_B: of the tokens so far, under the model alone.
        step: tokens written.
    """

    cache: PyTree
    logits_BV: Array
    ids_BM: Array
    said_B: Array
    ended_B: Array
    log_prob_B: Array
    step: Array


@functools.partial(jax.jit, static_argnames=("writer",))
def write_batch(
    writer: Writer,
    params: PyTree,
    prefix: decode_loop.Prefix,
    word_B: Array,
    colon: Array,
    allowed_V: Array,
    ends_V: Array,
    seed: Array,
) -> Draft:
    """One sentence a row that ends only after its word was written."""
    batch, longest = word_B.shape[0], writer.sampling.max_new_tokens
    request_BN = jnp.stack([word_B, jnp.full_like(word_B, colon)], axis=1)
    logits_BV, cache = _append(writer.model, params, prefix, request_BN, longest)
    draft = Draft(
        cache=cache,
        logits_BV=logits_BV,
        ids_BM=jnp.full((batch, longest), decode_loop.NO_TOKEN, jnp.int32),
        said_B=jnp.zeros(batch, bool),
        ended_B=jnp.zeros(batch, bool),
        log_prob_B=jnp.zeros(batch, jnp.float32),
        step=jnp.zeros((), jnp.int32),
    )
    key_B = jax.random.split(jax.random.key(seed), batch)
    is_word_BV = word_B[:, None] == jnp.arange(logits_BV.shape[1])

    def unfinished(draft: Draft) -> Array:
        return (draft.step < longest) & ~draft.ended_B.all()

    def step(draft: Draft) -> Draft:
        owed_B1 = ~draft.said_B[:, None]
        boost = jnp.where(is_word_BV & owed_B1, writer.boost * draft.step, 0)
        steered_BV = draft.logits_BV + boost
        steered_BV = jnp.where(allowed_V & ~(ends_V & owed_B1), steered_BV, -jnp.inf)
        drawn_B = decode_loop.draw(writer.sampling, steered_BV, key_B, draft.step)
        free_BV = jax.nn.log_softmax(draft.logits_BV)
        log_prob_B = jnp.take_along_axis(free_BV, drawn_B[:, None], axis=1)[:, 0]
        positions_B1 = jnp.full((batch, 1), prefix.num_tokens + 2) + draft.step
        vectors_B1D = writer.model.embed(params, drawn_B)[:, None]
        logits_BNV, cache = writer.model.apply(
            params, vectors_B1D, positions_B1, ~draft.ended_B[:, None], draft.cache
        )
        kept_B = jnp.where(draft.ended_B, decode_loop.NO_TOKEN, drawn_B)
        return Draft(
            cache=cache,
            logits_BV=logits_BNV[:, -1].astype(jnp.float32),
            ids_BM=jnp.asarray(draft.ids_BM).at[:, draft.step].set(kept_B),
            said_B=draft.said_B | (drawn_B == word_B),
            ended_B=draft.ended_B | ends_V[drawn_B],
            log_prob_B=draft.log_prob_B + jnp.where(draft.ended_B, 0, log_prob_B),
            step=draft.step + 1,
        )

    return jax.lax.while_loop(unfinished, step, draft)


@functools.partial(jax.jit, static_argnames=("model",))
def continued(model, params: PyTree, prefix: decode_loop.Prefix, word_B: Array, letters_V: Array):
    """Probability [B] that the token after the word only adds letters to it."""
    logits_BV, _ = _append(model, params, prefix, word_B[:, None], 0)
    return jnp.where(letters_V, jax.nn.softmax(logits_BV), 0).sum(axis=-1)


def _append(model, params: PyTree, prefix: decode_loop.Prefix, ids_BN: Array, num_more: int):
    """Reads `ids_BN` after the prefix; the next token's logits, and a cache with room for more."""
    batch, num_new = ids_BN.shape
    empty = model.init_cache(batch, prefix.num_tokens + num_new + num_more)
    positions_BN = jnp.broadcast_to(prefix.num_tokens + jnp.arange(num_new), ids_BN.shape)
    logits_BV, cache = model.apply(
        params,
        model.embed(params, ids_BN),
        positions_BN,
        jnp.ones(ids_BN.shape, bool),
        decode_loop.widen(prefix.cache, empty),
        jnp.full((batch,), num_new - 1),
    )
    return logits_BV.astype(jnp.float32), cache
