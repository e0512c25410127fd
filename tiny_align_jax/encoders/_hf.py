"""Reading Hugging Face checkpoints: attribute checks for config.json, short forms of mapping rules."""

import re
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from tiny_align_jax.types import ConfigError, Rule

# Attributes of any transformers config that cannot change what an encoder computes at inference.
_HOUSEKEEPING = (
    r"_.*",
    r"architectures|auto_map|torch_dtype|dtype|transformers_version|model_type|finetuning_task",
    r"tokenizer_class|task_specific_params|problem_type|id2label|label2id|num_labels",
    r"output_.*|return_dict(_in_generate)?|use_return_dict|use_cache|torchscript|tf_legacy_loss",
    r"use_bfloat16|gradient_checkpointing|chunk_size_feed_forward|tie_.*|pruned_heads|name_or_path",
    r".*_token_id|vocab_size|initializer_range|init_std|.*dropout(_prob)?|.*layerdrop|layer_drop",
    r"mask_.*|apply_spec_augment|is_decoder|is_encoder_decoder|add_cross_attention",
    r"use_weighted_layer_sum|classifier_proj_size|cross_attention_hidden_size|max_length|min_length",
    r"(begin_)?suppress_tokens|forced_(decoder|bos|eos)_.*|do_sample|early_stopping|num_beams",
    r"num_beam_groups|diversity_penalty|temperature|top_[kp]|typical_p|repetition_penalty|prefix",
    r"length_penalty|no_repeat_ngram_size|encoder_no_repeat_ngram_size|bad_words_ids|sep_token",
    r"num_return_sequences|remove_invalid_values|exponential_decay_length_penalty",
)


def check_attributes(
    hf: Mapping[str, Any],
    model_types: Collection[str],
    *,
    needed: Collection[str],
    optional: Collection[str] = (),
    expected: Mapping[str, Any] = MappingProxyType({}),
    ignored: Sequence[str] = (),
    preprocessor: Mapping[str, Any] | None = None,
    preprocessor_expected: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Refuses a config.json that asks for something the family does not do.

    Args:
        hf: the parsed config.json.
        model_types: values of `model_type` that the family reads.
        needed: attributes that must be there.
        optional: attributes that the family also reads.
        expected: attributes that the family handles at one value only (absent means that value).
        ignored: regular expressions of further attributes that cannot change the encoder's output.
        preprocessor: the parsed preprocessor_config.json, if there is one.
        preprocessor_expected: its attributes that are handled at one value only.

    Raises:
        ConfigError: listing every problem at once.
    """
    known = re.compile("|".join((*_HOUSEKEEPING, *ignored)))
    unhandled = sorted(
        key for key in hf if key not in {*needed, *optional, *expected} and not known.fullmatch(key)
    )
    problems = (
        []
        if hf.get("model_type") in model_types
        else [f"model_type={hf.get('model_type')!r}, not {' or '.join(model_types)}"]
    )
    problems += [f"{key} is missing" for key in sorted(needed) if hf.get(key) is None]
    problems += [f"{key}={hf[key]!r} is not handled by this family" for key in unhandled]
    problems += _differences(hf, expected) + _differences(preprocessor or {}, preprocessor_expected)
    if problems:
        raise ConfigError(
            "this checkpoint's config cannot be used: " + "; ".join(problems) + ". Use another "
            "checkpoint, or handle the attribute in config_from_hf (docs/models.md)."
        )


def _differences(given: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    return [
        f"{key}={given[key]!r}, only {value!r} is implemented"
        for key, value in expected.items()
        if given.get(key, value) != value
    ]


def dense(source: str, target: str) -> tuple[Rule, Rule]:
    """Rules of a linear layer: weight [out, in] and bias."""
    return (
        Rule(source + r"\.weight", target + "/kernel", "linear"),
        Rule(source + r"\.bias", target + "/bias"),
    )


def conv(source: str, target: str) -> tuple[Rule, Rule]:
    """Rules of a convolution over time: weight [out, in, width] and bias."""
    return (
        Rule(source + r"\.weight", target + "/kernel", "conv1d"),
        Rule(source + r"\.bias", target + "/bias"),
    )


def norm(source: str, target: str) -> tuple[Rule, Rule]:
    """Rules of a layer or group norm: weight (our scale) and bias."""
    return (
        Rule(source + r"\.weight", target + "/scale"),
        Rule(source + r"\.bias", target + "/bias"),
    )
