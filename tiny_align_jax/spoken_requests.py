"""A second task beside repeating: spoken requests with known short answers, and commands with intents.

The list (`spoken_requests.tsv`, written for this project) has sums, capitals, opposites, yes-no questions,
everyday facts and commands to a device. A request is spoken, heard by a projector that was never
trained on the list, and given to the LLM under an instruction. Its answer is compared with the key, and
with the answer that the same LLM gives to the true text in the same prompt: the oracle, which is what
hearing alone can be blamed against. A small LLM knows few of the answers, and the oracle's row says so.
"""

import csv
import dataclasses
import hashlib
import importlib.resources
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tiny_align_jax import decode, evaluate, synthesize
from tiny_align_jax.aligner import SNAPS, Aligner, check_snap
from tiny_align_jax.data import prompts
from tiny_align_jax.data.vocabulary import spoken_form
from tiny_align_jax.datasets import jsonl
from tiny_align_jax.metrics import _bootstrap, _normalizers, rouge, wer
from tiny_align_jax.train import corpus, setup
from tiny_align_jax.types import ConfigError, DataError, Utterance

LIST_FILE = "spoken_requests.tsv"
NORMALIZER = "whisper_english"
COMMAND, YES_NO = "command", "yes_no"
ORACLE = "oracle"
FILE = "requests.json"
# Beyond the speakers that our spoken corpora train on (up to 60 of the same series).
_FIRST_SPEAKER, _NUM_SPEAKERS = 100, 8


@dataclasses.dataclass(frozen=True)
class Request:
    """One request of the list.

    Attributes:
        kind: e.g. 'arithmetic' or 'command'.
        text: what is said.
        answers: what counts as right; of a command, its intent.
    """

    kind: str
    text: str
    answers: tuple[str, ...]


def load() -> tuple[Request, ...]:
    """The list, in the order of its file."""
    text = importlib.resources.files("tiny_align_jax").joinpath(LIST_FILE).read_text("utf-8")
    rows = csv.DictReader(text.splitlines(), delimiter="\t")
    return tuple(Request(r["kind"], r["text"], tuple(r["answers"].split("|"))) for r in rows)


INTENTS = tuple(dict.fromkeys(r.answers[0] for r in load() if r.kind == COMMAND))
# Not in the list: examples may not give answers away.
_QUESTIONS = (
    ("what is one plus two", "3"),
    ("what is the capital of brazil", "brasilia"),
    ("what is the opposite of tall", "short"),
    ("is a stone soft", "no"),
    ("can a frog jump", "yes"),
    ("how many legs does a horse have", "4"),
)
_COMMANDS = (
    ("the lamp in the hall please switch it on", "light on"),
    ("i want it dark", "light off"),
    ("louder please", "volume up"),
    ("softer please", "volume down"),
    ("put on a record", "play music"),
    ("enough of that", "stop"),
    ("get me up at five", "set alarm"),
    ("is the sun out", "weather"),
    ("what does the clock say", "time"),
    ("ring up my father", "call"),
    ("someone is at the door let them in", "open door"),
    ("it is freezing in this room", "heating up"),
)
_CHOICE = f"Choose what is meant: {', '.join(INTENTS)}.\nRequest: {{audio}}"


def _styles() -> dict[str, tuple[prompts.Config, prompts.Config]]:
    """Instructions to compare: for questions and for commands."""
    answer = "Answer in one word.\nQuestion: {audio}"
    plain = prompts.Config(instruction="Answer: {audio}", examples=())
    return {
        "question alone": (plain, plain),
        "instruction": (
            prompts.Config(instruction=answer, examples=()),
            prompts.Config(instruction=_CHOICE, examples=()),
        ),
        "instruction, examples": (
            prompts.Config(instruction=answer, examples=_QUESTIONS),
            prompts.Config(instruction="Request: {audio}", examples=_COMMANDS),
        ),
    }


STYLES = _styles()


@dataclasses.dataclass(frozen=True)
class Config:
    """What to ask.

    Attributes:
        styles: instructions, keys of STYLES.
        snaps: what the LLM gets in place of the audio, each of them, see `Aligner.snap`.
        max_new_tokens: longest answer, in tokens; the answers wanted are short.
    """

    styles: tuple[str, ...] = tuple(STYLES)
    snaps: tuple[str, ...] = SNAPS
    max_new_tokens: int = 16

    def __post_init__(self):
        unknown = [style for style in self.styles if style not in STYLES]
        if unknown or not self.styles:
            raise ConfigError(
                f"unknown instruction(s) {', '.join(unknown) or '(none)'}; there are: "
                f"{'; '.join(STYLES)}"
            )
        for snap in self.snaps:
            check_snap(snap)


def speak(voices: Sequence[str], folder: Path, *, progress: bool = False) -> list[Utterance]:
    """The whole list, spoken once by held-out speakers; kept in a folder a voice.

    Args:
        voices: 'engine:voice' each, e.g. 'flite:awb'; requests are dealt to them in turn.
        folder: for the recordings and a manifest.
        progress: show a progress bar.

    Raises:
        ConfigError: no voice, or an engine that does not exist.
        AssetError: a voice that is not there.
    """
    if not voices:
        raise ConfigError("no voice to speak the requests; name one, e.g. 'flite:awb'")
    cast = synthesize.speakers(_FIRST_SPEAKER + _NUM_SPEAKERS)[_FIRST_SPEAKER:]
    rows = []
    for number, voice in enumerate(voices):
        engine, _, name = voice.partition(":")
        lines = [
            synthesize.Line(f"request-{i:03d}", request.text, cast[i % len(cast)])
            for i, request in enumerate(load())
            if i % len(voices) == number
        ]
        found = synthesize.find_engine(engine, name)
        digest = hashlib.sha256(f"{found.fingerprint} {lines}".encode()).hexdigest()[:12]
        paths = synthesize.render(lines, found, folder / f"{engine}-{digest}", progress=progress)
        for line, path in zip(lines, paths, strict=True):
            who = f"{engine} {number} {line.speaker.name}"
            row = {"audio": str(path.relative_to(folder)), "text": line.text, "speaker": who}
            rows.append(row | {"id": line.utterance_id, "split": "test"})
    text = "".join(json.dumps(row) + "\n" for row in rows)
    manifest = folder / "manifest.jsonl"
    manifest.write_text(text, encoding="utf-8")
    return recordings(manifest)


def recordings(manifest: str | os.PathLike) -> list[Utterance]:
    """The recordings of a manifest's `test` rows (see `datasets.jsonl`).

    Raises:
        DataError: bad rows, or texts that are not in the list.
    """
    utterances = jsonl.read(jsonl.Config(manifest=os.fspath(manifest)), "test")
    match(utterances)
    return utterances


def match(utterances: Sequence[Utterance]) -> list[Request]:
    """The request that each utterance says.

    Raises:
        DataError: texts that are not in the list (all named).
    """
    by_text = {spoken_form(request.text): request for request in load()}
    strangers = sorted({u.text for u in utterances if spoken_form(u.text) not in by_text})
    if strangers:
        raise DataError(
            f"{len(strangers)} utterance(s) are not in the list of requests ({LIST_FILE}): "
            + "; ".join(strangers[:8])
        )
    return [by_text[spoken_form(u.text)] for u in utterances]


def is_right(request: Request, answer: str) -> bool:
    """Whether an answer holds the key, as whole words under the normaliser.

    A yes-no question is answered by the first 'yes' or 'no'; a command by the first intent that is named,
    so that listing everything is not right.
    """
    said = _padded(answer)
    if request.kind == YES_NO:
        found = [word for word in said.split() if word in ("yes", "no")]
        return bool(found) and found[0] == request.answers[0]
    if request.kind == COMMAND:
        places = {intent: said.find(_padded(intent)) for intent in INTENTS}
        named = [intent for intent in INTENTS if places[intent] >= 0]
        return bool(named) and min(named, key=places.__getitem__) == request.answers[0]
    return any(_padded(key) in said for key in request.answers)


def ask(
    aligner: Aligner,
    cache_dir: str,
    utterances: Sequence[Utterance],
    config: Config | None = None,
    *,
    progress: bool = False,
) -> dict[str, Any]:
    """Hears all requests, asks the LLM under every instruction and snap mode, and scores.

    Args:
        aligner: with the LLM.
        cache_dir: folder of weights and features.
        utterances: recordings of requests of the list.
        config: what to ask.
        progress: show progress bars.

    Returns:
        Contents of requests.json: 'heard' scores, and a row an instruction and system.

    Raises:
        DataError: utterances that are not in the list, or none that can be used.
    """
    config = config or Config()
    match(utterances)
    cache, report, _ = corpus.features(aligner.config, cache_dir, utterances, progress)
    usable = [u for u in utterances if u.utterance_id in report.keys]
    if not usable:
        raise DataError("no recording of a request is usable; all were skipped by name")
    requests = match(usable)
    frames = [cache.frames(report.keys[u.utterance_id]) for u in usable]
    heard: list[str] = []
    inputs = {ORACLE: [aligner.embed_text(r.text) for r in requests]}
    for snap in config.snaps:
        how = evaluate.Config(snap=snap)
        heard, inputs[snap] = evaluate.hear_all(aligner, frames, how, progress=progress)
    answers = {
        (style, system): _answers(aligner, requests, vectors, STYLES[style], config)
        for style in config.styles
        for system, vectors in inputs.items()
    }
    rows = [
        {"instruction": style, "system": system}
        | _scores(requests, found, answers[style, ORACLE], usable)
        for (style, system), found in answers.items()
    ]
    return {
        "num_requests": len({r.text for r in requests}),
        "num_recordings": len(usable),
        "num_speakers": len({u.speaker_id for u in usable}),
        "normalizer": NORMALIZER,
        "heard": _heard_scores(aligner, requests, heard),
        "rows": rows,
        "predictions": [
            {"id": u.utterance_id, "speaker": u.speaker_id, "kind": r.kind, "text": r.text}
            | {"key": r.answers, "heard": heard[i]}
            | {f"{style} / {system}": found[i] for (style, system), found in answers.items()}
            for i, (u, r) in enumerate(zip(usable, requests, strict=True))
        ],
        "versions": setup.versions(),
    }


def table(found: Mapping[str, Any]) -> str:
    """Markdown: a row an instruction and system, with accuracy by kind."""
    kinds = list(dict.fromkeys(r.kind for r in load()))
    heard = found["heard"]
    header = ["instruction", "LLM gets", "key", "own answer to the text", "ROUGE-1 to it", *kinds]
    lines = [
        f"{found['num_recordings']} recordings of {found['num_requests']} requests by "
        f"{found['num_speakers']} speakers; heard with WER {heard['wer']:.3f}, {heard['whole']:.1%} "
        f"without error; {heard['readable']:.1%} hold only words that the vocabulary spells.",
        "",
        "| " + " | ".join(header) + " |",
        "|" + " --- |" * len(header),
    ]
    for row in found["rows"]:
        value, low, high = row["key"]
        by_kind = [f"{row['by_kind'].get(kind, float('nan')):.2f}" for kind in kinds]
        cells = [row["instruction"], row["system"], f"{value:.3f} [{low:.3f}, {high:.3f}]"]
        cells += [f"{row['same_as_text']:.3f}", f"{row['rouge1_to_text']:.3f}", *by_kind]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def write(found: Mapping[str, Any], workdir: Path) -> Path:
    """Writes requests.json and requests.md; returns the first."""
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / FILE
    path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(table(found), encoding="utf-8")
    return path


def _padded(text: str) -> str:
    return f" {' '.join(_normalizers.normalize(NORMALIZER, [text])[0].split())} "


def _answers(
    aligner: Aligner,
    requests: Sequence[Request],
    vectors: Sequence[np.ndarray],
    style: tuple[prompts.Config, prompts.Config],
    config: Config,
) -> list[str]:
    """The LLM's answers in the requests' order; questions and commands have prompts of their own."""
    # Few padded shapes: each compiles once a prompt.
    settings = decode.Config(
        max_new_tokens=config.max_new_tokens, tail_buckets=(32, 64, 128, 256), batch_buckets=(32,)
    )
    answers = [""] * len(requests)
    for number, prompt in enumerate(style):
        members = [i for i, r in enumerate(requests) if (r.kind == COMMAND) == bool(number)]
        if members:
            responder = aligner.responder(prompt, settings)
            made = responder.answer([vectors[i] for i in members])
            for i, answer in zip(members, made, strict=True):
                answers[i] = answer.text
    return answers


def _scores(
    requests: Sequence[Request],
    answers: Sequence[str],
    to_text: Sequence[str],
    utterances: Sequence[Utterance],
) -> dict[str, Any]:
    right = np.array([is_right(r, a) for r, a in zip(requests, answers, strict=True)], float)
    same = [_padded(a) == _padded(b) for a, b in zip(answers, to_text, strict=True)]
    interval = _bootstrap.intervals(
        {"right": right, "all": np.ones(len(right))},
        lambda totals: {"key": totals["right"] / totals["all"]},
        [u.speaker_id for u in utterances],
    )["key"]
    kinds = dict.fromkeys(r.kind for r in requests)
    members = {kind: [r.kind == kind for r in requests] for kind in kinds}
    return {
        "key": [round(x, 4) for x in (interval.value, interval.low, interval.high)],
        "resampled": interval.unit,
        "same_as_text": round(float(np.mean(same)), 4),
        "rouge1_to_text": round(
            rouge.compute(rouge.Config(normalizer=NORMALIZER), to_text, answers)["rouge1"], 4
        ),
        "by_kind": {kind: round(float(right[index].mean()), 4) for kind, index in members.items()},
    }


def _heard_scores(
    aligner: Aligner, requests: Sequence[Request], heard: Sequence[str]
) -> dict[str, float]:
    """How well requests were read, and the share that the vocabulary can spell at all."""
    texts = [r.text for r in requests]
    whole = [_padded(a) == _padded(b) for a, b in zip(texts, heard, strict=True)]
    found = wer.compute(wer.Config(normalizer=NORMALIZER), texts, heard)
    return {
        "wer": round(found["wer"], 4),
        "whole": float(np.mean(whole)),
        "readable": float(np.mean([_is_readable(aligner, text) for text in texts])),
    }


def _is_readable(aligner: Aligner, text: str) -> bool:
    try:
        aligner.vocabulary.encode(text)
    except DataError:
        return False
    return True
