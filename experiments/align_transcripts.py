"""Times CHAT transcripts that are not linked to their recordings, with a trained projector.

    python -m experiments.align_transcripts --workdir=workdirs/so762 --root=corpora/Bank --out=timed.jsonl

Writes a manifest for `--config.dataset.name=jsonl`; what was timed in the transcripts already is not in it.
Every utterance that could not be placed with confidence is listed with its reason in `<out>.dropped.tsv`.
"""

import collections
import json
from pathlib import Path

from absl import flags

from experiments import _main

_WORKDIR = _main.define_workdir("workdir", "Trained with embedlink_ctc.", required=True)
_ROOT = flags.DEFINE_string("root", None, "Folder of .cha files and recordings.", required=True)
_OUT = flags.DEFINE_string("out", None, "Manifest to write (.jsonl).", required=True)
_LAYOUT = flags.DEFINE_enum("layout", "folder", ["folder", "adress2020"], "How the files lie.")
_MEDIA = flags.DEFINE_string(
    "media", "", "Folder of the recordings, if not beside the transcripts."
)
_SPLIT = flags.DEFINE_string("split", "all", "Part of the corpus: all, train or test.")
_PARTICIPANTS = flags.DEFINE_list("participants", ["PAR*", "CHI*"], "Codes to write.")
_MIN_CONFIDENCE = flags.DEFINE_float("min_confidence", 0.1, "Drop what the model is less sure of.")


def main(argv):
    del argv
    import tqdm  # after --help

    from tiny_align_jax import forced_alignment
    from tiny_align_jax.aligner import Aligner
    from tiny_align_jax.datasets import talkbank

    corpus = talkbank.Config(
        root=_ROOT.value,
        layout=_LAYOUT.value,
        media=_MEDIA.value,
        participants=tuple(_PARTICIPANTS.value),
    )
    untimed = talkbank.scan(corpus, _SPLIT.value).untimed
    aligner = Aligner.load(_WORKDIR.value, _main.CACHE_DIR.value, need_llm=False)
    config = forced_alignment.Config(min_confidence=_MIN_CONFIDENCE.value)
    align = forced_alignment.ForcedAligner(aligner, config)
    rows, dropped = [], {}
    for transcript in tqdm.tqdm(untimed, desc="aligning", unit="recording"):
        aligned = align(transcript.audio_path, transcript.utterances)
        rows += forced_alignment.manifest_rows(aligned, transcript.chosen)
        dropped |= {k: v for k, v in aligned.dropped.items() if k in transcript.chosen}
    out = Path(_OUT.value)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    lines = "".join(f"{name}\t{why}\n" for name, why in dropped.items())
    out.with_name(out.name + ".dropped.tsv").write_text(lines)
    kinds = collections.Counter(" ".join(why.split(" ")[:1]) for why in dropped.values())
    print(
        f"{len(untimed)} recording(s) without time marks: {len(rows)} utterance(s) timed in {out}"
    )
    print(f"{len(dropped)} dropped ({', '.join(f'{k} {n}' for k, n in kinds.items()) or 'none'})")


if __name__ == "__main__":
    _main.run(main)
