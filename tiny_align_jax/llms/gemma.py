"""Gemma 2 and Gemma 3 (text).

Both: embeddings scaled by sqrt(D), RMS norms stored as scale - 1, norms before and after attention
and MLP, a tied head, and layers that alternate between a sliding window and full attention. Gemma 2
caps attention and final logits with a tanh and alternates 1:1; Gemma 3 norms every query and key
head instead, alternates 5:1 and rotates windowed layers with a base of their own.

Source: `transformers` 5.x modeling_gemma2 / modeling_gemma3 (behaviour; no code taken). Deviations as in
`llama`: float32 angles, windows counted in positions.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from tiny_align_jax.llms import _blocks, _hf
from tiny_align_jax.llms._cache import Context, KeyValues, LayerKind, LayerView
from tiny_align_jax.llms._cache import init_cache as init_cache
from tiny_align_jax.llms._decoder import Decoder
from tiny_align_jax.llms._rope import Rope, rope_from_hf, rope_from_parameters
from tiny_align_jax.types import Array, PyTree, Rule

HF_MODEL_TYPES = ("gemma2", "gemma3_text")

_LAYER = r"model\.layers\.(?P<layer>\d+)\."
_NORMS = {
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "attention_out_norm",
    "pre_feedforward_layernorm": "mlp_norm",
    "post_feedforward_layernorm": "mlp_out_norm",
    r"self_attn\.q_norm": "attention/q_norm",
    r"self_attn\.k_norm": "attention/k_norm",
}
_MATRICES = {
    r"self_attn\.q_proj": "attention/q",
    r"self_attn\.k_proj": "attention/k",
    r"self_attn\.v_proj": "attention/v",
    r"self_attn\.o_proj": "attention/out",
    r"mlp\.gate_proj": "mlp/gate",
    r"mlp\.up_proj": "mlp/up",
    r"mlp\.down_proj": "mlp/down",
}
PARAM_MAP: tuple[Rule, ...] = (
    Rule(r"model\.embed_tokens\.weight", "embedder/embedding"),
    *(Rule(_LAYER + n + r"\.weight", f"layers/{ours}/scale") for n, ours in _NORMS.items()),
    *(Rule(_LAYER + n + r"\.weight", f"layers/{ours}/weight") for n, ours in _MATRICES.items()),
    Rule(r"model\.norm\.weight", "final_norm/scale"),
    Rule(r"lm_head\.weight", None),  # Always tied; some exports repeat the table here.
)

_FULL_ROPE = Rope(theta=1_000_000.0, dim=256)
_LOCAL_ROPE = Rope(theta=10_000.0, dim=256)


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes and switches; the defaults are Gemma 3 270M.

    Attributes:
        vocab_size: V. dim: D. num_layers: decoder blocks. num_heads: H. num_kv_heads: G.
        head_dim: K. mlp_dim: F. norm_eps: of every RMS norm.
        query_scale: queries are divided by its square root.
        full_rope: rotary embedding of layers with full attention.
        local_rope: rotary embedding of layers with a sliding window.
        window: sliding window in tokens.
        full_layers: indices of the layers with full attention.
        head_norm: RMS norm on every query and key head (Gemma 3).
        attention_soft_cap: tanh cap of attention logits (Gemma 2), or None.
        final_soft_cap: tanh cap of the head's logits (Gemma 2), or None.
    """

    vocab_size: int = 262_144
    dim: int = 640
    num_layers: int = 18
    num_heads: int = 4
    num_kv_heads: int = 1
    head_dim: int = 256
    mlp_dim: int = 2048
    norm_eps: float = 1e-6
    query_scale: float = 256.0
    full_rope: Rope = _FULL_ROPE
    local_rope: Rope = _LOCAL_ROPE
    window: int = 512
    full_layers: tuple[int, ...] = (5, 11, 17)
    head_norm: bool = True
    attention_soft_cap: float | None = None
    final_soft_cap: float | None = None
    activation: str = "gelu_pytorch_tanh"

    @property
    def tied_head(self) -> bool:
        """Every Gemma ties its head to the table."""
        return True

    @property
    def kinds(self) -> tuple[LayerKind, ...]:
        """Full attention, sliding window."""
        return LayerKind(self.full_rope), LayerKind(self.local_rope, self.window)

    @property
    def layer_kinds(self) -> tuple[int, ...]:
        """Index into `kinds` of every layer."""
        return tuple(int(layer not in self.full_layers) for layer in range(self.num_layers))


def config_from_hf(hf: Mapping[str, Any]) -> Config:
    """Config of a checkpoint from its `config.json`.

    Raises:
        ConfigError: lists every attribute that is missing, unknown or has a value not implemented.
    """
    attributes = _hf.Attributes(hf, "gemma")
    take = attributes.take
    is_gemma2 = _hf.check_model_type(attributes, hf, HF_MODEL_TYPES) == "gemma2"
    attributes.expect("attention_bias", False)
    attributes.expect("use_bidirectional_attention", False)
    attributes.expect("tie_word_embeddings", True)
    attributes.expect("partial_rotary_factor", 1)
    if hf.get("sliding_window", 0) is None:
        attributes.complain("sliding_window is null; expected a number of tokens")
    # Gemma 2 states the activation twice; `hidden_act` is what early exports wrote and nobody reads.
    attributes.expect("hidden_act", "gelu", "gelu_pytorch_tanh")
    if not is_gemma2:
        attributes.expect("attn_logit_softcapping")
    head_dim = take("head_dim", 256)
    num_layers = take("num_hidden_layers")
    full_rope, local_rope = _ropes(attributes, hf, head_dim, is_gemma2)
    config = Config(
        vocab_size=take("vocab_size"),
        dim=take("hidden_size"),
        num_layers=num_layers,
        num_heads=take("num_attention_heads"),
        num_kv_heads=take("num_key_value_heads"),
        head_dim=head_dim,
        mlp_dim=take("intermediate_size"),
        norm_eps=take("rms_norm_eps", 1e-6),
        query_scale=float(take("query_pre_attn_scalar", 256)),
        full_rope=full_rope,
        local_rope=local_rope,
        window=take("sliding_window", 4096),
        full_layers=_full_layers(attributes, num_layers, 2 if is_gemma2 else 6),
        head_norm=not is_gemma2,
        attention_soft_cap=_soft_cap(attributes, hf, "attn_logit_softcapping", 50.0, is_gemma2),
        final_soft_cap=_soft_cap(attributes, hf, "final_logit_softcapping", 30.0, is_gemma2),
        activation=attributes.choose("hidden_activation", "gelu_pytorch_tanh", _blocks.ACTIVATIONS),
    )
    attributes.finish()
    return config


def _soft_cap(
    attributes: _hf.Attributes, hf: Mapping[str, Any], name: str, default: float, is_gemma2: bool
) -> float | None:
    """Null means no cap; only Gemma 2 has one when the attribute is absent."""
    value = attributes.take(name, None)
    return default if is_gemma2 and name not in hf else value


def _full_layers(attributes: _hf.Attributes, num_layers: int, period: int) -> tuple[int, ...]:
    """From `layer_types`, or every `sliding_window_pattern`-th layer."""
    period = attributes.take("sliding_window_pattern", period)
    types = attributes.take("layer_types", None)
    if types is None:
        return tuple(range(period - 1, num_layers, period))
    return _hf.layers_of_type(attributes, types, num_layers, "full_attention")


def _ropes(
    attributes: _hf.Attributes, hf: Mapping[str, Any], head_dim: int, is_gemma2: bool
) -> tuple[Rope, Rope]:
    """Rotary embeddings of full and of windowed layers."""
    if is_gemma2:
        rope = rope_from_hf(attributes, head_dim, None)
        return rope, rope
    full: dict = {"rope_theta": attributes.take("rope_theta", 1_000_000.0)}
    full |= attributes.take("rope_scaling", {})
    local: dict = {"rope_theta": attributes.take("rope_local_base_freq", 10_000.0)}
    both = attributes.take("rope_parameters", {})
    full |= both.get("full_attention") or {}
    local |= both.get("sliding_attention") or {}
    for name in sorted(set(both) - {"full_attention", "sliding_attention"}):
        attributes.complain(f"rope_parameters has {name} = {both[name]!r}, not handled")
    return (
        rope_from_parameters(attributes, full, head_dim, None),
        rope_from_parameters(attributes, local, head_dim, None),
    )


def embed(config: Config, params: PyTree, ids: Array) -> Array:
    """The vectors the first layer sees: table rows times sqrt(D), [..., D].

    The factor is rounded to the table's dtype first, as the checkpoints were trained.
    """
    rows = _blocks.embed_ids(params["embedder"]["embedding"], ids)
    return rows * jnp.asarray(config.dim**0.5, rows.dtype)


class Block(nn.Module):
    """One decoder layer, scanned."""

    config: Config

    @nn.compact
    def __call__(
        self, carry: tuple[Array, KeyValues | None], view: LayerView, context: Context
    ) -> tuple[tuple[Array, KeyValues | None], None]:
        x_BND, cache = carry
        c = self.config
        attention = _blocks.Attention(
            num_heads=c.num_heads,
            num_kv_heads=c.num_kv_heads,
            head_dim=c.head_dim,
            scale=c.query_scale**-0.5,
            soft_cap=c.attention_soft_cap,
            head_norm=_blocks.rms_head_norm(c.norm_eps, offset=1.0) if c.head_norm else None,
            name="attention",
        )
        added, cache = attention(self._norm("attention_norm")(x_BND), view, context, cache)
        x_BND += self._norm("attention_out_norm")(added)
        mlp = _blocks.GatedMLP(c.mlp_dim, _blocks.ACTIVATIONS[c.activation], name="mlp")
        x_BND += self._norm("mlp_out_norm")(mlp(self._norm("mlp_norm")(x_BND)))
        return (x_BND, cache), None

    def _norm(self, name: str) -> nn.Module:
        return _blocks.RMSNorm(self.config.norm_eps, offset=1.0, name=name)


class LLM(Decoder):
    """Gemma decoder; see `Decoder` for the call."""

    block = Block

    def final_norm(self) -> nn.Module:
        """Norm before the head."""
        return _blocks.RMSNorm(self.config.norm_eps, offset=1.0, name="final_norm")
