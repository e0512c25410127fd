"""StableLM-2 (and StableLM-3B): layer norms and rotary positions on part of each head.

As configured: biases on queries, keys and values; a layer norm of its own for every query and key
head (12B); attention and MLP side by side on one norm (12B) instead of one after the other.

Source: `transformers` 5.x modeling_stablelm (behaviour; no code taken). Deviations as in `llama`.
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

HF_MODEL_TYPES = ("stablelm",)

_LAYER = r"model\.layers\.(?P<layer>\d+)\."
_MAX_HEADS = 128
PARAM_MAP: tuple[Rule, ...] = (
    Rule(r"model\.embed_tokens\.weight", "embedder/embedding"),
    *(
        Rule(rf"{theirs}\.{kind}", f"{ours}/{leaf}")
        for theirs, ours in (
            (_LAYER + "input_layernorm", "layers/attention_norm"),
            (_LAYER + "post_attention_layernorm", "layers/mlp_norm"),
            (r"model\.norm", "final_norm"),
        )
        for kind, leaf in (("weight", "scale"), ("bias", "bias"))
    ),
    *(
        Rule(_LAYER + rf"self_attn\.{theirs}_proj\.{kind}", f"layers/attention/{ours}/{kind}")
        for theirs, ours in (("q", "q"), ("k", "k"), ("v", "v"), ("o", "out"))
        for kind in ("weight", "bias")
    ),
    # A rule has one stacked axis, so every head keeps a parameter of its own.
    *(
        Rule(
            _LAYER + rf"self_attn\.{name}_layernorm\.norms\.{head}\.weight",
            f"layers/attention/{name}_norm/scale_{head}",
        )
        for name in ("q", "k")
        for head in range(_MAX_HEADS)
    ),
    *(
        Rule(_LAYER + rf"mlp\.{name}_proj\.weight", f"layers/mlp/{name}/weight")
        for name in ("gate", "up", "down")
    ),
    Rule(r"lm_head\.weight", "head/weight"),
    Rule(r"model\..*rotary_emb\.inv_freq", None),  # Old checkpoints keep this constant.
)

_ROPE = Rope(theta=10_000.0, dim=16)


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes and switches; the defaults are StableLM-2-1.6B.

    Attributes:
        vocab_size: V. dim: D. num_layers: decoder blocks. num_heads: H. num_kv_heads: G.
        mlp_dim: F. norm_eps: of every layer norm.
        rope: rotary embedding of the first `rope.dim` entries of each head.
        tied_head: the head is the transposed embedding table.
        qkv_bias: biases on queries, keys and values.
        head_norm: a layer norm for every query and key head.
        parallel: attention and MLP read the same norm and are added together.
        activation: of the MLP's gate, a key of `_blocks.ACTIVATIONS`.
    """

    vocab_size: int = 100_352
    dim: int = 2048
    num_layers: int = 24
    num_heads: int = 32
    num_kv_heads: int = 32
    mlp_dim: int = 5632
    norm_eps: float = 1e-5
    rope: Rope = _ROPE
    tied_head: bool = False
    qkv_bias: bool = True
    head_norm: bool = False
    parallel: bool = False
    activation: str = "silu"

    final_soft_cap: ClassVar[None] = None

    @property
    def head_dim(self) -> int:
        """K."""
        return self.dim // self.num_heads

    @property
    def kinds(self) -> tuple[LayerKind, ...]:
        """All layers are alike."""
        return (LayerKind(self.rope),)

    @property
    def layer_kinds(self) -> tuple[int, ...]:
        """Index into `kinds` of every layer."""
        return (0,) * self.num_layers


def config_from_hf(hf: Mapping[str, Any]) -> Config:
    """Config of a checkpoint from its `config.json`.

    Raises:
        ConfigError: lists every attribute that is missing, unknown or has a value not implemented.
    """
    attributes = _hf.Attributes(hf, "stablelm")
    take = attributes.take
    _hf.check_model_type(attributes, hf, HF_MODEL_TYPES)
    dim, num_heads = take("hidden_size"), take("num_attention_heads")
    head_dim = dim // num_heads
    config = Config(
        vocab_size=take("vocab_size"),
        dim=dim,
        num_layers=take("num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=take("num_key_value_heads", num_heads),
        mlp_dim=take("intermediate_size"),
        norm_eps=take("layer_norm_eps", take("norm_eps", 1e-5)),
        rope=rope_from_hf(attributes, head_dim, None, default_fraction=0.25),
        tied_head=take("tie_word_embeddings", False),
        qkv_bias=take("use_qkv_bias", False),
        head_norm=take("qk_layernorm", False),
        parallel=take("use_parallel_residual", False),
        activation=attributes.choose("hidden_act", "silu", _blocks.ACTIVATIONS),
    )
    if max(num_heads, config.num_kv_heads) > _MAX_HEADS and config.head_norm:
        attributes.complain(f"qk_layernorm with more than {_MAX_HEADS} heads: raise _MAX_HEADS")
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
            qkv_bias=c.qkv_bias,
            head_norm=_blocks.layer_head_norm(c.norm_eps) if c.head_norm else None,
            name="attention",
        )
        mlp = _blocks.GatedMLP(c.mlp_dim, _blocks.ACTIVATIONS[c.activation], name="mlp")
        normed = _blocks.LayerNorm(c.norm_eps, name="attention_norm")(x_BND)
        added, cache = attention(normed, view, context, cache)
        x_BND += added
        if not c.parallel:
            normed = _blocks.LayerNorm(c.norm_eps, name="mlp_norm")(x_BND)
        return (x_BND + mlp(normed), cache), None


class LLM(Decoder):
    """StableLM decoder; see `Decoder` for the call."""

    block = Block

    def final_norm(self) -> nn.Module:
        """Norm before the head."""
        return _blocks.LayerNorm(self.config.norm_eps, name="final_norm")
