"""Makes a folder to publish of a trained workdir: float16, no paths of this machine, checked, with a model card.

    python -m experiments.publish --workdir=workdirs/tiny --out=published/NAME --command="python -m experiments.train ..."
    python -m experiments.evaluate --workdir=published/NAME --out=published/NAME
    python -m experiments.publish --out=published/NAME

The first command needs the corpus: it reads the validation utterances with both files and refuses if the
conversion changed the word error rate. Where it changed no weight at all, the workdir's metrics*.json are
copied and the second is not needed. Without --workdir only the card (README.md) is written anew, from
the files in --out and --about.
"""

from absl import flags

from experiments import _main

_WORKDIR = _main.define_workdir(
    "workdir", "Finished training run; without it only the card is written."
)
_OUT = flags.DEFINE_string("out", None, "Folder to publish.", required=True)
_ABOUT = flags.DEFINE_string(
    "about", "published/about.md", "Markdown: data, licences, intended use and limits."
)
_COMMAND = flags.DEFINE_string("command", "", "Command that trains it, for the card.")
_REPLAY = flags.DEFINE_integer("replay", 24, "Training utterances that travel for personalisation.")
_PROGRESS = flags.DEFINE_bool("progress", True, "Show progress bars.")


def main(argv):
    del argv
    from pathlib import Path

    from tiny_align_jax import publish, publish_card  # JAX: after --help

    if _WORKDIR.value:
        config = publish.Config(replay_count=_REPLAY.value, command=_COMMAND.value)
        base = _main.load_aligner(_WORKDIR.value, need_llm=False)
        cache_dir = _main.CACHE_DIR.value
        about = publish.publish(
            base, _WORKDIR.value, _OUT.value, cache_dir, config, progress=_PROGRESS.value
        )
        print(
            f"{_OUT.value}: {about['num_bytes']:,} bytes; float16 against the run: {about['conversion']}"
        )
    if not _WORKDIR.value or any(Path(_OUT.value).glob(publish.METRICS)):
        print(f"wrote {publish_card.write(_OUT.value, _ABOUT.value)}")
    else:
        print(f"next: python -m experiments.evaluate --workdir={_OUT.value} --out={_OUT.value}")


if __name__ == "__main__":
    _main.run(main)
