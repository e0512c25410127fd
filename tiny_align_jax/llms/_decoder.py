"""The frame around a family's block: scan over layers, final norm, head.

A family subclasses `Decoder` and names its block and its final norm; everything about
prompts as embeddings, padding, caching, rematerialisation and scanning lives here once.
"""

from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn

from tiny_align_jax.llms import _blocks, _cache
from tiny_align_jax.types import Array


class Decoder(nn.Module):
    """A causal language model over embeddings.

    Attributes:
        config: the family's Config.
        dtype: what activations and matrix products use (float32 or bfloat16); norms, softmax,
            rotary angles and logits are float32 in any case.
        remat: recompute each layer's activations in the backward pass (training through the LLM).
        unroll: all layers in one turn of the loop over them. A gradient reads what the layers before kept, and
            a loop keeps that in stacks, filled with zeros, copied and transposed: 4.5 of 15 ms of a step
            through Llama-3.2-1B (H100). Takes about twice as long to compile; no use with `remat`.
    """

    config: Any
    dtype: Any = jnp.float32
    remat: bool = False
    unroll: bool = False

    block: ClassVar[type[nn.Module]]

    def final_norm(self) -> nn.Module:
        """Norm before the head, named 'final_norm'."""
        raise NotImplementedError

    @nn.compact
    def __call__(
        self,
        embeddings_BND: Array,
        positions_BN: Array,
        mask_BN: Array,
        cache: dict | None = None,
        logits_at: Array | None = None,
        prefix: dict | None = None,
    ) -> tuple[Array, dict | None]:
        """Next-token logits.

        Args:
            embeddings_BND: what `embed` returns (or projected audio at that scale).
            positions_BN: position of every token in its row; padding may hold anything.
            mask_BN: True for real tokens of THIS input; padding may stand left, right or between.
            cache: from `init_cache` or an earlier call; None to run without one.
            logits_at: int32[B] or [B, L], tokens (indices into N) whose logits are wanted; None
                for all. The head of a 256k vocabulary costs more memory than the layers.
            prefix: a cache of what stands before every row, one row or as many as here, read and not
                written; instead of `cache`.

        Returns:
            logits float32: [B, N, V], or [B, V] or [B, L, V] with `logits_at`; rows of padding
            tokens are meaningless. The cache after this call, None if none was given.
        """
        config = self.config
        table = _blocks.Embedder(config.vocab_size, config.dim, name="embedder")()
        context, cache = _cache.make_context(config, positions_BN, mask_BN, cache, prefix)
        past = None if prefix is None else (prefix["k"], prefix["v"])
        x_BND, cache = self._run_layers(embeddings_BND.astype(self.dtype), context, cache, past)
        x = _select(x_BND, logits_at)
        x = self.final_norm()(x)
        return self._head(table, x), cache

    def _run_layers(
        self,
        x_BND: Array,
        context: _cache.Context,
        cache: dict | None,
        past: _cache.KeyValues | None,
    ) -> tuple[Array, dict | None]:
        block = nn.remat(self.block, prevent_cse=False) if self.remat else self.block
        layers = nn.scan(
            block,
            variable_axes={"params": 0, "intermediates": 0},  # these only where asked for
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast),  # pyright: ignore[reportArgumentType]
            length=self.config.num_layers,
            unroll=self.config.num_layers if self.unroll else 1,
        )(self.config, name="layers")
        views = _cache.LayerView(
            layer=jnp.arange(self.config.num_layers, dtype=jnp.int32),
            kind=jnp.asarray(self.config.layer_kinds, jnp.int32),
            past=past,
        )
        key_values = None if cache is None else (cache["k"], cache["v"])
        (x_BND, key_values), _ = layers((x_BND, key_values), views, context)
        if cache is not None and key_values is not None:
            cache = cache | {"k": key_values[0], "v": key_values[1]}
        return x_BND, cache

    def _head(self, table: Any, x: Array) -> Array:
        config = self.config
        if config.tied_head:
            logits = _blocks.attend_table(table, x)
        else:
            logits = _blocks.Dense(config.vocab_size, dtype=jnp.float32, name="head")(x)
        cap = config.final_soft_cap
        return logits if cap is None else cap * jnp.tanh(logits / cap)


def _select(x_BND: Array, logits_at: Array | None) -> Array:
    if logits_at is None:
        return x_BND
    at_BL = logits_at.reshape(x_BND.shape[0], -1, 1)
    x_BLD = jnp.take_along_axis(x_BND, at_BL, axis=1)
    return x_BLD if logits_at.ndim == 2 else x_BLD[:, 0]
