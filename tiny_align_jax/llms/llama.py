"""The Llama family: Llama 2 and 3.x, SmolLM2, TinyLlama, Mistral, Qwen2 / 2.5, Qwen3.

Pre-norm decoder with RMS norms, rotary positions, grouped heads and a SiLU-gated MLP. The members
differ by biases (Qwen2 on queries, keys and values), a norm on every query and key head (Qwen3), a
sliding window (Mistral 0.1, Qwen on request), rotary scaling (Llama 3.1 and later) and a tied head.

Source: `transformers` 5.x modeling_llama / _mistral / _qwen2 / _qwen3 (behaviour; no code taken).
Deviations: angles are rotated in float32 whatever the dtype; a sliding window counts positions, not
slots, so padding inside a row does not shrink it.
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

HF_MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")

_LAYER = r"model\.layers\.(?P<layer>\d+)\."
PARAM_MAP: tuple[Rule, ...] = (
    Rule(r"model\.embed_tokens\.weight", "embedder/embedding"),
    Rule(_LAYER + r"input_layernorm\.weight", "layers/attention_norm/scale"),
    *(
        Rule(_LAYER + rf"self_attn\.{theirs}_proj\.{kind}", f"layers/attention/{ours}/{kind}")
        for theirs, ours in (("q", "q"), ("k", "k"), ("v", "v"), ("o", "out"))
        for kind in ("weight", "bias")
    ),
    Rule(_LAYER + r"self_attn\.q_norm\.weight", "layers/attention/q_norm/scale"),
    Rule(_LAYER + r"self_attn\.k_norm\.weight", "layers/attention/k_norm/scale"),
    Rule(_LAYER + r"post_attention_layernorm\.weight", "layers/mlp_norm/scale"),
    *(
        Rule(_LAYER + rf"mlp\.{name}_proj\.{kind}", f"layers/mlp/{name}/{kind}")
        for name in ("gate", "up", "down")
        for kind in ("weight", "bias")
    ),
    Rule(r"model\.norm\.weight", "final_norm/scale"),
    Rule(r"lm_head\.weight", "head/weight"),
    Rule(r"model\..*rotary_emb\.inv_freq", None),  # Old checkpoints keep this constant.
)

_ROPE = Rope(theta=100_000.0, dim=64)


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes and switches; the defaults are SmolLM2-135M.

    Attributes:
        vocab_size: V. dim: D. num_layers: decoder blocks. num_heads: H. num_kv_heads: G.
        head_dim: K. mlp_dim: F. norm_eps: of every RMS norm.
        rope: rotary embedding.
        tied_head: the head is the transposed embedding table.
        qkv_bias: biases on queries, keys and values. out_bias: on the attention output.
        mlp_bias: on the three MLP projections.
        head_norm: RMS norm on every query and key head (Qwen3).
        window: sliding window in tokens; None for full attention everywhere.
        window_layers: indices of the layers that use it, empty for all.
        activation: of the MLP's gate, a key of `_blocks.ACTIVATIONS`.
    """

    vocab_size: int = 49_152
    dim: int = 576
    num_layers: int = 30
    num_heads: int = 9
    num_kv_heads: int = 3
    head_dim: int = 64
    mlp_dim: int = 1536
    norm_eps: float = 1e-5
    rope: Rope = _ROPE
    tied_head: bool = True
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    head_norm: bool = False
    window: int | None = None
    window_layers: tuple[int, ...] = ()
    activation: str = "silu"

    final_soft_cap: ClassVar[None] = None

    @property
    def kinds(self) -> tuple[LayerKind, ...]:
        """Full attention, then the windowed kind; only those in use."""
        kinds = {index: LayerKind(self.rope, (None, self.window)[index]) for index in (0, 1)}
        return tuple(kinds[index] for index in sorted(set(self._windowed)))

    @property
    def layer_kinds(self) -> tuple[int, ...]:
        """Index into `kinds` of every layer."""
        used = sorted(set(self._windowed))
        return tuple(used.index(flag) for flag in self._windowed)

    @property
    def _windowed(self) -> tuple[int, ...]:
        if self.window is None:
            return (0,) * self.num_layers
        chosen = self.window_layers or range(self.num_layers)
        return tuple(int(layer in chosen) for layer in range(self.num_layers))


def config_from_hf(hf: Mapping[str, Any]) -> Config:
    """Config of a checkpoint from its `config.json`.

    Raises:
        ConfigError: lists every attribute that is missing, unknown or has a value not implemented.
    """
    attributes = _hf.Attributes(hf, "llama")
    take = attributes.take
    model_type = _hf.check_model_type(attributes, hf, HF_MODEL_TYPES)
    num_heads, dim, num_layers = (
        take("num_attention_heads"),
        take("hidden_size"),
        take("num_hidden_layers"),
    )
    head_dim = take("head_dim", 128 if model_type == "qwen3" else dim // num_heads)
    # Qwen2 always has the three input biases and never the output's, whatever the attribute says.
    attention_bias = take("attention_bias", False) and model_type != "qwen2"
    window, window_layers = _windows(attributes, hf, model_type, num_layers)
    # transformers reads but ignores a partial rotation here; pretraining_tp only splits the products.
    attributes.expect("partial_rotary_factor", 1)
    attributes.expect("pretraining_tp", 1)
    attributes.expect("rope_interleaved", False)
    attributes.expect("use_mrope", False)
    config = Config(
        vocab_size=take("vocab_size"),
        dim=dim,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=take("num_key_value_heads", num_heads),
        head_dim=head_dim,
        mlp_dim=take("intermediate_size"),
        norm_eps=take("rms_norm_eps", 1e-6),
        rope=rope_from_hf(attributes, head_dim, hf.get("max_position_embeddings")),
        tied_head=take("tie_word_embeddings", False),
        qkv_bias=model_type == "qwen2" or attention_bias,
        out_bias=attention_bias,
        mlp_bias=take("mlp_bias", False),
        head_norm=model_type == "qwen3",
        window=window,
        window_layers=window_layers,
        activation=attributes.choose("hidden_act", "silu", _blocks.ACTIVATIONS),
    )
    attributes.finish()
    return config


def _windows(
    attributes: _hf.Attributes, hf: Mapping[str, Any], model_type: str, num_layers: int
) -> tuple[int | None, tuple[int, ...]]:
    """Sliding window and the layers that use it, in each member's way of writing it."""
    if model_type == "llama":
        return None, ()
    window = attributes.take("sliding_window", None)
    if model_type == "mistral":
        return (window if "sliding_window" in hf else 4096), ()
    is_used = attributes.take("use_sliding_window", False)
    first = attributes.take("max_window_layers", 28)
    types = attributes.take("layer_types", None)
    if not is_used or window is None:
        return None, ()
    if types is None:
        layers = tuple(range(first, num_layers))
    else:
        layers = _hf.layers_of_type(attributes, types, num_layers, "sliding_attention")
    return (window, layers) if layers else (None, ())


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
            out_bias=c.out_bias,
            head_norm=_blocks.rms_head_norm(c.norm_eps) if c.head_norm else None,
            name="attention",
        )
        normed = _blocks.RMSNorm(c.norm_eps, name="attention_norm")(x_BND)
        added, cache = attention(normed, view, context, cache)
        x_BND += added
        normed = _blocks.RMSNorm(c.norm_eps, name="mlp_norm")(x_BND)
        activation = _blocks.ACTIVATIONS[c.activation]
        x_BND += _blocks.GatedMLP(c.mlp_dim, activation, c.mlp_bias, name="mlp")(normed)
        return (x_BND, cache), None


class LLM(Decoder):
    """Llama-family decoder; see `Decoder` for the call."""

    block = Block

    def final_norm(self) -> nn.Module:
        """Norm before the head."""
        return _blocks.RMSNorm(self.config.norm_eps, name="final_norm")
