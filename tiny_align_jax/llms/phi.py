"""Phi-3, Phi-3.5 and Phi-4-mini: a Llama-like decoder with fused projections and longrope.

Queries, keys and values come from one matrix, gate and up projections from another. Long-context
versions divide each rotary frequency by a factor that depends on whether the row is longer than the
original training length.

Source: `transformers` 5.x modeling_phi3 (behaviour; no code taken). Deviations: as in `llama`, and
the longrope factors are chosen row by row (transformers: by the longest row of the batch). As there,
keys cached before a row crosses the original length keep the short factors.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from flax import linen as nn

from tiny_align_jax.llms import _blocks, _hf
from tiny_align_jax.llms._cache import Context, KeyValues, LayerKind, LayerView
from tiny_align_jax.llms._cache import init_cache as init_cache
from tiny_align_jax.llms._decoder import Decoder
from tiny_align_jax.llms._rope import Rope, rope_from_hf
from tiny_align_jax.types import Array, PyTree, Rule

HF_MODEL_TYPES = ("phi3",)

_LAYER = r"model\.layers\.(?P<layer>\d+)\."
PARAM_MAP: tuple[Rule, ...] = (
    Rule(r"model\.embed_tokens\.weight", "embedder/embedding"),
    Rule(_LAYER + r"input_layernorm\.weight", "layers/attention_norm/scale"),
    Rule(_LAYER + r"self_attn\.qkv_proj\.weight", "layers/attention/qkv/weight"),
    Rule(_LAYER + r"self_attn\.o_proj\.weight", "layers/attention/out/weight"),
    Rule(_LAYER + r"post_attention_layernorm\.weight", "layers/mlp_norm/scale"),
    Rule(_LAYER + r"mlp\.gate_up_proj\.weight", "layers/mlp/gate_up/weight"),
    Rule(_LAYER + r"mlp\.down_proj\.weight", "layers/mlp/down/weight"),
    Rule(r"model\.norm\.weight", "final_norm/scale"),
    Rule(r"lm_head\.weight", "head/weight"),
)

_ROPE = Rope(theta=10_000.0, dim=96)


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes and switches; the defaults are Phi-3-mini-4k.

    Attributes:
        vocab_size: V. dim: D. num_layers: decoder blocks. num_heads: H. num_kv_heads: G.
        head_dim: K. mlp_dim: F. norm_eps: of every RMS norm.
        rope: rotary embedding.
        tied_head: the head is the transposed embedding table.
        window: sliding window in tokens, or None.
        activation: of the MLP's gate, a key of `_blocks.ACTIVATIONS`.
    """

    vocab_size: int = 32_064
    dim: int = 3072
    num_layers: int = 32
    num_heads: int = 32
    num_kv_heads: int = 32
    head_dim: int = 96
    mlp_dim: int = 8192
    norm_eps: float = 1e-5
    rope: Rope = _ROPE
    tied_head: bool = False
    window: int | None = 2047
    activation: str = "silu"

    final_soft_cap: ClassVar[None] = None

    @property
    def kinds(self) -> tuple[LayerKind, ...]:
        """All layers are alike."""
        return (LayerKind(self.rope, self.window),)

    @property
    def layer_kinds(self) -> tuple[int, ...]:
        """Index into `kinds` of every layer."""
        return (0,) * self.num_layers


def config_from_hf(hf: Mapping[str, Any]) -> Config:
    """Config of a checkpoint from its `config.json`.

    Raises:
        ConfigError: lists every attribute that is missing, unknown or has a value not implemented.
    """
    attributes = _hf.Attributes(hf, "phi")
    take = attributes.take
    _hf.check_model_type(attributes, hf, HF_MODEL_TYPES)
    attributes.expect("attention_bias", False)
    attributes.expect("lm_head_bias", False)
    attributes.expect("mlp_bias", False)
    attributes.expect("full_attn_mod", 1)
    attributes.expect("interpolate_factor", 1)
    dim, num_heads = take("hidden_size"), take("num_attention_heads")
    head_dim = take("head_dim", dim // num_heads)
    config = Config(
        vocab_size=take("vocab_size"),
        dim=dim,
        num_layers=take("num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=take("num_key_value_heads", num_heads),
        head_dim=head_dim,
        mlp_dim=take("intermediate_size"),
        norm_eps=take("rms_norm_eps", 1e-5),
        rope=rope_from_hf(attributes, head_dim, hf.get("max_position_embeddings")),
        tied_head=take("tie_word_embeddings", False),
        window=take("sliding_window", None),
        activation=attributes.choose("hidden_act", "silu", _blocks.ACTIVATIONS),
    )
    attributes.finish()
    return config


def embed(config: Config, params: PyTree, ids: Array) -> Array:
    """The vectors the first layer sees: plain table rows, [..., D]."""
    del config
    return _blocks.embed_ids(params["embedder"]["embedding"], ids)


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
            fused=True,
            name="attention",
        )
        normed = _blocks.RMSNorm(c.norm_eps, name="attention_norm")(x_BND)
        added, cache = attention(normed, view, context, cache)
        x_BND += added
        activation = _blocks.ACTIVATIONS[c.activation]
        mlp = _blocks.GatedMLP(c.mlp_dim, activation, fused=True, name="mlp")
        x_BND += mlp(_blocks.RMSNorm(c.norm_eps, name="mlp_norm")(x_BND))
        return (x_BND, cache), None


class LLM(Decoder):
    """Phi-3 decoder; see `Decoder` for the call."""

    block = Block

    def final_norm(self) -> nn.Module:
        """Norm before the head."""
        return _blocks.RMSNorm(self.config.norm_eps, name="final_norm")
