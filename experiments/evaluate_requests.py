"""Asks the LLM spoken requests with known short answers, through a trained projector.

    python -m experiments.evaluate_requests --workdir=workdirs/so762
    python -m experiments.evaluate_requests --workdir=workdirs/so762 --manifest=my_readings.jsonl

The 220 requests (sums, capitals, opposites, yes-no, facts, commands with intents) are spoken by --voices
on first use and kept in --recordings, by speakers that no corpus of ours trains on; choose voices that
were not trained on either. --manifest
takes recordings of people instead: rows of the `jsonl` schema whose texts are requests of the list.
Prints a table: each instruction and snap mode against the key and against the LLM's own answer to the
true text (the oracle's row). Writes requests.json and requests.md to the workdir.
"""

from pathlib import Path

from absl import flags

from experiments import _main

_WORKDIR = _main.define_workdir("workdir", "Folder of a finished training run.", required=True)
_MANIFEST = flags.DEFINE_string("manifest", None, "Recordings of requests; default: spoken here.")
_VOICES = flags.DEFINE_list("voices", [], "'engine:voice' each; default: the fetched Piper voice.")
_RECORDINGS = flags.DEFINE_string("recordings", None, "Folder for what is spoken here.")
_STYLES = flags.DEFINE_multi_string("instruction", [], "Only these; default: all.")
_SNAPS = flags.DEFINE_list("snap", [], "Only these; default: retokenize,nearest,soft,none.")
_OUT = flags.DEFINE_string("out", None, "Where to write; default: the workdir.")
_PROGRESS = flags.DEFINE_bool("progress", True, "Show progress bars.")


def main(argv):
    del argv
    from tiny_align_jax import spoken_requests  # imports JAX: after --help
    from tiny_align_jax.aligner import SNAPS, Aligner

    config = spoken_requests.Config(
        styles=tuple(_STYLES.value or spoken_requests.STYLES), snaps=tuple(_SNAPS.value or SNAPS)
    )
    cache_dir = Path(_main.CACHE_DIR.value)
    utterances = (
        spoken_requests.recordings(_MANIFEST.value)
        if _MANIFEST.value
        else (
            spoken_requests.speak(
                _VOICES.value or [f"piper:{cache_dir / _main.VOICE}"],
                Path(_RECORDINGS.value or cache_dir / "recordings" / "requests"),
                progress=_PROGRESS.value,
            )
        )
    )
    aligner = Aligner.load(_WORKDIR.value, _main.CACHE_DIR.value, need_llm=True)
    found = spoken_requests.ask(
        aligner, _main.CACHE_DIR.value, utterances, config, progress=_PROGRESS.value
    )
    path = spoken_requests.write(found, _main.out_dir(_OUT.value, _WORKDIR.value))
    print(spoken_requests.table(found))
    print(f"wrote {path}")


if __name__ == "__main__":
    _main.run(main)
