"""Adapts a base projector to one user's voice from a few spoken sentences.

    python -m experiments.personalize --base=workdirs/so762 --user=anna --manifest=anna.jsonl
    python -m experiments.personalize --base=workdirs/so762 --user=anna --audio=a.wav --text="Hello." --audio=...
    python -m experiments.personalize --base=workdirs/so762 --speaker=000030012 [--fold=1]
    python -m experiments.personalize --list | --export=anna --to=FILE | --delete=anna

A manifest's `train` rows are learnt from; its `test` rows, if any, are scored before and after. --speaker
takes a speaker of the base's own corpus: 14 utterances to learn from, 6 to score, and another speaker's 14
as the control. Use the state with: python -m experiments.transcribe --workdir=BASE --user=anna --audio=...
"""

import json
from pathlib import Path

from absl import flags

from experiments import _main

_BASE = _main.define_workdir("base", "Workdir or folder of a base projector.")
_CONFIG = _main.define_config("config", "configs/personalize.py", "Method and numbers.")
_USER = flags.DEFINE_string("user", None, "Name of the state; default: the speaker.")
_SPEAKER = flags.DEFINE_string("speaker", None, "Speaker of the base's own corpus, not trained on.")
_MANIFEST = flags.DEFINE_string("manifest", None, "The user's recordings, one JSON object a line.")
_AUDIO = flags.DEFINE_multi_string("audio", [], "A recording; repeat, each with its --text.")
_TEXT = flags.DEFINE_multi_string("text", [], "What the recording says.")
_WORDS = flags.DEFINE_list("words", [], "Names and phrases to expect.")
_FOLD = flags.DEFINE_integer("fold", 0, "With --speaker: which six utterances are scored (0 to 2).")
_CONTROL = flags.DEFINE_bool("control", True, "With --speaker: also adapt to another speaker.")
_USERS = flags.DEFINE_string("users_dir", None, "Folder of states; default: users in --cache_dir.")
_LIST = flags.DEFINE_bool("list", False, "List users.")
_EXPORT = flags.DEFINE_string("export", None, "User whose state to copy to --to.")
_TO = flags.DEFINE_string("to", ".", "With --export: file or folder.")
_DELETE = flags.DEFINE_string("delete", None, "User whose state to delete for good.")
_JSON = flags.DEFINE_string("json", None, "Also write the result to this file.")


def main(argv):
    del argv
    from tiny_align_jax import personalize, personalize_trial
    from tiny_align_jax.adapt import recipe, state
    from tiny_align_jax.types import ConfigError

    folder = _main.users_dir(_USERS.value)
    if _LIST.value:
        return print(state.table(folder))
    if _EXPORT.value:
        return print(f"wrote {state.export(folder, _EXPORT.value, _TO.value)}")
    if _DELETE.value:
        return print(f"deleted {state.delete(folder, _DELETE.value)}")
    if not _BASE.value:
        raise ConfigError("--base is missing: a workdir of experiments.train, or a base projector")
    sections = json.loads(_CONFIG.value.to_json_best_effort())
    how, cache_dir = recipe.of_sections(sections), _main.CACHE_DIR.value
    personalize.read_ahead()
    base = _main.load_aligner(
        _BASE.value, need_llm=False, stage="personalisation", personalize=sections
    )
    said = personalize_trial.gather(
        base, _SPEAKER.value, _MANIFEST.value, list(zip(_AUDIO.value, _TEXT.value, strict=False)),
        _FOLD.value, how.adapt,
    )  # fmt: skip
    name = _USER.value or _SPEAKER.value or said.train[0].speaker_id
    result = personalize.personalize(
        base, _BASE.value, cache_dir, name, said.train, how, _WORDS.value
    )
    path = state.save(folder, result.state)
    print(f"{result}\nwrote {path} ({path.stat().st_size / 1e6:.2f} MB)", flush=True)
    trial = None
    if said.test:
        control = None
        if _CONTROL.value and said.other:
            control = personalize.personalize(
                base, _BASE.value, cache_dir, "control", said.other, how
            )
        trial = personalize_trial.run(base, _BASE.value, said.test, result, control)
        print(trial)
    if _JSON.value:
        Path(_JSON.value).write_text(
            json.dumps(personalize_trial.to_json(result, trial), indent=1) + "\n"
        )


if __name__ == "__main__":
    _main.run(main)
