"""Reading a Hugging Face `config.json` without ignoring anything by accident.

An attribute that a family does not handle may change what the model computes; silently dropping it
gives a model that runs and is wrong. So every attribute is taken, declared harmless, or refused, and
all complaints come in one error.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from tiny_align_jax.types import ConfigError

_MISSING = object()

# No effect on the forward pass of a frozen, deterministic decoder: bookkeeping, token ids (the
# tokenizer's matter), initialisation, dropout, generation defaults and lengths that only size tables.
HARMLESS = frozenset(
    (
        "_attn_implementation",
        "_attn_implementation_autoset",
        "_name_or_path",
        "_sliding_window_pattern",
        "add_cross_attention",
        "architectures",
        "attention_dropout",
        "auto_map",
        "bos_token_id",
        "cache_implementation",
        "chunk_size_feed_forward",
        "dtype",
        "embd_pdrop",
        "embedding_dropout",
        "eos_token_id",
        "exponential_decay_length_penalty",
        "hidden_dropout",
        "id2label",
        "initializer_range",
        "is_decoder",
        "is_encoder_decoder",
        "is_llama_config",
        "keys_to_ignore_at_inference",
        "label2id",
        "max_position_embeddings",
        "model_type",
        "num_logits_to_keep",
        "output_attentions",
        "output_hidden_states",
        "pad_token_id",
        "problem_type",
        "resid_pdrop",
        "return_dict",
        "tokenizer_class",
        "torch_dtype",
        "transformers.js_config",
        "transformers_version",
        "unsloth_fixed",
        "use_cache",
    )
)


class Attributes:
    """A `config.json` that keeps count of what was read.

    Args:
        hf: the parsed file.
        family: name of our module, for the error.
    """

    def __init__(self, hf: Mapping[str, Any], family: str):
        self._left = {k: v for k, v in hf.items() if k not in HARMLESS}
        self._family = family
        self._model_type = hf.get("model_type")
        self._problems: list[str] = []

    def take(self, name: str, default: Any = _MISSING) -> Any:
        """Value of `name`; null counts as absent, as it does in `transformers`."""
        value = self._left.pop(name, None)
        if value is not None:
            return value
        if default is _MISSING:
            self.complain(f"{name} is missing")
            return 1  # A number keeps the arithmetic alive until finish() reports everything.
        return default

    def expect(self, name: str, *allowed: Any) -> None:
        """`name` may be absent or one of `allowed`: values under which it changes nothing for us."""
        value = self._left.pop(name, None)
        if value is not None and value not in allowed:
            shown = ", ".join(repr(a) for a in allowed) or "null"
            self.complain(f"{name} is {value!r}; only {shown} is implemented")

    def choose(self, name: str, default: Any, known: Collection[Any]) -> Any:
        """Value of `name`, with a complaint unless it is one of `known`."""
        value = self.take(name, default)
        if value not in known:
            self.complain(f"{name} is {value!r}; implemented: {', '.join(map(repr, known))}")
        return value

    def complain(self, problem: str) -> None:
        """Adds one line to what `finish` reports."""
        self._problems.append(problem)

    def finish(self) -> None:
        """Refuses whatever was not read.

        Raises:
            ConfigError: lists every missing, unsupported and unknown attribute.
        """
        problems = self._problems + [
            f"{name} = {value!r} is an attribute this family does not handle"
            for name, value in sorted(self._left.items())
            if value is not None
        ]
        if problems:
            raise ConfigError(
                f"llms/{self._family} cannot run this config.json (model_type {self._model_type!r}):\n  "
                + "\n  ".join(problems)
                + "\nUse another checkpoint, or implement the attribute in "
                f"tiny_align_jax/llms/{self._family}.py (add it to HARMLESS only if it cannot change the output)."
            )


def check_model_type(attributes: Attributes, hf: Mapping[str, Any], known: tuple[str, ...]) -> str:
    """`model_type`, with a complaint unless it is one of `known`."""
    model_type = hf.get("model_type")
    if model_type not in known:
        attributes.complain(f"model_type is {model_type!r}; this family reads {', '.join(known)}")
    return str(model_type)


def layers_of_type(
    attributes: Attributes, types: Sequence[str], num_layers: int, wanted: str
) -> tuple[int, ...]:
    """Indices of the layers that `layer_types` calls `wanted`; complains about unknown kinds."""
    if len(types) != num_layers:
        attributes.complain(f"layer_types has {len(types)} entries for {num_layers} layers")
    for kind in sorted(set(types) - {"full_attention", "sliding_attention"}):
        attributes.complain(
            f"layer_types has {kind!r}; implemented: 'full_attention', 'sliding_attention'"
        )
    return tuple(i for i, kind in enumerate(types) if kind == wanted)
