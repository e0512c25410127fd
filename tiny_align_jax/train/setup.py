"""From a config to a `Run`: its `corpus`, vocabulary, table rows, modules, validation.

Never holds the LLM unless the objective asks for it.
"""

import dataclasses
import functools
import platform
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import tiny_align_jax
from tiny_align_jax import placing, registry, shrink
from tiny_align_jax.data import augment, batching, prompts, splits, tokenizer, vocabulary
from tiny_align_jax.quantize import config as quantize
from tiny_align_jax.train import corpus, init_from, loop, mixture, optimizer, through_llm
from tiny_align_jax.train.partition import partition
from tiny_align_jax.train.step import StepSpec, TrainState, init_state, with_constants
from tiny_align_jax.types import ConfigError, Frozen, PyTree, Reading
from tiny_align_jax.weights import assets, loading, shrunk

_ROWS_AT_ONCE = 16_384  # of the table, more than any corpus here uses


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A run and what to write beside its weights.

    Attributes:
        run: for `loop.fit`.
        state: at step 0.
        card: contents of projector.json.
        split: utterances by role.
        skipped: reason of every training utterance left out, by id.
    """

    run: loop.Run
    state: TrainState
    card: dict[str, Any]
    split: splits.Split
    skipped: Mapping[str, str]


def prepare(config: Mapping[str, Any], cache_dir: str, progress: bool = True) -> Prepared:
    """Everything `loop.fit` needs; extracts features that the cache lacks.

    Args:
        config: resolved sections, as plain mappings.
        cache_dir: folder of weights and features.
        progress: show progress bars.

    Raises:
        TinyAlignError: of any stage, naming what is wrong.
    """
    module, module_config = registry.from_section("objectives", config["objective"])
    projector, projector_config = registry.from_section("projectors", config["projector"])
    require_fit(projector, projector_config, module)
    # Every section is checked before the minutes that features may take.
    train_config = registry.make_config(loop, config["train"])
    registry.make_config(optimizer, config["optimizer"])
    registry.make_config(augment, config["augment"])
    section = dict(config.get("mixture", {}))
    dataset = section.pop("dataset", {})
    mixture_config = registry.make_config(mixture, section)
    variants = config["features"].get("variants", ())
    split = mixture.extend(corpus.read_split(config), mixture_config, dataset, variants)
    splits.refuse_leaks(
        split, config["split"]["shared_speakers"], corpus.audio_digests(split, cache_dir)
    )
    llm_folder, choice = resolve_llm(config, cache_dir, split)
    words = tokenizer.load(llm_folder.path)
    rows = vocabulary.build(
        config["vocabulary"]["kind"],
        corpus.vocabulary_texts(config, split),
        words.token_strings(),
        words.eos_id,
        through_llm.vocabulary_tokenizer(module, config["vocabulary"]["kind"], words),
        config["vocabulary"]["min_count"],
    )
    frozen = load_frozen(module, llm_folder, rows, config, words)
    table_rms = _rms(np.asarray(frozen.table_VD))
    llm = loading.llm_config(llm_folder) if "llm" in module.NEEDS else None
    # Once, for constants, steps and validation: host arrays would travel with every call that takes them.
    frozen = with_constants(module, module_config, placing.put(frozen), llm)
    cache, report, encoder_card = corpus.features(
        config, cache_dir, [*split.train, *split.validation], progress
    )
    can_emit = functools.partial(_can_emit, projector, projector_config, module, module_config)
    train_examples, skipped = corpus.examples(
        "training", split.train, cache, report, rows, can_emit
    )
    train_examples = dataclasses.replace(
        train_examples, corpora=mixture.corpora(train_examples.ids, mixture_config)
    )
    if getattr(module, "FIXED_LENGTH", False):
        corpus.warn_of_cut(
            train_examples, functools.partial(projector.num_audio_tokens, projector_config)
        )
    spec = step_spec(config, frozen.table_VD.shape[1], table_rms, llm)
    validate = None
    if split.validation:
        validation_examples, _ = corpus.examples(
            "validation",
            corpus.drawn(split.validation, train_config.validate_limit),
            cache,
            report,
            rows,
            can_emit,
            targets=False,
        )
        references = {u.utterance_id: u.text for u in split.validation}
        if spec.llm is None:
            validate = make_validation(spec, frozen, validation_examples, rows, references)
        else:
            prompt = prompts.build(registry.make_config(prompts, config["prompt"]), words)
            validate = through_llm.make_validation(
                spec, frozen, validation_examples, words, prompt, references
            )
    run = loop.Run(train_config, spec, frozen, train_examples, validate, config["seed"])
    card = {
        "projector": registry.without_unread(config["projector"]),
        "objective": registry.without_unread(config["objective"]),
        "encoder": encoder_card,
        "llm": llm_card(config, llm_folder, choice, frozen.table_VD.shape[1], table_rms),
        "vocabulary": rows.to_json(),
        "versions": versions(),
    }
    return Prepared(run, first_state(run, card), card, split, skipped)


def first_state(run: loop.Run, card: Mapping[str, Any]) -> TrainState:
    """The state that a run begins with: parameters by its own seed, or those of `train.init_from`."""
    params = loop.init_params(run)
    if run.config.init_from:
        params = init_from.load(run.config.init_from, params, card)
    trainable, fixed = partition(params, run.config.trainable, run.config.fixed)
    return init_state(run.spec, trainable, fixed, run.seed)


def llm_card(
    config: Mapping[str, Any],
    folder: assets.ModelFolder,
    choice: shrunk.Choice,
    dim: int,
    out_rms: float,
) -> dict[str, Any]:
    """What projector.json says of the LLM."""
    return {
        "name": config["llm"]["asset"],
        "fingerprint": folder.fingerprint,
        "quantize": dataclasses.asdict(held_llm(config)),
        "shrunk": dataclasses.asdict(choice),
        "dim": dim,
        "out_rms": out_rms,
    }


def resolve_llm(
    config: Mapping[str, Any], cache_dir: str, split: splits.Split
) -> tuple[assets.ModelFolder, shrunk.Choice]:
    """The run's LLM, smaller if the config says so, and what stayed of it."""
    whole, texts = assets.resolve(config["llm"]["asset"], cache_dir), [u.text for u in split.train]
    how = registry.make_config(shrink, config["llm"].get("shrink", {}))
    prompt = registry.make_config(prompts, config.get("prompt", {}))
    choice = shrink.choose(how, whole, texts, prompt, held_llm(config))
    return shrunk.resolve(whole, choice, cache_dir), choice


def step_spec(config: Mapping[str, Any], dim: int, out_rms: float, llm: Any = None) -> StepSpec:
    """The training step of a config; needs no data and no weights.

    Args:
        config: resolved sections, as plain mappings.
        dim: width of the LLM's embeddings.
        out_rms: root mean square of the table's rows.
        llm: family module and Config, for objectives that train through the LLM.
    """
    module, module_config = registry.from_section("objectives", config["objective"])
    projector, projector_config = registry.from_section("projectors", config["projector"])
    train_config = registry.make_config(loop, config["train"])
    dtype = jnp.dtype(train_config.compute_dtype)
    return StepSpec(
        projector=projector.Projector(projector_config, dim, out_rms, dtype),
        objective=module,
        objective_config=module_config,
        optimizer=optimizer.make(
            registry.make_config(optimizer, config["optimizer"]), train_config.num_steps
        ),
        augment=registry.make_config(augment, config["augment"]),
        average_decay=train_config.average_decay,
        llm=llm,
    )


def require_fit(projector, projector_config, objective) -> None:
    """Refuses a projector at frame rate for an objective that matches token by token.

    Raises:
        ConfigError: naming both and the switches that give a fixed number of tokens.
    """
    few, many = (projector.num_audio_tokens(projector_config, n) for n in (100, 1000))
    if getattr(objective, "FIXED_LENGTH", False) and few != many:
        raise ConfigError(
            f"{objective.__name__} matches token by token and needs a fixed number of audio tokens, "
            f"but {projector.__name__} gives {few} for 100 frames and {many} for 1000; set its "
            "pooling to 'adaptive' (qformer: window=0)"
        )


def load_frozen(
    objective, llm_folder, rows: vocabulary.Vocabulary, config: Mapping[str, Any], words
) -> Frozen:
    """The frozen parts that `objective.NEEDS` names: table rows always, the LLM only if asked for."""
    held = held_llm(config)
    table = np.asarray(loading.embedding_rows(llm_folder, rows.row_ids, held), np.float32)
    frozen = Frozen(table_VD=table, row_ids_V=rows.row_ids)
    if "llm" not in objective.NEEDS:
        return frozen
    prompt = prompts.build(registry.make_config(prompts, config["prompt"]), words)
    dtype = jnp.dtype(config["llm"]["dtype"])
    _, objective_config = registry.from_section("objectives", config["objective"])
    adapts = objective_config.lora_rank > 0
    return through_llm.add_llm(frozen, llm_folder, rows, prompt, dtype, held, adapts)


def held_llm(config: Mapping[str, Any]) -> quantize.Config:
    """How the run's LLM is held in memory."""
    return registry.make_config(quantize, config["llm"].get("quantize", {}))


def make_reader(spec: StepSpec):
    """Jitted (params, frozen, features_BTE, num_frames_B) -> Reading."""

    @jax.jit
    def read(params: PyTree, frozen: Frozen, features_BTE, num_frames_B) -> Reading:
        mask_BT = jnp.arange(features_BTE.shape[1])[None] < num_frames_B[:, None]
        audio_BAD, audio_mask_BA = spec.projector.apply(
            {"params": params["projector"]}, features_BTE, mask_BT
        )
        return spec.objective.read(
            spec.objective_config, params["objective"], audio_BAD, audio_mask_BA, frozen
        )

    return read


def make_validation(
    spec: StepSpec,
    frozen: Frozen,
    data: batching.Examples,
    rows: vocabulary.Vocabulary,
    references: Mapping[str, str],
):
    """Parameters -> corpus WER and ROUGE-1 of the nearest-row reading of validation speakers."""
    read = make_reader(spec)

    def validate(params: PyTree) -> dict[str, float]:
        texts, truths = [], []
        for batch in batching.batches_of(data, 32, 2):
            reading = read(params, frozen, batch.features_BTE, batch.num_frames_B)
            kept = zip(
                np.asarray(reading.rows_BA),
                np.asarray(reading.keep_BA),
                batch.index_B,
                batch.weight_B,
                strict=True,
            )
            for row_A, keep_A, index, weight in kept:
                if weight:
                    texts.append(rows.decode(row_A[keep_A]))
                    truths.append(references[data.ids[index]])
        return through_llm.score_texts(truths, texts)

    return validate


def versions() -> dict[str, str]:
    """Versions that a reported number depends on."""
    device = jax.devices()[0]
    return {
        "tiny_align_jax": tiny_align_jax.__version__,
        "jax": jax.__version__,
        "python": platform.python_version(),
        "device": f"{device.platform}: {device.device_kind}",
    }


def _rms(table_VD: np.ndarray) -> float:
    """Root mean square, without a second table for the squares."""
    blocks = [table_VD[i : i + _ROWS_AT_ONCE] for i in range(0, len(table_VD), _ROWS_AT_ONCE)]
    means = [np.mean(np.square(block)) for block in blocks]
    mean = np.average(means, weights=[len(block) for block in blocks])
    return float(np.sqrt(np.float32(mean)))


def _can_emit(projector, projector_config, objective, objective_config, num_frames, target) -> bool:
    repeats = int(np.sum(target[1:] == target[:-1]))
    needed = objective.min_audio_tokens(objective_config, len(target), repeats)
    return projector.num_audio_tokens(projector_config, num_frames) >= needed
