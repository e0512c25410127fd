"""Rotary position embedding: frequencies of every published scaling, and the rotation.

Dimension key of this package, beyond `types`: G key/value heads, M key slots (of the cache, or N
without one), R rotated half-width.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from tiny_align_jax.llms._hf import Attributes
from tiny_align_jax.types import Array


@dataclasses.dataclass(frozen=True)
class Rope:
    """One rotary embedding.

    Attributes:
        theta: base of the geometric series of wavelengths.
        dim: rotated entries of each head (the rest pass through), even.
        factor: position interpolation; wavelengths are stretched by it ('linear'), or only the long
            ones ('llama3').
        low_freq_factor: 'llama3': wavelengths above original_length / this are stretched in full;
            None means that all are ('linear').
        high_freq_factor: 'llama3': wavelengths below original_length / this are kept.
        original_length: training length that 'llama3' and 'longrope' refer to, in tokens.
        short_factors: 'longrope': divisor of every frequency for rows up to original_length tokens.
        long_factors: 'longrope': the same for longer rows.
        magnitude: multiplies cosine and sine ('longrope').
    """

    theta: float = 10_000.0
    dim: int = 64
    factor: float = 1.0
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    original_length: int | None = None
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()
    magnitude: float = 1.0


def rope_from_hf(
    attributes: Attributes,
    head_dim: int,
    max_length: int | None,
    default_fraction: float = 1.0,
) -> Rope:
    """Reads `rope_theta`, `rope_scaling` and `partial_rotary_factor`, old or new dialect.

    Up to transformers 4 they are top-level attributes; from 5 on `rope_parameters` holds them all.

    Args:
        attributes: where problems are reported, too.
        head_dim: K.
        max_length: `max_position_embeddings`, only used by 'longrope'.
        default_fraction: rotated part of each head where the file does not say.
    """
    theta = attributes.take("rope_theta", 10_000.0)
    fraction = attributes.take("partial_rotary_factor", default_fraction)
    original_length = attributes.take("original_max_position_embeddings", None)
    scaling = {
        "rope_theta": theta,
        "partial_rotary_factor": fraction,
        **attributes.take("rope_scaling", {}),
        **attributes.take("rope_parameters", {}),
    }
    if original_length is not None:  # Where both places name it, the outer one counts.
        scaling["original_max_position_embeddings"] = original_length
    return rope_from_parameters(attributes, scaling, head_dim, max_length)


def rope_from_parameters(
    attributes: Attributes, parameters: Mapping[str, Any], head_dim: int, max_length: int | None
) -> Rope:
    """A `Rope` from transformers' `rope_parameters`; what is not understood is reported."""
    left = {k: v for k, v in parameters.items() if v is not None}
    old_name, kind = left.pop("type", None), left.pop("rope_type", None)
    kind = kind or old_name or "default"
    base = Rope(
        theta=float(left.pop("rope_theta", 10_000.0)),
        dim=int(head_dim * left.pop("partial_rotary_factor", 1.0)),
    )
    if base.dim % 2:
        attributes.complain(f"{base.dim} rotated entries a head; expected an even number")
    original_length = left.pop("original_max_position_embeddings", None)
    readers = {"default": _default, "linear": _linear, "llama3": _llama3, "longrope": _longrope}
    readers["su"] = _longrope  # The name that the first Phi-3 checkpoints used.
    if kind not in readers:
        known = ", ".join(sorted(readers))
        attributes.complain(f"rope_type is {kind!r}; implemented: {known}")
        return base
    try:
        rope = readers[kind](base, left, original_length, max_length)
    except KeyError as error:
        attributes.complain(f"rope scaling {kind!r} lacks {error}")
        return base
    for name in sorted(left):
        attributes.complain(f"rope scaling {kind!r} has {name} = {left[name]!r}, not handled")
    for name, factors in (("short_factor", rope.short_factors), ("long_factor", rope.long_factors)):
        if factors and len(factors) != rope.dim // 2:
            attributes.complain(f"{name} has {len(factors)} values, expected {rope.dim // 2}")
    return rope


def _default(base: Rope, left: dict, original_length: int | None, max_length: int | None) -> Rope:
    del original_length, max_length
    left.pop("factor", None)
    return base


def _linear(base: Rope, left: dict, original_length: int | None, max_length: int | None) -> Rope:
    del original_length, max_length
    return dataclasses.replace(base, factor=float(left.pop("factor")))


def _llama3(base: Rope, left: dict, original_length: int | None, max_length: int | None) -> Rope:
    original_length = original_length or max_length
    if original_length is None:
        raise KeyError("original_max_position_embeddings")
    return dataclasses.replace(
        base,
        factor=float(left.pop("factor")),
        low_freq_factor=float(left.pop("low_freq_factor")),
        high_freq_factor=float(left.pop("high_freq_factor")),
        original_length=int(original_length),
    )


def _longrope(base: Rope, left: dict, original_length: int | None, max_length: int | None) -> Rope:
    original_length = original_length or max_length
    if original_length is None:
        raise KeyError("original_max_position_embeddings")
    factor = left.pop("factor", None) or (max_length or original_length) / original_length
    magnitude = left.pop("attention_factor", None)
    if magnitude is None:
        stretched = factor > 1.0
        magnitude = (
            math.sqrt(1 + math.log(factor) / math.log(original_length)) if stretched else 1.0
        )
    return dataclasses.replace(
        base,
        short_factors=tuple(map(float, left.pop("short_factor"))),
        long_factors=tuple(map(float, left.pop("long_factor"))),
        original_length=int(original_length),
        magnitude=float(magnitude),
    )


def angles(rope: Rope, positions_BN: Array, mask_BN: Array) -> tuple[Array, Array]:
    """Cosine and sine of every position.

    Returns:
        cos_BNR, sin_BNR: float32, R = rope.dim // 2.
    """
    frequencies_R = jnp.asarray(_frequencies(rope), jnp.float32)
    if rope.original_length is not None and rope.long_factors:
        # transformers picks by the longest row of the batch; by row keeps batch == single.
        last_B = jnp.max(jnp.where(mask_BN, positions_BN, 0), axis=-1)
        is_long_B11 = (last_B + 1 > rope.original_length)[:, None, None]
        frequencies_R = frequencies_R / jnp.where(
            is_long_B11, jnp.array(rope.long_factors), jnp.array(rope.short_factors)
        )
    angles_BNR = positions_BN[..., None].astype(jnp.float32) * frequencies_R
    return jnp.cos(angles_BNR) * rope.magnitude, jnp.sin(angles_BNR) * rope.magnitude


def _frequencies(rope: Rope) -> np.ndarray:
    """Radians a token, float64[R], before longrope's factors.

    Source: Llama 3.1's `apply_scaling` (meta-llama/llama-models), as transformers reads it.
    """
    frequencies = rope.theta ** -(np.arange(0, rope.dim, 2) / rope.dim)
    if rope.low_freq_factor is None:
        return frequencies / rope.factor
    assert rope.high_freq_factor is not None and rope.original_length is not None
    turns = rope.original_length * frequencies / (2 * np.pi)
    keep = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    keep = np.clip(keep, 0.0, 1.0)
    return frequencies * (keep + (1 - keep) / rope.factor)


def rotate(x_BNHK: Array, cos_BNR: Array, sin_BNR: Array) -> Array:
    """Rotates the first 2R entries of every head, pairing entry i with i + R; float32 inside."""
    half = cos_BNR.shape[-1]
    # Both halves as one axis of length two that is reversed, not sliced and joined: one kernel on a GPU.
    x_BNH2R = x_BNHK[..., : 2 * half].astype(jnp.float32)
    x_BNH2R = x_BNH2R.reshape(*x_BNHK.shape[:-1], 2, half)
    cos, sin = cos_BNR[:, :, None, None], sin_BNR[:, :, None, None]
    signs = np.array([[-1.0], [1.0]], np.float32)
    turned = x_BNH2R * cos + x_BNH2R[..., ::-1, :] * (signs * sin)
    turned = turned.reshape(*x_BNHK.shape[:-1], 2 * half).astype(x_BNHK.dtype)
    if 2 * half == x_BNHK.shape[-1]:
        return turned
    return jnp.concatenate([turned, x_BNHK[..., 2 * half :]], axis=-1)
