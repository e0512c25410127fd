"""Plans of a config: will it fit, what is the largest that does, and the gate that refuses a run.

Needs no weights: a model's shape comes from its folder's config.json, if it is there, or from the list
of published sizes. What the corpus would tell is assumed, and said, unless it is read.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from absl import logging

from tiny_align_jax import aligner, published, registry, shrink
from tiny_align_jax.data import prompts, tokenizer, vocabulary
from tiny_align_jax.memory import budget, search, stages
from tiny_align_jax.memory.budget import Config, Stage
from tiny_align_jax.memory.kinds import STAGES, with_work
from tiny_align_jax.memory.shapes import Model, Shapes, Work
from tiny_align_jax.quantize import config as quantize
from tiny_align_jax.train import corpus, through_llm
from tiny_align_jax.types import SAMPLE_RATE_HZ, ConfigError
from tiny_align_jax.weights import assets, loading, shrunk

# What is assumed of a corpus that is not read: as many utterances as speechocean762 trains on, half a
# window long on average, and some more rows than its 2,400 sentences use.
ASSUMED_UTTERANCES, ASSUMED_ROWS = 2500, 4096
# What stays of a vocabulary that is made smaller: those sentences and the prompt need 4,396 of SmolLM2's tokens.
ASSUMED_TOKENS = 6000


@dataclasses.dataclass(frozen=True)
class Plan:
    """Stages of one config on one device, each built on request: building compiles programs.

    Attributes:
        shapes: what the config holds.
        device: what is planned for.
    """

    shapes: Shapes
    device: Config

    def stage(self, name: str) -> Stage:
        """One of STAGES.

        Raises:
            ConfigError: unknown stage.
        """
        if name not in STAGES:
            raise ConfigError(f"unknown stage {name!r}; expected one of {', '.join(STAGES)}")
        kind = STAGES[name]
        return kind.build(kind.adapt(self.shapes), self.device)

    def largest(self, name: str, knob: str) -> int:
        """The largest 'batch' or 'length' of a stage that fits, all else as planned; 0 if none does."""
        kind = STAGES[name]
        setting, shapes = getattr(kind, knob), kind.adapt(self.shapes)

        def num_bytes(value: int) -> int:
            return self._needed(kind.build(setting.changed(shapes, value), self.device))

        budget_bytes, limit = self.device.budget_bytes, setting.limit(shapes)
        return search.largest_fitting(num_bytes, budget_bytes, setting.start(shapes), limit)

    def describe_largest(self, name: str) -> str:
        """The largest batch, and the largest length, in the words of a config."""
        found = [
            getattr(STAGES[name], knob).describe(value)
            for knob in ("batch", "length")
            if (value := self.largest(name, knob))
        ]
        return ", or ".join(found) or "nothing fits"

    def advice(self, stage: Stage) -> str:
        """The nearest setting of a stage that does fit, in words."""
        name = next(name for name, kind in STAGES.items() if kind.title == stage.name)
        for text, change in STAGES[name].remedies:
            changed = dataclasses.replace(self, shapes=change(self.shapes))
            if self._needed(changed.stage(name)) <= self.device.budget_bytes:
                return f"It fits with {text}."
        for knob in ("batch", "length"):
            if value := self.largest(name, knob):
                return f"It fits with {getattr(STAGES[name], knob).describe(value)}."
        return "It does not fit with any batch or length: use a smaller model or dtype."

    def assumptions(self) -> str:
        """The numbers that stand for a corpus and a prompt."""
        work = self.shapes.work
        return (
            f"planned for {work.num_utterances} training utterances of at most {work.max_frames} "
            f"encoder frames, {work.num_rows} table rows, a prompt of {work.prefix_tokens} tokens "
            f"and answers of at most {work.new_tokens}"
        )

    def _needed(self, stage: Stage) -> int:
        return stage.needed(self.device).num_bytes


def make(
    config: Mapping[str, Any],
    cache_dir: str,
    device: Config | None = None,
    stays: shrunk.Choice | None = None,
) -> Plan:
    """The plan of a config; reads no corpus.

    Args:
        config: resolved sections, as plain mappings.
        cache_dir: where models may lie.
        device: default: the config's own section.
        stays: what a finished run kept of its LLM; default: as much as the config's `llm.shrink` leaves.

    Raises:
        ConfigError: a model whose shape cannot be found.
    """
    if device is None:
        device = _device_of(config)
    encoder = find_model("encoders", config["encoder"], cache_dir)
    how = registry.make_config(shrink, config["llm"].get("shrink", {}))
    num_tokens, dropped = ASSUMED_TOKENS if how.vocabulary else None, how.drop_layers
    whole = find_model("llms", config["llm"], cache_dir)
    if stays is not None:
        num_tokens = None if stays.ids is None else len(stays.ids)
        dropped = whole.config.num_layers - len(stays.layers) if stays.layers else 0
    llm = _smaller(whole, config["llm"], cache_dir, num_tokens, dropped)
    if stages.Compiler(device).stands_in:
        config = {**config, "train": {**config["train"], "compute_dtype": "float32"}}
    samples = round(config["encoder"]["window_s"] * SAMPLE_RATE_HZ)
    frames = encoder.family.num_frames(encoder.config, samples)
    rows = llm.config.vocab_size
    if config["vocabulary"]["kind"] != "full":
        rows = min(rows, ASSUMED_ROWS)
    work = Work(ASSUMED_UTTERANCES, frames, -(-frames // 2), rows)
    scored = whole if stays is None and dropped else None
    return Plan(Shapes(config, encoder, llm, work, scored), device)


def read_corpus(plan: Plan, cache_dir: str) -> Plan:
    """The plan with the numbers of its corpus and prompt in place of assumptions.

    Reads transcripts and the LLM's tokenizer, not audio: the longest utterance is as long as the window.

    Raises:
        TinyAlignError: of the corpus, or no tokenizer.
    """
    config = plan.shapes.config
    split = corpus.read_split(config)
    folder, texts = assets.resolve(config["llm"]["asset"], cache_dir), [u.text for u in split.train]
    words, how = tokenizer.load(folder.path), registry.make_config(prompts, config["prompt"])
    smaller, llm = registry.make_config(shrink, config["llm"].get("shrink", {})), plan.shapes.llm
    if smaller.vocabulary:
        num_tokens = len(shrink.kept_ids(smaller, folder, texts, how, words))
        llm = _smaller(llm, config["llm"], cache_dir, num_tokens, smaller.drop_layers)
    module, _ = registry.from_section("objectives", config["objective"])
    section = config["vocabulary"]
    rows = vocabulary.build(
        section["kind"],
        texts,
        words.token_strings(),
        words.eos_id,
        through_llm.vocabulary_tokenizer(module, section["kind"], words),
        section["min_count"],
    )
    prompt = prompts.build(how, words)
    shapes = with_work(
        dataclasses.replace(plan.shapes, llm=llm),
        num_utterances=len(split.train),
        num_rows=len(rows),
        validates=bool(split.validation),
        num_test=len(split.test),
        prefix_tokens=max(len(prompt.prefix_ids), 1),
    )
    return dataclasses.replace(plan, shapes=shapes)


def find_model(kind: str, section: Mapping[str, Any], cache_dir: str) -> Model:
    """Shape of the model that a config section names: from its folder, or as published.

    Args:
        kind: 'encoders' or 'llms'.
        section: with 'asset', 'dtype' and, if quantised, 'quantize'.
        cache_dir: where fetched models lie.

    Raises:
        ConfigError: neither a folder with a config.json nor a published name; GGUF blocks without a file.
    """
    name, held = section["asset"], registry.make_config(quantize, section.get("quantize", {}))
    hf = _find_config(kind, name, cache_dir)
    family = loading.find_family(kind, hf)
    is_file = held.weights == quantize.GGUF and assets.local_config(name, cache_dir)
    folder = assets.resolve(name, cache_dir) if is_file else None
    return Model(family, family.config_from_hf(hf), jnp.dtype(section["dtype"]), held, folder)


def _find_config(kind: str, name: str, cache_dir: str) -> Mapping[str, Any]:
    hf = assets.local_config(name, cache_dir) or published.find(kind, name)
    if hf is None:
        known = ", ".join(published.ENCODERS if kind == "encoders" else published.LLMS)
        raise ConfigError(
            f"no shape of {name!r}: no folder of that name with a config.json, none in {cache_dir} "
            f"(python -m experiments.fetch_assets --assets={name}), and none of the published: {known}"
        )
    return hf


def _smaller(
    whole: Model, section: Mapping[str, Any], cache_dir: str, num_tokens: int | None, dropped: int
) -> Model:
    """The LLM of a section with so many tokens (None: all) and without so many layers.

    Raises:
        ConfigError: no layer would stay.
    """
    if num_tokens is None and not dropped:
        return whole
    hf = dict(_find_config("llms", section["asset"], cache_dir))
    num_layers = hf["num_hidden_layers"] - dropped
    if num_layers < 1:
        raise ConfigError(
            f"llm.shrink.drop_layers={dropped}; the LLM has {hf['num_hidden_layers']}, one must stay"
        )
    if dropped:
        hf |= {"num_hidden_layers": num_layers}
        hf |= {key: hf[key][:num_layers] for key in ("layer_types",) if hf.get(key)}
    if num_tokens is not None:
        hf["vocab_size"] = min(num_tokens, hf["vocab_size"])
    return dataclasses.replace(whole, config=whole.family.config_from_hf(hf))


def require_fits(config: Mapping[str, Any], cache_dir: str, names: Sequence[str]) -> None:
    """The gate before a run: does nothing where the config's device has no budget.

    Args:
        config: resolved sections, as plain mappings.
        cache_dir: folder of weights.
        names: stages that are to run, of STAGES.

    Raises:
        BudgetError: with the numbers and the nearest setting that fits; no weights were loaded.
    """
    device = _device_of(config)
    if device.budget_bytes:
        plan = read_corpus(make(config, cache_dir, device), cache_dir)
        _require(plan, names)


def require_workdir_fits(
    workdir: str | os.PathLike,
    cache_dir: str,
    names: Sequence[str],
    device: Mapping[str, Any],
    personalize: Mapping[str, Any] | None = None,
    **work: Any,
) -> None:
    """The gate before a trained projector is used; arguments and errors as `require_fits`.

    Args:
        workdir: of a training run.
        cache_dir: folder of weights.
        names: stages that are to run.
        device: section of the device; empty: that of the run's config.
        personalize: sections of `configs/personalize.py`, for the stage 'personalisation'.
        **work: sizes that are known, fields of `Work`.
    """
    config, card = aligner.read_workdir(Path(workdir))
    chosen = registry.make_config(budget, device or config.get("device", {}))
    if not chosen.budget_bytes:
        return
    sections = {key: card[key] for key in ("projector", "objective")}
    for key in ("encoder", "llm"):  # the projector was trained with what the card says
        sections[key] = {**config[key], "quantize": card[key].get("quantize", {})}
    if personalize:
        sections["personalize"] = personalize
    base = {"vocabulary": {"kind": "seen"}, "train": {}, "optimizer": {}, "augment": {}}
    stays = shrunk.Choice.from_json(card["llm"].get("shrunk", {}))
    plan = make({**base, **config, **sections}, cache_dir, chosen, stays)
    rows = card["vocabulary"]["num_rows"]
    plan = dataclasses.replace(plan, shapes=with_work(plan.shapes, num_rows=rows, **work))
    _require(plan, names)


def _device_of(config: Mapping[str, Any]) -> Config:
    return registry.make_config(budget, config.get("device", {}))


def _require(plan: Plan, names: Sequence[str]) -> None:
    built = [plan.stage(name) for name in names]
    budget.require_fits(plan.device, built, plan.advice)
    for stage in built:
        needed = budget.megabytes(stage.needed(plan.device).num_bytes)
        logging.info("%s (%s) takes %s at most: it fits", stage.name, stage.setting, needed)
