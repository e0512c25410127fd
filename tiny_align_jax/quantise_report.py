"""What smaller forms of the frozen LLM and encoder cost in quality, and save in bytes and time.

All forms see the same validation utterances, heard once by the same projector; test text is not looked
at. Per-token perplexity always counts the tokens of the whole tokenizer, so that forms with another
vocabulary compare; whoever predicts among fewer rows has it easier, which the table cannot take out.
"""

import dataclasses
import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from absl import logging

from tiny_align_jax import (
    benchmark_quantised,
    decode,
    evaluate,
    language,
    quantise_qwix,
    registry,
    scoring,
    shrink,
    transcribe,
)
from tiny_align_jax.aligner import Aligner
from tiny_align_jax.benchmark_sizes import DecodeShape
from tiny_align_jax.benchmark_timing import machine, tree_bytes
from tiny_align_jax.data import prompts, tokenizer, vocabulary
from tiny_align_jax.quantize import config as quantize
from tiny_align_jax.responder import Llm
from tiny_align_jax.train import corpus, setup
from tiny_align_jax.types import AudioError, ConfigError, PyTree
from tiny_align_jax.weights import loading, quantised, shrunk

FLOAT = "float32"
_AS_LOADED, _WHOLE = quantize.Config(), shrink.Config()


@dataclasses.dataclass(frozen=True)
class Form:
    """One form of an LLM: how its matrices are held, what of it stays; `qwix`: what qwix makes of floats."""

    held: quantize.Config = _AS_LOADED
    smaller: shrink.Config = _WHOLE
    qwix: str = ""


_TRIMMED = shrink.Config(vocabulary=shrink.TRAIN)
FORMS: dict[str, Form] = {
    FLOAT: Form(),
    "int8": Form(quantize.Config("int8")),
    "int4": Form(quantize.Config("int4")),
    "int4-table": Form(quantize.Config("int4", table="int4")),
    "int4-symmetric": Form(quantize.Config("int4", minimum=False)),
    "gguf": Form(quantize.Config("gguf")),
    "trimmed": Form(smaller=_TRIMMED),
    "gguf-trimmed": Form(quantize.Config("gguf"), _TRIMMED),
    "int8-qwix": Form(qwix="int8"),
    "int4-qwix": Form(qwix="int4"),
    **{f"drop-{n}": Form(smaller=shrink.Config(drop_layers=n)) for n in (1, 2, 4)},
}
_ANSWERS = decode.Config(max_new_tokens=32)
_SPEED = DecodeShape(prompt_tokens=64, new_tokens=64)
_CONTEXT_LINES = 8  # training sentences that stand before a judged one


@dataclasses.dataclass(frozen=True)
class Config:
    """What to measure.

    Attributes:
        forms: keys of FORMS; the float form is always among them, as what others compare with.
        quality: ask the LLM; without it, only bytes and speed are measured.
        limit: validation utterances, drawn by `seed`; 0 for all.
        answers: how the LLM generates what is scored.
        encoder: also compare the encoder in int8.
        encoder_limit: utterances to encode twice.
        speed: how a decoded token is timed; None: not at all.
        seed: of the draw.
    """

    forms: tuple[str, ...] = tuple(FORMS)
    quality: bool = True
    limit: int = 200
    answers: decode.Config = _ANSWERS
    encoder: bool = True
    encoder_limit: int = 100
    speed: DecodeShape | None = _SPEED
    seed: int = 0

    def __post_init__(self):
        if unknown := sorted(set(self.forms) - set(FORMS)):
            raise ConfigError(f"forms={unknown}; expected some of {', '.join(FORMS)}")


@dataclasses.dataclass(frozen=True)
class Heard:
    """What every form is asked about: utterances and what the projector heard; training transcripts."""

    utterances: tuple[Any, ...]
    frames: list[np.ndarray]
    texts: list[str]
    train_texts: list[str]
    context: tuple[str, ...]


def run(aligner: Aligner, cache_dir: str, config: Config, *, progress: bool = False) -> dict:
    """Measures all forms.

    Args:
        aligner: of a finished run; its LLM need not be loaded.
        cache_dir: folder of weights and features.
        config: what to measure.
        progress: show progress bars.

    Returns:
        What `table` prints and the JSON file holds.

    Raises:
        ConfigError: 'gguf' for an LLM that did not come as one.
        TinyAlignError: of the corpus or the features.
    """
    heard = _hear(aligner, cache_dir, config, progress)
    forms = [FLOAT, *(name for name in config.forms if name != FLOAT and _can_run(name))]
    rows, answers = [], {}
    for name in tqdm.tqdm(forms, desc="forms", disable=not progress):
        row, found = _measure(aligner, name, heard, config, cache_dir)
        rows.append(row)
        answers |= {f"{kind} {name}": texts for kind, texts in found.items()}
        logging.info("%s: %s", name, row)
    if config.quality:
        _add_rouge(rows, answers, heard)
    gguf = aligner.llm_folder.path / quantised.GGUF_FILE
    return {
        "llm": aligner.card["llm"]["name"],
        "projector": f"{aligner.card['projector']['name']}, step {aligner.card.get('step')}",
        "split": "validation",
        "num_utterances": len(heard.utterances),
        "num_speakers": len({u.speaker_id for u in heard.utterances}),
        "gguf_bytes": gguf.stat().st_size if gguf.is_file() else None,
        "forms": rows,
        "encoder": _encoders(aligner, heard, config) if config.encoder else [],
        "machine": machine(jax.devices()[0]),
        "versions": setup.versions(),
    }


def _can_run(name: str) -> bool:
    if not FORMS[name].qwix or quantise_qwix.is_installed():
        return True
    logging.warning("%s left out: qwix is not installed (the extra 'qwix')", name)
    return False


def _hear(aligner: Aligner, cache_dir: str, config: Config, progress: bool) -> Heard:
    chosen = evaluate.Config(
        split="validation", limit=config.limit, use_llm=False, seed=config.seed
    )
    utterances, frames, _, _ = evaluate.frames_of(aligner, cache_dir, chosen, progress=progress)
    texts, _ = evaluate.hear_all(aligner, frames, chosen, progress=progress)
    train = [u.text for u in corpus.read_split(aligner.config).train]
    drawn = np.random.default_rng(config.seed).permutation(len(train))[:_CONTEXT_LINES]
    context = tuple(vocabulary.spoken_form(train[i]) for i in drawn)
    return Heard(utterances, frames, texts, train, context)


def _measure(
    aligner: Aligner, name: str, heard: Heard, config: Config, cache_dir: str
) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """One form's figures, and its answers to what was heard and to the truth."""
    form, prompt = FORMS[name], registry.make_config(prompts, aligner.config.get("prompt", {}))
    choice = shrink.choose(form.smaller, aligner.llm_folder, heard.train_texts, prompt)
    folder = shrunk.resolve(aligner.llm_folder, choice, cache_dir)
    began_s = time.monotonic()
    loaded = loading.load_llm(folder, jnp.float32, form.held)
    params = quantise_qwix.quantise(loaded.params, form.qwix) if form.qwix else loaded.params
    load_s = time.monotonic() - began_s
    llm = Llm(decode.LanguageModel(loaded.module, loaded.config, jnp.float32), params)
    asked = dataclasses.replace(aligner, llm=llm, tokenizer=tokenizer.load(folder.path))
    row = {
        "name": name,
        "weight_bytes": held_bytes(params),
        "num_rows": loaded.config.vocab_size,
        "num_layers": loaded.config.num_layers,
        "load_s": round(load_s, 2),
    }
    if config.speed:
        row["tokens_per_s"] = benchmark_quantised.tokens_per_s(llm.model, llm.params, config.speed)
    if not config.quality:
        return row, {}
    truth = [vocabulary.spoken_form(u.text) for u in heard.utterances]
    answer = _answers(asked, {*truth, *heard.texts}, config)
    num_tokens = sum(len(aligner.tokenizer.encode(" " + text)) + 1 for text in truth)
    judge = language.LlmJudge(llm, asked.tokenizer, heard.context)
    row["perplexity"] = math.exp(-float(np.sum(judge.log_probs(truth))) / num_tokens)
    found = {"oracle": [answer[t] for t in truth], "heard": [answer[t] for t in heard.texts]}
    return row, found


def held_bytes(params: PyTree) -> int:
    """Bytes of arrays; two 4-bit numbers count as one byte, which an array of theirs need not take."""
    leaves = jax.tree.leaves(params)
    return sum(
        x.size * (4 if x.dtype.name == "int4" else 8 * x.dtype.itemsize) // 8 for x in leaves
    )


def _answers(asked: Aligner, texts: set[str], config: Config) -> dict[str, str]:
    """What the LLM answers to each text; greedy, so that every text is asked about once."""
    ordered = sorted(texts)
    responder = asked.responder(settings=config.answers)
    made = responder.answer([asked.embed_text(t) for t in ordered])
    return {text: a.text for text, a in zip(ordered, made, strict=True)}


def _add_rouge(rows: list[dict], answers: Mapping[str, Sequence[str]], heard: Heard) -> None:
    """ROUGE-1 of every form and what it loses against floats, with paired intervals."""
    kinds = ("oracle", "heard")
    pairs = [(f"{k} {row['name']}", f"{k} {FLOAT}") for k in kinds for row in rows[1:]]
    how = scoring.Config(normalizers=("whisper_english",))
    found = scoring.score(how, heard.utterances, answers, pairs)["whisper_english"]
    for row in rows:
        for kind in kinds:
            system = f"{kind} {row['name']}"
            row[kind] = found["scores"][system][scoring.ALL]["rouge1"]
            row[f"{kind}_wer"] = found["scores"][system][scoring.ALL]["wer"]
            if row["name"] != FLOAT:
                row[f"{kind}_change"] = found["differences"][f"{system} - {kind} {FLOAT}"]["rouge1"]


def _encoders(aligner: Aligner, heard: Heard, config: Config) -> list[dict[str, Any]]:
    """The encoder in floats and in int8: error of its frames, and words read from them."""
    count = min(config.encoder_limit, len(heard.utterances))
    utterances = heard.utterances[:count]
    rows, systems, frames = [], {}, {}
    for name in (FLOAT, "int8"):
        held = {"quantize": dataclasses.asdict(FORMS[name].held)}
        card = {**aligner.card, "encoder": {**aligner.card["encoder"], **held}}
        own = dataclasses.replace(aligner, card=card)
        frames[name], seconds = _encode(own, utterances)
        chosen = evaluate.Config(use_llm=False)
        systems[name], _ = evaluate.hear_all(own, frames[name], chosen)
        rows.append(
            {
                "name": name,
                "weight_bytes": tree_bytes(own.encoder_params()),
                "num_utterances": count,
                "seconds_an_utterance": seconds,
                "frame_error": _relative_error(frames[name], frames[FLOAT]),
            }
        )
    how = scoring.Config(normalizers=("whisper_english",))
    found = scoring.score(how, utterances, systems, [("int8", FLOAT)])["whisper_english"]
    for row in rows:
        row["wer"] = found["scores"][row["name"]][scoring.ALL]["wer"]
    rows[1]["wer_change"] = found["differences"][f"int8 - {FLOAT}"]["wer"]
    return rows


def _encode(aligner: Aligner, utterances: Sequence[Any]) -> tuple[list[np.ndarray], float]:
    """Frames of every utterance, and seconds an utterance after the first, which compiles."""
    decoder, encoder = transcribe.make_encoder(aligner)
    decoded = [decoder(u.audio_path, u) for u in utterances]
    list(encoder(decoded[:1]))
    began_s = time.monotonic()
    frames = [found for batch in encoder(decoded) for _, found in batch]
    if problems := [f for f in frames if isinstance(f, AudioError)]:
        raise problems[0]
    seconds = (time.monotonic() - began_s) / len(frames)
    return [np.asarray(f) for f in frames], seconds


def _relative_error(frames: list[np.ndarray], reference: list[np.ndarray]) -> float:
    """Root of the squared error over the squared reference, over all frames."""
    pairs = zip(frames, reference, strict=True)
    error = sum(float(np.square(np.float64(a) - b).sum()) for a, b in pairs)
    return math.sqrt(error / sum(float(np.square(np.float64(b)).sum()) for b in reference))


def write(report: Mapping[str, Any], out: str | Path) -> list[Path]:
    """Writes quantisation.json and quantisation.md; returns their paths."""
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "quantisation.json", folder / "quantisation.md"]
    paths[0].write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    paths[1].write_text(table(report), encoding="utf-8")
    return paths


def table(report: Mapping[str, Any]) -> str:
    """The report as Markdown."""
    first, file = report["forms"][0], report["gguf_bytes"]
    lines = [
        f"{report['llm']} on {report['num_utterances']} validation utterances of "
        f"{report['num_speakers']} speakers; {report['machine']}.",
        "",
        "| form | rows, layers | weights, MB | x GGUF file | perplexity | repeat, true text | change | "
        "repeat, heard | change | tokens/s | tokens/core s | x float32 |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in report["forms"]:
        cells = [
            row["name"],
            f"{row['num_rows']}, {row['num_layers']}",
            f"{row['weight_bytes'] / 1e6:.1f}",
            f"{row['weight_bytes'] / file:.2f}" if file else "",
            *_quality(row),
            *_speed(row, first),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    if report["encoder"]:
        lines += ["", *_encoder_lines(report["encoder"])]
    return "\n".join(lines) + "\n"


def _quality(row: Mapping[str, Any]) -> list[str]:
    if "perplexity" not in row:
        return [""] * 5
    cells = [f"{row['perplexity']:.2f}"]
    for kind in ("oracle", "heard"):
        cells += [f"{row[kind]['value']:.4f}", _change(row.get(f"{kind}_change"))]
    return cells


def _speed(row: Mapping[str, Any], first: Mapping[str, Any]) -> list[str]:
    if "tokens_per_s" not in row:
        return [""] * 3
    ours, floats = row["tokens_per_s"], first["tokens_per_s"]
    return [f"{ours['wall']:.1f}", f"{ours['core']:.1f}", f"{ours['core'] / floats['core']:.2f}"]


def _encoder_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        f"Encoder on {rows[0]['num_utterances']} of these utterances:",
        "",
        "| form | rows, layers | weights, MB | error of frames | WER of the reading | change | s an utterance |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    return lines + [
        f"| {row['name']} | {row['weight_bytes'] / 1e6:.1f} | {row['frame_error']:.4f} | "
        f"{row['wer']['value']:.4f} | {_change(row.get('wer_change'))} | "
        f"{row['seconds_an_utterance']:.2f} |"
        for row in rows
    ]


def _change(interval: Mapping[str, float] | None) -> str:
    if interval is None:
        return ""
    return f"{interval['value']:+.4f} ({interval['low']:+.4f} to {interval['high']:+.4f})"
