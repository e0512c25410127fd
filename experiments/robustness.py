"""Word error rate against noise and reverberation, of one trained projector or several side by side.

    python -m experiments.robustness --workdir=workdirs/so762 --limit=300
    python -m experiments.robustness --workdir=workdirs/plain,workdirs/augmented --out=workdirs/robustness

White, pink and babble noise (babble: four training speakers) from 20 to 0 dB, and three rooms. Nothing is kept of the
distorted features. Writes robustness.json to each workdir, and robustness.md and robustness.png to --out.
"""

import json
import tempfile
from pathlib import Path

from absl import flags

from experiments import _main

_WORKDIR = _main.define_workdir(
    "workdir",
    "Folders of finished training runs; the first column first.",
    required=True,
    several=True,
)
_OUT = flags.DEFINE_string("out", None, "Where table and plot go; default: the first workdir.")
_SPLIT = flags.DEFINE_enum("split", "test", ["test", "validation"], "What to distort.")
_LIMIT = flags.DEFINE_integer("limit", 0, "Only so many utterances, drawn by seed; 0: all.")
_NORMALIZER = flags.DEFINE_string("normalizer", "whisper_english", "Of the table and the plot.")
_PROGRESS = flags.DEFINE_bool("progress", True, "Show progress bars.")


def main(argv):
    del argv
    from tiny_align_jax import robustness  # imports JAX: after --help

    with tempfile.TemporaryDirectory(prefix="robustness") as shared:
        results = {w.name: _measure(w, shared) for w in map(Path, _WORKDIR.value)}
    out = _main.out_dir(_OUT.value, _WORKDIR.value[0])
    out.mkdir(parents=True, exist_ok=True)
    text = robustness.table(results, _NORMALIZER.value)
    (out / "robustness.md").write_text(text + "\n")
    robustness.plot(results, _NORMALIZER.value, out / "robustness.png")
    print(f"WER, normaliser {_NORMALIZER.value}, 95 % intervals over speakers\n\n{text}")


def _measure(workdir: Path, shared: str):
    """One run's scores, written beside it; distorted features lie in `shared` where several runs want them."""
    from tiny_align_jax import robustness
    from tiny_align_jax.aligner import Aligner

    result = robustness.measure(
        _main.with_local_data(Aligner.load(workdir, _main.CACHE_DIR.value, need_llm=False)),
        _main.CACHE_DIR.value,
        robustness.Config(limit=_LIMIT.value),
        split=_SPLIT.value,
        progress=_PROGRESS.value,
        features_dir=shared if len(_WORKDIR.value) > 1 else "",
    )
    place = _main.out_dir(None, str(workdir))
    place.mkdir(parents=True, exist_ok=True)
    (place / robustness.RESULT_FILE).write_text(json.dumps(result, indent=1) + "\n")
    return result


if __name__ == "__main__":
    _main.run(main)
