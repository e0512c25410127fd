"""Word error rate against noise and reverberation: the same utterances, distorted, encoded and read anew.

Distorted features are of no further use and are thrown away with the folder they lie in; several runs on
the same encoder may share one, so that it encodes once.
"""

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from absl import logging

from tiny_align_jax import evaluate, scoring
from tiny_align_jax.aligner import Aligner
from tiny_align_jax.data import distortion
from tiny_align_jax.train import corpus, setup
from tiny_align_jax.types import ConfigError, DataError, Utterance

CLEAN = "clean"
NUM_VOICES = 4  # of babble: fewer are single talkers, more are noise
RESULT_FILE = "robustness.json"


@dataclasses.dataclass(frozen=True)
class Config:
    """What is done to the test set.

    Attributes:
        snrs_db: signal-to-noise ratios.
        noises: kinds of noise, of `data.distortion`.
        rt60s_s: reverberation times.
        limit: utterances, drawn by `seed`; 0 for all.
        seed: of the draw and of the voices in babble.
    """

    snrs_db: tuple[float, ...] = (20.0, 15.0, 10.0, 5.0, 0.0)
    noises: tuple[str, ...] = ("white", "pink", "babble")
    rt60s_s: tuple[float, ...] = (0.2, 0.4, 0.8)
    limit: int = 0
    seed: int = 0


def conditions(
    config: Config, utterances: Sequence[Utterance], voices: Sequence[Utterance]
) -> dict[str, list[Utterance]]:
    """Distorted copies of the utterances by condition: 'clean', 'white 10 dB', 'reverb 0.4 s', ...

    Args:
        config: which distortions.
        utterances: to distort.
        voices: who talks in the babble: training speakers, so that nothing of the test set is in it.

    Raises:
        ConfigError: babble, but fewer than NUM_VOICES voices.
    """
    rng = np.random.default_rng(config.seed)
    if "babble" in config.noises and len(voices) < NUM_VOICES:
        raise ConfigError(f"babble needs {NUM_VOICES} training utterances, there are {len(voices)}")
    talk = [
        "|".join(voices[i].audio_path for i in rng.choice(len(voices), NUM_VOICES, replace=False))
        if "babble" in config.noises
        else ""
        for _ in utterances
    ]
    found = {CLEAN: list(utterances)}
    for noise in config.noises:
        for snr_db in config.snrs_db:
            texts = [f"{noise}:{snr_db:g}" + (f":{t}" if noise == "babble" else "") for t in talk]
            found[f"{noise} {snr_db:g} dB"] = _copies(utterances, texts)
    for rt60_s in config.rt60s_s:
        found[f"reverb {rt60_s:g} s"] = _copies(utterances, [f"reverb:{rt60_s:g}"] * len(talk))
    return found


def measure(
    aligner: Aligner,
    cache_dir: str | os.PathLike,
    config: Config,
    scoring_config: scoring.Config | None = None,
    *,
    split: str = "test",
    progress: bool = False,
    features_dir: str = "",
) -> dict[str, Any]:
    """Scores of the reading without the LLM, by condition, for robustness.json.

    Args:
        aligner: hears; the LLM is not needed.
        cache_dir: folder of weights.
        config: which distortions.
        scoring_config: metrics, normalisers and intervals.
        split: 'test', or 'validation' for choosing an augmentation.
        progress: show progress bars.
        features_dir: keep distorted features there for the next run; '' throws each condition's away.

    Raises:
        TinyAlignError: of the corpus or the features.
    """
    scoring_config = scoring_config or scoring.Config()
    evaluation = evaluate.Config(split=split, limit=config.limit, seed=config.seed, use_llm=False)
    utterances, partial = evaluate.choose(aligner.config, evaluation)
    voices = corpus.read_split(aligner.config).train
    rows: dict[str, Any] = {}
    for name, distorted in conditions(config, utterances, voices).items():
        with _folder(features_dir) as folder:
            cache, report, _ = corpus.features(
                aligner.config, os.fspath(cache_dir), distorted, progress, features_dir=folder
            )
            kept = [u for u in distorted if u.utterance_id in report.keys]
            if not kept:
                raise DataError(f"{name}: no utterance could be encoded")
            frames = [np.array(cache.frames(report.keys[u.utterance_id])) for u in kept]
        texts, _ = evaluate.hear_all(aligner, frames, evaluation, progress=progress)
        scores = scoring.score(scoring_config, kept, {evaluate.HEARD: texts})
        rows[name] = {
            "num_utterances": len(kept),
            "scores": {n: s["scores"][evaluate.HEARD][scoring.ALL] for n, s in scores.items()},
        }
        wer = rows[name]["scores"][scoring_config.normalizers[-1]]["wer"]["value"]
        logging.info("%s: WER %.3f over %d utterances", name, wer, len(kept))
    return {
        "split": split,
        "partial": partial,
        "encoder": aligner.card["encoder"]["name"],
        "augment": aligner.config.get("augment"),
        "conditions": rows,
        "versions": setup.versions(),
    }


def table(results: Mapping[str, Mapping[str, Any]], normalizer: str) -> str:
    """Markdown: a row a condition, a column a run."""
    names = list(next(iter(results.values()))["conditions"])
    lines = ["| condition | " + " | ".join(results) + " |", "| --- |" + " --- |" * len(results)]
    for name in names:
        cells = []
        for result in results.values():
            wer = result["conditions"][name]["scores"][normalizer]["wer"]
            cells.append(f"{wer['value']:.3f} [{wer['low']:.3f}, {wer['high']:.3f}]")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(results: Mapping[str, Mapping[str, Any]], normalizer: str, path: Path) -> None:
    """WER against SNR, a panel a kind of noise, and against reverberation time; a line a run."""
    kinds: dict[str, list[tuple[float, str]]] = {}
    for name in next(iter(results.values()))["conditions"]:
        if name != CLEAN:
            kind, value, _ = name.split(" ")
            kinds.setdefault(kind, []).append((float(value), name))
    figure, axes = plt.subplots(1, len(kinds), figsize=(3.6 * len(kinds), 3.4), sharey=True)
    for axis, (kind, points) in zip(np.atleast_1d(axes), kinds.items(), strict=True):
        for label, result in results.items():
            wer = {
                name: row["scores"][normalizer]["wer"]["value"]
                for name, row in result["conditions"].items()
            }
            xs = [x for x, _ in sorted(points)]
            (line,) = axis.plot(xs, [wer[n] for _, n in sorted(points)], "o-", label=label)
            axis.axhline(wer[CLEAN], color=line.get_color(), ls=":", lw=1)
        axis.set_title(kind)
        axis.set_xlabel("reverberation time (s)" if kind == "reverb" else "SNR (dB)")
        axis.grid(alpha=0.3)
    np.atleast_1d(axes)[0].set_ylabel(f"WER ({normalizer}); dotted: clean")
    np.atleast_1d(axes)[0].set_ylim(bottom=0)
    np.atleast_1d(axes)[-1].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _folder(features_dir: str) -> contextlib.AbstractContextManager[str]:
    if features_dir:
        return contextlib.nullcontext(features_dir)
    return tempfile.TemporaryDirectory(prefix="robustness")


def _copies(utterances: Sequence[Utterance], texts: Sequence[str]) -> list[Utterance]:
    for text in set(texts):
        distortion.check(text)
    return [
        dataclasses.replace(u, distortion=text) for u, text in zip(utterances, texts, strict=True)
    ]
