"""KV cache, attention masks, and what a scanned layer needs to know about its place.

The cache is a dict:
    k, v: [layers, B, G, M, K]. Slots in the order they were written.
    valid: bool[B, M], slots that hold a real token (not padding, not unwritten).
    positions: int32[B, M], position of the token in every slot (for sliding windows).
    length: int32[], slots written so far; the next call writes from here.
A call that runs past M would overwrite the last slots (`dynamic_update_slice` clamps): the caller
sizes the cache for prompt plus answer.

Keys and values travel in the CARRY of the scan over layers: a step writes only the new token's slots,
in place. As scanned inputs and outputs, the whole cache would be copied once for every token.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import flax.struct
import jax
import jax.numpy as jnp

from tiny_align_jax.llms._rope import Rope, angles
from tiny_align_jax.types import Array

KeyValues = tuple[Array, Array]


@dataclasses.dataclass(frozen=True)
class LayerKind:
    """What differs between layers that share a scan.

    Attributes:
        rope: rotary embedding.
        window: a token sees keys at most window - 1 positions back; None sees all.
    """

    rope: Rope
    window: int | None = None


class DecoderConfig(Protocol):
    """What the shared machinery reads from a family's Config."""

    @property
    def dim(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def num_layers(self) -> int: ...
    @property
    def num_kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def kinds(self) -> tuple[LayerKind, ...]: ...
    @property
    def layer_kinds(self) -> tuple[int, ...]: ...


@flax.struct.dataclass
class LayerView:
    """Scanned beside the parameters.

    Attributes:
        layer: which one this is.
        kind: its index into `Config.kinds`.
        past: its keys and values of a prefix, [1 or B, G, P, K] each; None without one.
    """

    layer: Array
    kind: Array
    past: KeyValues | None = None


@flax.struct.dataclass
class Context:
    """The same for all layers of a call.

    Attributes:
        cos, sin: a list over kinds of float32[B, N, R].
        masks: a list over kinds of bool[B, N, M].
        length: slots filled before this call.
    """

    cos: Sequence[Array]
    sin: Sequence[Array]
    masks: Sequence[Array]
    length: Array

    def of_kind(self, kind: Array) -> tuple[Array, Array, Array]:
        """(cos_BNR, sin_BNR, mask_BNM) of one kind; `kind` may be traced."""
        return _pick(self.cos, kind), _pick(self.sin, kind), _pick(self.masks, kind)


def _pick(options: Sequence[Array], kind: Array) -> Array:
    chosen = options[0]
    for i, option in enumerate(options[1:], start=1):
        chosen = jnp.where(kind == i, option, chosen)
    return chosen


def init_cache(config: DecoderConfig, batch_size: int, max_length: int, dtype: Any) -> dict:
    """An empty cache of `max_length` slots a row."""
    shape = (config.num_layers, batch_size, config.num_kv_heads, max_length, config.head_dim)
    return {
        "k": jnp.zeros(shape, dtype),
        "v": jnp.zeros(shape, dtype),
        "valid": jnp.zeros((batch_size, max_length), bool),
        "positions": jnp.zeros((batch_size, max_length), jnp.int32),
        "length": jnp.zeros((), jnp.int32),
    }


def make_context(
    config: DecoderConfig,
    positions_BN: Array,
    mask_BN: Array,
    cache: dict | None,
    prefix: dict | None = None,
) -> tuple[Context, dict | None]:
    """Angles and masks of a call, and the cache with the new slots marked."""
    length = jnp.zeros((), jnp.int32)
    positions_BN, mask_BN = jnp.asarray(positions_BN), jnp.asarray(mask_BN, bool)
    valid_BM, positions_BM = mask_BN, positions_BN
    if prefix is not None:
        length = jnp.full((), prefix["valid"].shape[1], jnp.int32)
        valid_BM = _behind(prefix["valid"], mask_BN, axis=1)
        positions_BM = _behind(prefix["positions"], positions_BN, axis=1)
    if cache is not None:
        length, zero = cache["length"], jnp.zeros((), jnp.int32)
        update = jax.lax.dynamic_update_slice
        valid_BM = update(cache["valid"], mask_BN, (zero, length))
        positions_BM = update(cache["positions"], positions_BN.astype(jnp.int32), (zero, length))
        cache = cache | {
            "valid": valid_BM,
            "positions": positions_BM,
            "length": length + positions_BN.shape[1],
        }
    causal_BNM = _causal(length, positions_BN.shape[1], valid_BM)
    distance_BNM = positions_BN[:, :, None] - positions_BM[:, None, :]
    masks = [
        causal_BNM if kind.window is None else causal_BNM & (distance_BNM < kind.window)
        for kind in config.kinds
    ]
    pairs = [angles(kind.rope, positions_BN, mask_BN) for kind in config.kinds]
    cos, sin = [p[0] for p in pairs], [p[1] for p in pairs]
    return Context(cos=cos, sin=sin, masks=masks, length=length), cache


def _causal(length: Array, num_new: int, valid_BM: Array) -> Array:
    """Valid slots up to the own one; by slot, so that positions may repeat or jump."""
    slots_M = jnp.arange(valid_BM.shape[1])
    reaches_NM = slots_M[None] <= length + jnp.arange(num_new)[:, None]
    return reaches_NM[None] & valid_BM[:, None]


def read_write(
    cache: KeyValues | None, view: LayerView, length: Array, k_BNGK: Array, v_BNGK: Array
) -> tuple[Array, Array, KeyValues | None]:
    """Writes new keys and values into a layer's slots; returns all of that layer's, [B, G, M, K]."""
    k_BGNK, v_BGNK = jnp.swapaxes(k_BNGK, 1, 2), jnp.swapaxes(v_BNGK, 1, 2)
    if cache is None:
        if view.past is None:
            return k_BGNK, v_BGNK, None
        return _behind(view.past[0], k_BGNK, axis=2), _behind(view.past[1], v_BGNK, axis=2), None
    zero = jnp.zeros((), jnp.int32)
    start = (view.layer, zero, zero, length, zero)
    written = tuple(
        jax.lax.dynamic_update_slice(old, new[None].astype(old.dtype), start)
        for old, new in zip(cache, (k_BGNK, v_BGNK), strict=True)
    )
    k_BGMK, v_BGMK = (jax.lax.dynamic_index_in_dim(a, view.layer, keepdims=False) for a in written)
    return k_BGMK, v_BGMK, (written[0], written[1])


def _behind(prefix: Array, new: Array, axis: int) -> Array:
    """`new` behind `prefix`, whose first axis may stand for all rows."""
    shared = jnp.broadcast_to(prefix, (new.shape[0], *prefix.shape[1:]))
    return jnp.concatenate([shared.astype(new.dtype), new], axis=axis)
