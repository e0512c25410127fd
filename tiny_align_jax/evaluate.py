"""Scores a trained projector: what it hears without the LLM, what the LLM answers, and the oracle.

The oracle is the true text's embeddings through the same prompt: no projector can make the LLM answer
better than that, so it stands beside every result.
"""

import dataclasses
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tqdm
from absl import logging

from tiny_align_jax import checks, decode, reading, scoring
from tiny_align_jax.aligner import SNAPS, Aligner
from tiny_align_jax.data import batching
from tiny_align_jax.responder import Answer
from tiny_align_jax.train import checkpoint, corpus, setup
from tiny_align_jax.types import DataError, Utterance

HEARD, FUSED, ANSWER, ORACLE = "heard", "fused", "answer", "oracle"
SPLITS = ("test", "validation", "train")


@dataclasses.dataclass(frozen=True)
class Config:
    """What to evaluate.

    Attributes:
        split: role in the run's split, one of SPLITS.
        limit: score only so many utterances, drawn by `seed`; 0 for all. Such results are marked
            partial and go to files of their own.
        snap: what the LLM gets in place of the audio, see `Aligner.snap`. Rows of the pieces that the
            projector spells rare words with are not the rows the LLM knows these words by, so the
            reading is tokenised anew by default (docs/prompts.md has both figures).
        use_llm: ask the LLM and the oracle, too.
        batch_size: utterances that are heard at a time; the reading holds [batch, tokens, rows].
        num_buckets: padded lengths that batches are sorted into.
        seed: of the draw under `limit`.
    """

    split: str = "test"
    limit: int = 0
    snap: str = "retokenize"
    use_llm: bool = True
    batch_size: int = 16
    num_buckets: int = 3
    seed: int = 0

    def __post_init__(self):
        problems = checks.unlisted(self, split=SPLITS, snap=SNAPS)
        if self.limit < 0:
            problems.append(f"limit={self.limit}; expected 0 (all) or more")
        checks.refuse("evaluate", problems)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Predictions and scores.

    Attributes:
        utterances: what was scored, in order.
        systems: texts by system ('heard', 'fused' with a reader, 'answer', 'oracle'), in that order.
        stopped: False where the LLM's answer was cut at the length limit; empty without the LLM.
        metrics: contents of metrics.json.
    """

    utterances: tuple[Utterance, ...]
    systems: Mapping[str, Sequence[str]]
    stopped: tuple[bool, ...]
    metrics: Mapping[str, Any]


def evaluate(
    aligner: Aligner,
    cache_dir: str | os.PathLike,
    config: Config | None = None,
    settings: decode.Config | None = None,
    scoring_config: scoring.Config | None = None,
    reader: reading.Reader | None = None,
    *,
    progress: bool = False,
) -> Evaluation:
    """Scores one split of the aligner's own corpus.

    Args:
        aligner: with the LLM loaded if `config.use_llm`.
        cache_dir: folder of weights and features; missing features are extracted.
        config: what to evaluate.
        settings: how the LLM generates.
        scoring_config: metrics, normalisers and intervals.
        reader: reads with help beside the greedy reading; its texts are system 'fused', and what the
            LLM is asked about if the snap mode is 'retokenize'.
        progress: show progress bars on standard error.

    Raises:
        DataError: the split has no usable utterance.
        TinyAlignError: of the corpus or the features.
    """
    config, scoring_config = config or Config(), scoring_config or scoring.Config()
    utterances, frames, skipped, partial = frames_of(aligner, cache_dir, config, progress=progress)
    start_s = time.monotonic()
    heard, vectors = hear_all(aligner, frames, config, progress=progress)
    seconds = {"hear": round(time.monotonic() - start_s, 2)}
    systems: dict[str, Sequence[str]] = {HEARD: heard}
    pairs, about_reading = [], {"method": "greedy"}
    if reader:
        start_s = time.monotonic()
        with tqdm.tqdm(total=len(frames), desc=FUSED, disable=not progress) as bar:
            systems[FUSED] = reader.read(frames, on_done=bar.update)
        seconds[FUSED] = round(time.monotonic() - start_s, 2)
        about_reading = reader.about(frames)
        pairs.append((FUSED, HEARD))
        if config.use_llm and config.snap == "retokenize":
            vectors = [aligner.embed_text(text) for text in systems[FUSED]]
    stopped: tuple[bool, ...] = ()
    prompt_text = None
    if config.use_llm:
        pairs += [(ANSWER, system) for system in (FUSED, HEARD) if system in systems]
        responder = aligner.responder(settings=settings)
        prompt_text = responder.prompt.text
        truths = [aligner.embed_text(u.text) for u in utterances]
        answers: dict[str, list[Answer]] = {}
        for name, inputs in ((ANSWER, vectors), (ORACLE, truths)):
            start_s = time.monotonic()
            answers[name] = _ask(responder, inputs, name, progress)
            seconds[name] = round(time.monotonic() - start_s, 2)
            systems[name] = [a.text for a in answers[name]]
        stopped = tuple(a.stopped for a in answers[ANSWER])
    metrics = {
        **_about(aligner, config, partial, prompt_text),
        "num_utterances": len(utterances),
        "num_speakers": len({u.speaker_id for u in utterances}),
        "skipped": skipped,
        "num_answers_cut": stopped.count(False),
        "intervals": dataclasses.asdict(scoring_config),
        "normalizers": scoring.score(scoring_config, utterances, systems, pairs),
        "reading": about_reading,
        "seconds": seconds,
        "versions": setup.versions(),
    }
    return Evaluation(utterances, systems, stopped, metrics)


def frames_of(
    aligner: Aligner, cache_dir: str | os.PathLike, config: Config, *, progress: bool = False
) -> tuple[tuple[Utterance, ...], list[np.ndarray], dict[str, str], bool]:
    """What `config` chooses: utterances, their frames, those left out by name, whether it is a part.

    Raises:
        DataError: the split has no usable utterance.
    """
    wanted, partial = choose(aligner.config, config)
    cache, report, _ = corpus.features(aligner.config, os.fspath(cache_dir), wanted, progress)
    usable = tuple(u for u in wanted if u.utterance_id in report.keys)
    if not usable:
        raise DataError(f"split {config.split!r} has no usable utterance; all were skipped by name")
    frames = [cache.frames(report.keys[u.utterance_id]) for u in usable]
    return usable, frames, {name: str(why) for name, why in report.skipped.items()}, partial


def choose(run: Mapping[str, Any], config: Config) -> tuple[list[Utterance], bool]:
    """Utterances of the split in the corpus's order, and whether they are only a part of it."""
    split = getattr(corpus.read_split(run), config.split)
    if not split:
        raise DataError(f"the run's split has no {config.split} utterances")
    if not config.limit or config.limit >= len(split):
        return list(split), False
    drawn = np.random.default_rng(config.seed).permutation(len(split))[: config.limit]
    return [split[i] for i in sorted(drawn)], True


def hear_all(
    aligner: Aligner, frames: Sequence[np.ndarray], config: Config, *, progress: bool = False
) -> tuple[list[str], list[np.ndarray]]:
    """Reading of every utterance, and what the LLM gets of it.

    Args:
        aligner: hears.
        frames: encoder frames of every utterance, [T_i, E].
        config: batch size, buckets and snap mode.
        progress: show a progress bar.
    """
    data = batching.of_frames(frames)
    texts: dict[int, str] = {}
    vectors: dict[int, np.ndarray] = {}
    with tqdm.tqdm(total=len(frames), desc="hearing", disable=not progress) as bar:
        for batch in batching.batches_of(data, config.batch_size, config.num_buckets):
            hearing = aligner.hear(batch.features_BTE, batch.num_frames_B)
            for row in np.flatnonzero(batch.weight_B):
                index = int(batch.index_B[row])
                texts[index] = hearing.texts[row]
                if config.use_llm:
                    vectors[index] = aligner.snap(hearing, int(row), config.snap)
            bar.update(int(batch.weight_B.sum()))
    order = range(len(frames))
    return [texts[i] for i in order], [vectors[i] for i in order] if config.use_llm else []


def write(evaluation: Evaluation, workdir: str | os.PathLike) -> dict[str, Path]:
    """Writes metrics and predictions; files of a whole test set under the default switches have the
    plain names, any other evaluation says in its files' names what it is.

    Returns:
        Paths by kind, 'metrics' and 'predictions'.
    """
    folder, tag = Path(workdir), file_tag(evaluation.metrics)
    folder.mkdir(parents=True, exist_ok=True)
    metrics = folder / f"metrics{tag}.json"
    predictions = folder / f"predictions{tag}.jsonl"
    checkpoint.write_text(
        metrics, json.dumps(evaluation.metrics, indent=1, ensure_ascii=False) + "\n"
    )
    lines = (json.dumps(row, ensure_ascii=False) for row in prediction_rows(evaluation))
    checkpoint.write_text(predictions, "".join(f"{line}\n" for line in lines))
    logging.info("wrote %s and %s", metrics, predictions)
    return {"metrics": metrics, "predictions": predictions}


def prediction_rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    """One line of predictions.jsonl an utterance."""
    rows = []
    for i, utterance in enumerate(evaluation.utterances):
        row = {
            "id": utterance.utterance_id,
            "speaker": utterance.speaker_id,
            "age": utterance.age,
            "sex": utterance.sex,
            "audio": utterance.audio_path,
            "reference": utterance.text,
            **{system: texts[i] for system, texts in evaluation.systems.items()},
        }
        if evaluation.stopped:
            row["answer_cut"] = not evaluation.stopped[i]
        rows.append(row)
    return rows


def file_tag(metrics: Mapping[str, Any]) -> str:
    """'' for the whole test set under the defaults, else e.g. '.validation.soft.partial'."""
    default = Config()
    parts = [metrics[name] for name in ("split", "snap") if metrics[name] != getattr(default, name)]
    parts += [metrics["reading"]["method"]] if metrics["reading"]["method"] != "greedy" else []
    parts += ["no_llm"] if not metrics["use_llm"] else []
    parts += ["partial"] if metrics["partial"] else []
    return "".join(f".{part}" for part in parts)


def _ask(responder, vectors: Sequence[np.ndarray], name: str, progress: bool) -> list[Answer]:
    with tqdm.tqdm(total=len(vectors), desc=name, disable=not progress) as bar:
        return responder.answer(vectors, on_batch=bar.update)


def _about(
    aligner: Aligner, config: Config, partial: bool, prompt_text: str | None
) -> dict[str, Any]:
    """What was evaluated and how."""
    card = aligner.card
    return {
        "split": config.split,
        "partial": partial,
        "snap": config.snap,
        "use_llm": config.use_llm,
        "dataset": aligner.config["dataset"]["name"],
        "projector": card["projector"]["name"],
        "objective": card["objective"]["name"],
        "encoder": card["encoder"]["name"],
        "llm": card["llm"]["name"],
        "step": card.get("step"),
        "prompt": prompt_text,
    }
