"""Speaks a text file: a corpus of many virtual speakers, as Opus files with a manifest for `jsonl`.

    python -m experiments.render_speech --sentences=sentences.txt --out=spoken
    python -m experiments.render_speech --sentences=sentences.txt --out=spoken --num_workers=30 --pack_mb=15 \
        --set='{"voices": ["flite:slt", "flite:rms"], "num_speakers": 40}'

The default voice is Piper's en_US-joe (python -m experiments.fetch_assets). A killed run goes on with what
is missing when the same command is given again; --collect makes what is there usable as it is. --pack_mb also
writes pack-*.tar, for moving a corpus.
Train on it: --config.mixture.dataset.jsonl.manifest=spoken/manifest.jsonl --config.mixture.share=0.5
"""

import json
from pathlib import Path

from absl import flags

from experiments import _main

_SENTENCES = flags.DEFINE_string(
    "sentences", None, "Text file, one sentence a line.", required=True
)
_OUT = flags.DEFINE_string("out", None, "Folder for recordings and manifest.", required=True)
_LIMIT = flags.DEFINE_integer("limit", 0, "Speak only so many sentences; 0 for all.")
_WORKERS = flags.DEFINE_integer("num_workers", 0, "Processes; 0 means one a core.")
_PACK_MB = flags.DEFINE_float("pack_mb", 0.0, "Also archives of at most this size; 0 for none.")
_COLLECT = flags.DEFINE_bool("collect", False, "Only write the manifest of what was spoken so far.")
_SET = flags.DEFINE_string("set", "{}", "Fields of spoken_corpus.Config as a JSON object.")
_PROGRESS = flags.DEFINE_bool("progress", True, "Show a progress bar.")


def main(argv):
    del argv
    from tiny_align_jax import checks, registry, spoken_corpus
    from tiny_align_jax.types import ConfigError

    if _COLLECT.value:
        print(spoken_corpus.collect(str(_OUT.value)))
        return
    try:
        settings = dict(json.loads(_SET.value))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"--set={_SET.value}: not a JSON object ({error})") from error
    sentences = checks.lines_of("--sentences", str(_SENTENCES.value))
    voices = (f"piper:{Path(_main.CACHE_DIR.value) / _main.VOICE}",)
    manifest = spoken_corpus.speak(
        registry.make_config(spoken_corpus, {"voices": voices} | settings),
        sentences[: _LIMIT.value or None],
        str(_OUT.value),
        num_workers=_WORKERS.value or None,
        progress=_PROGRESS.value,
    )
    print(manifest)
    if _PACK_MB.value:
        for archive in spoken_corpus.pack(str(_OUT.value), round(_PACK_MB.value * 1e6)):
            print(archive, archive.stat().st_size)


if __name__ == "__main__":
    _main.run(main)
