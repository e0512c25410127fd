"""Lists every bad row of a jsonl manifest, and exits non-zero if there is one.

    python -m experiments.validate_manifest --manifest=data/mine.jsonl
    python -m experiments.validate_manifest --manifest='data/{split}.jsonl' --audio=false

The schema is in tiny_align_jax/datasets/jsonl.py. With --audio (the default) every recording is decoded,
which finds truncated, silent and overlong files before hours of work do.
"""

import sys

from absl import app, flags

from tiny_align_jax.data import audio
from tiny_align_jax.datasets import jsonl
from tiny_align_jax.types import TinyAlignError

_MANIFEST = flags.DEFINE_string(
    "manifest", None, "Manifest file; {split} for one file a split.", required=True
)
_ROOT = flags.DEFINE_string("root", "", "Folder of relative audio paths; the manifest's if empty.")
_AUDIO = flags.DEFINE_bool("audio", True, "Decode every recording.")


def main(argv: list[str]) -> None:
    del argv
    config = jsonl.Config(manifest=_MANIFEST.value, root=_ROOT.value)
    try:
        problems = jsonl.validate(config, audio.read_audio if _AUDIO.value else None)
    except TinyAlignError as error:
        sys.exit(str(error))
    width = max((len(f"{p.path}:{p.line}") for p in problems), default=0)
    for problem in problems:
        print(f"{f'{problem.path}:{problem.line}':<{width}}  {problem.message}")
    rows, bad = jsonl.num_rows(config), len({(p.path, p.line) for p in problems})
    print(f"{rows} row(s), {bad} bad, {len(problems)} problem(s)")
    if problems:
        sys.exit(1)


if __name__ == "__main__":
    app.run(main)
