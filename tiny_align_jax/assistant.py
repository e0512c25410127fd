"""The whole assistant in one process: an LLM that stays loaded, one user's voice learnt, a question answered.

`build` makes what is missing (random weights of a published shape, a corpus of noise, a few training
steps); `prove` does the work whose memory is limited from outside (`memory.limit`).
"""

import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import soundfile

from tiny_align_jax import benchmark_quantised, decode, heap, published, stand_in, transcribe
from tiny_align_jax.adapt import recipe, replay, user
from tiny_align_jax.aligner import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE, Aligner, read_workdir
from tiny_align_jax.benchmark_sizes import DecodeShape
from tiny_align_jax.benchmark_timing import machine, tree_bytes
from tiny_align_jax.personalize import personalize
from tiny_align_jax.train import corpus, run, setup
from tiny_align_jax.types import DataError, Utterance
from tiny_align_jax.weights import assets

QUESTION_S = 4.0
_NUM_LEARNT = 14
_SPEED = DecodeShape(prompt_tokens=8, new_tokens=8)
_PARTS = {"encoder": "encoders", "llm": "llms"}


def build(config: Mapping[str, Any], out: Path, cache_dir: str, dtype: Any = "bfloat16") -> Path:
    """A trained workdir below `out`, with what its config names and this machine lacks made up.

    Args:
        config: resolved sections; `asset` of encoder and LLM may be a published size.
        out: folder to work in.
        cache_dir: folder of weights and features.
        dtype: of made-up weights in their files.

    Returns:
        The workdir.
    """
    made = json.loads(json.dumps(config))
    for part, kind in _PARTS.items():
        name = made[part]["asset"]
        hf = None if name in assets.ASSETS else published.find(kind, name)
        if hf is not None:
            folder = out / "models" / name.rpartition("/")[2]
            if not (folder / "asset.json").is_file():
                stand_in.make_model(kind, name, folder, dtype)
            made[part]["asset"] = str(folder)
    if not made["dataset"]["jsonl"]["manifest"]:
        manifest = stand_in.make_corpus(
            out / "corpus", 3 * (_NUM_LEARNT + 1), QUESTION_S, num_speakers=3
        )
        made["dataset"]["jsonl"]["manifest"] = str(manifest)
    workdir = out / "run"
    run.train(made, workdir, cache_dir, progress=False)
    return _with_replay(workdir, cache_dir)


def copy(workdir: Path, out: Path, cache_dir: str, held: Mapping[str, Mapping[str, Any]]) -> Path:
    """A finished run with other forms of its frozen parts, as a workdir below `out`.

    Args:
        workdir: the run.
        out: folder to work in.
        cache_dir: folder of weights and features.
        held: keys of `quantize.config.Config` by 'encoder' and 'llm'.

    Raises:
        CheckpointError: no finished run.
    """
    _, card = read_workdir(workdir)
    target = out / "run"
    target.mkdir(parents=True, exist_ok=True)
    for name in (CONFIG_FILE, CARD_FILE, WEIGHTS_FILE, replay.FILE):
        if (workdir / name).is_file():
            shutil.copyfile(workdir / name, target / name)
    for part, keys in held.items():
        card[part]["quantize"] = {**card[part].get("quantize", {}), **keys}
    (target / CARD_FILE).write_text(json.dumps(card), encoding="utf-8")
    return _with_replay(target, cache_dir)


def _with_replay(workdir: Path, cache_dir: str) -> Path:
    """A base as it is shipped: what it replays beside it, so that no device needs its corpus."""
    base = Aligner.load(workdir, cache_dir, need_llm=False)
    replay.find(base, workdir, cache_dir, recipe.Config().replay_count)
    return workdir


def prove(
    workdir: Path,
    cache_dir: str,
    how: recipe.Recipe,
    new_tokens: int,
    with_data: Callable[[Aligner], Aligner] = lambda aligner: aligner,
) -> dict[str, Any]:
    """Loads everything, learns one user's voice with the LLM in memory, answers; in this process.

    Args:
        workdir: from `build` or `copy`.
        cache_dir: folder of weights and features.
        how: how to personalise.
        new_tokens: longest answer.
        with_data: tells a run that was trained elsewhere where its corpus lies here.

    Returns:
        Peak memory in bytes after each stage, and seconds.
    """
    began_s, peaks, seconds = time.monotonic(), {"start": _peak_bytes()}, {}
    start = heap.resident_bytes()

    def lap(stage: str) -> None:
        peaks[stage] = _peak_bytes()
        seconds[stage] = round(time.monotonic() - began_s, 2)

    aligner = with_data(Aligner.load(workdir, cache_dir, need_llm=True))
    llm = aligner.require_llm()
    lap("loaded")
    learnt, question = said(aligner)
    result = personalize(aligner, workdir, cache_dir, learnt[0].speaker_id, learnt, how)
    own = user.apply(aligner, result.state, user.fingerprint(workdir))
    lap("personalised")
    settings = decode.Config(max_new_tokens=new_tokens, stream_chunk=1)
    snap = "retokenize"
    transcriber = transcribe.Transcriber(own, settings=settings, snap=snap)
    cold = transcriber(question.audio_path)
    if not cold.heard:
        # An untrained projector's tokens are no words: the LLM gets them raw, a prompt as long as speech's.
        snap = "none"
        transcriber = transcribe.Transcriber(own, settings=settings, snap=snap)
        cold = transcriber(question.audio_path)
    lap("answered")
    warm = transcriber(question.audio_path)
    lap("answered again")
    tokens_per_s = benchmark_quantised.tokens_per_s(llm.model, llm.params, _SPEED)
    lap("speed measured")
    return {
        "llm": aligner.card["llm"]["name"].rpartition("/")[2],
        "held": {part: aligner.held(part).tag or "float" for part in _PARTS},
        "llm_bytes": tree_bytes(llm.params),
        "peak_bytes": peaks,
        "device_peak_bytes": _device_peak_bytes(),
        "resident": {"start": start, "end": heap.resident_bytes()},
        "seconds": seconds,
        "question_s": warm.audio_s,
        "cold": cold.seconds,
        "warm": warm.seconds,
        "heard": warm.heard,
        "snap": snap,
        "answer": warm.answer,
        "tokens_per_s": tokens_per_s,
        "machine": machine(jax.devices()[0]),
        "versions": setup.versions(),
    }


def said(aligner: Aligner) -> tuple[list[Utterance], Utterance]:
    """What a user who was not trained on says to be learnt, and the question, about QUESTION_S long.

    Raises:
        DataError: too few utterances.
    """
    validation = corpus.read_split(aligner.config).validation
    first = [u for u in validation if u.speaker_id == validation[0].speaker_id]
    if len(first) <= _NUM_LEARNT:
        raise DataError(
            f"the first validation speaker has {len(first)} utterances; expected {_NUM_LEARNT + 1}"
        )
    question = min(first, key=lambda u: abs(soundfile.info(u.audio_path).duration - QUESTION_S))
    return [u for u in first if u is not question][:_NUM_LEARNT], question


def _peak_bytes() -> int:
    """Peak resident memory of this process, and what an accelerator has allocated at most."""
    return run.peak_rss_bytes() + _device_peak_bytes()


def _device_peak_bytes() -> int:
    stats = jax.devices()[0].memory_stats() or {}
    return int(stats.get("peak_bytes_in_use", 0))


def describe(found: Mapping[str, Any], limit_bytes: int, how: str, peak_bytes: int) -> str:
    """The result in a few lines."""
    warm = found["warm"]
    peaks = ", ".join(f"{k} {v / 1e6:.0f}" for k, v in found["peak_bytes"].items())
    return "\n".join(
        [
            f"{found['llm']}, held as {found['held']['llm']} ({found['llm_bytes'] / 1e6:.0f} MB); "
            f"encoder as {found['held']['encoder']}; {found['machine']}",
            f"peak {max(found['peak_bytes'].values()) / 1e6:.0f} MB by the process's own count, "
            f"{peak_bytes / 1e6:.0f} MB by the {how}; limit {limit_bytes / 1e6:.0f} MB; after {peaks}",
            f"a question of {found['question_s']:.1f} s, warm: encoded after {warm['encoded']:.2f} s, "
            f"heard {warm['heard']:.2f} s, first token {_seconds(warm.get('first_token'))}; "
            f"{found['tokens_per_s']['wall']:.2f} tokens/s, {found['tokens_per_s']['core']:.2f} a second of "
            "processor time",
        ]
    )


def _seconds(value: float | None) -> str:
    return "not measured (no answer)" if value is None else f"{value:.2f} s"


def write(found: Mapping[str, Any], path: Path) -> None:
    """Writes what `prove` found."""
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def settings_of(sections: Mapping[str, Any]) -> recipe.Recipe:
    """How to personalise, with few steps: memory does not depend on their number."""
    made = recipe.of_sections(sections)
    few = dataclasses.replace(made.fit, num_checkpoints=1, steps_per_checkpoint=10)
    return dataclasses.replace(made, fit=few)
