"""What both phases of the study stand on: users, sentences for contexts, and a file that is written as they go."""

import dataclasses
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from tiny_align_jax import ngram, reading, related
from tiny_align_jax.adapt import crew as crew_lib
from tiny_align_jax.adapt import fit, material, replay, study, user
from tiny_align_jax.aligner import Aligner
from tiny_align_jax.data.vocabulary import spoken_form
from tiny_align_jax.reading import draw_context
from tiny_align_jax.train import checkpoint, corpus

FILE = "study.json"
CONTROL = 7  # the control learns from the user so many places further on
_GENERIC, _RELATED = (
    60,
    24,
)  # training sentences in a context; the judge keeps what fits of the last


@dataclasses.dataclass(frozen=True)
class Config:
    """How much of the study to do.

    Attributes:
        budget_s: after so many seconds of acoustic points no further one is begun.
        folds: of six test utterances each.
        seeds: of the test phase.
        replay_count: utterances to replay from.
        audio_count: the same with encoder inputs.
        finalists: methods whose best point is compared with its control.
        sizes: numbers of utterances to learn from in the test phase.
        dtype: compute dtype of projector and encoder.
        num_best: texts of an utterance that the LLM judges.
        max_users: the first so many only; 0 for all.
        ngram_texts: file of sentences to count n-grams in, beside training's; '' for no n-grams.
    """

    budget_s: float = 90.0
    folds: tuple[int, ...] = (0, 1, 2)
    seeds: tuple[int, ...] = (0, 1, 2)
    replay_count: int = 512
    audio_count: int = 128
    finalists: int = 2
    sizes: tuple[int, ...] = (2, 4, 8)
    dtype: str = "float32"
    num_best: int = 32
    max_users: int = 0
    ngram_texts: str = ""


class Notes:
    """The study's file, written anew after every entry, so that nothing is lost.

    Attributes:
        entries: of this phase, by name.
    """

    def __init__(self, folder: str | os.PathLike, phase: str):
        self._path = Path(folder) / FILE
        self._path.parent.mkdir(parents=True, exist_ok=True)
        before = json.loads(self._path.read_text()) if self._path.is_file() else {}
        self.entries: dict[str, Any] = {}
        self._all = {**before, phase: self.entries}
        self._began_s = time.monotonic()

    def write(self, name: str, value: Any) -> None:
        """Adds an entry to the phase."""
        self.entries[name] = value
        self._save(name, value)

    def append(self, name: str, value: Any) -> None:
        """Adds to the list of that name."""
        self.entries.setdefault(name, []).append(value)
        self._save(name, value)

    def part(self, name: str, work: Callable[[], Any]) -> Any:
        """Does a part; one that fails is written down with its error, and the others go on."""
        try:
            return work()
        except Exception as error:
            logging.exception("%s failed", name)
            self.append("failed", {name: repr(error)[:500]})
            return None

    def _save(self, name: str, value: Any) -> None:
        self.entries["seconds"] = round(time.monotonic() - self._began_s, 1)
        text = json.dumps(self._all, indent=1, default=float) + "\n"
        checkpoint.write_text(self._path, text)
        shown = json.dumps(value, default=float)[:300]
        logging.info("%s: %s (%.0f s)", name, shown, self.entries["seconds"])


@dataclasses.dataclass(frozen=True)
class Ground:
    """What both phases stand on.

    Attributes:
        lab: users, base and programs.
        generic: training sentences that everybody's context starts with.
        related: finds training sentences about what a user says.
        grams: 3-grams that steer the search for texts, for everybody alike; None without.
    """

    lab: study.Lab
    generic: list[str]
    related: related.Related
    grams: ngram.Ngram | None = None

    def lines(self, plan: crew_lib.Plan, job: int, related: bool = True) -> list[str]:
        """The judge's context of a job: generic, about what the user says, and the user's own."""
        said = [spoken_form(u.text) for u in crew_lib.learnt_from(self.lab.crew, plan, job)]
        near = self.related.to(said, _RELATED) if related else []
        return [*self.generic, *near, *said]


def prepare(
    base: Aligner, cache_dir: str, role: str, config: Config, sizes: fit.Config, with_audio: bool
) -> Ground:
    """Loads users of a role of the base's split, and what is replayed."""
    split = corpus.read_split(base.config)
    users = getattr(split, role)
    names = sorted({u.speaker_id for u in users})[: config.max_users or None]
    users = [u for u in users if u.speaker_id in names]
    crew = crew_lib.gather(base, cache_dir, users, split.train)
    longest = crew.corpus.inputs.shape[1]
    order = np.random.default_rng(0).permutation(len(split.train))
    drawn = [split.train[i] for i in order[: config.replay_count]]
    frames, used = replay.cached_frames(base, cache_dir, drawn)
    kept = [i for i, f in enumerate(frames) if len(f) <= longest]
    targets = [base.vocabulary.encode(used[i].text) for i in kept]
    pool = jax.device_put(material.frames_corpus([frames[i] for i in kept], targets, longest))
    audio = None
    if with_audio:
        short = [used[i] for i in kept][: config.audio_count]
        audio = tuple(
            jax.device_put(
                user.read(base, said).corpus(
                    crew.base, [crew.base.vocabulary.encode(u.text) for u in said]
                )
            )
            for said in (crew.utterances, short)
        )
    lab = study.Lab(crew, pool, sizes, audio, jnp.dtype(config.dtype))  # type: ignore[arg-type]
    sentences = [u.text for u in split.train]
    near, generic = related.Related(sentences), draw_context(sentences, _GENERIC, 0)
    texts = config.ngram_texts
    # Over all rows of the users, too: the search asks for any of them.
    grams = reading.count_ngrams(crew.base, sentences, texts) if texts else None
    return Ground(lab, generic, near, grams)
