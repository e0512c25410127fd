"""One recording: prints what was heard and streams the LLM's answer.

    python -m experiments.transcribe --workdir=workdirs/so762 --audio=question.wav
    python -m experiments.transcribe --workdir=workdirs/so762 --audio=question.wav \\
        --instruction="Answer the question." --json

Without --instruction the prompt is the one of the training run. An instruction may hold '{audio}' where the
recording goes; else the recording follows it. --json prints one object with `heard`, `answer` and the
seconds from opening the file to each stage, the answer's first token among them; --warm runs once
before, so that those seconds are free of compilation. --user listens with the copy that
experiments.personalize made for somebody.
"""

import dataclasses
import json

from absl import flags

from experiments import _main

_WORKDIR = _main.define_workdir("workdir", "Folder of a finished training run.", required=True)
_AUDIO = flags.DEFINE_string(
    "audio", None, "Recording: wav, flac, ogg or mp3, any rate.", required=True
)
_INSTRUCTION = flags.DEFINE_string("instruction", None, "What to do with what is heard.")
_SNAP = flags.DEFINE_enum(
    "snap", "retokenize", ["retokenize", "nearest", "soft", "none"], "As in experiments.evaluate."
)
_READING = flags.DEFINE_enum(
    "reading", "greedy", ["greedy", "beam", "rescore", "fusion"], "As in experiments.evaluate."
)
_READING_FILE = flags.DEFINE_string(
    "reading_file", None, "Weights of the reading; default: reading.json in the workdir."
)
_USER = flags.DEFINE_string("user", None, "User of experiments.personalize whose copy listens.")
_USERS = flags.DEFINE_string("users_dir", None, "Folder of states; default: users in --cache_dir.")
_USE_LLM = flags.DEFINE_bool("use_llm", True, "False: only print what was heard.")
_MAX_NEW_TOKENS = flags.DEFINE_integer("max_new_tokens", 64, "Longest answer, in tokens.")
_TEMPERATURE = flags.DEFINE_float("temperature", 0.0, "0 is greedy; above, sample.")
_TOP_P = flags.DEFINE_float("top_p", 1.0, "Sample among the likeliest tokens of this mass.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the sampling.")
_JSON = flags.DEFINE_bool("json", False, "Print one JSON object instead of text.")
_WARM = flags.DEFINE_bool("warm", False, "Run once before the run that is timed and shown.")


def main(argv):
    del argv
    from tiny_align_jax import decode, reading, reading_config, transcribe  # JAX: after --help
    from tiny_align_jax.adapt import state, user
    from tiny_align_jax.data import prompts

    settings = decode.Config(
        max_new_tokens=_MAX_NEW_TOKENS.value,
        temperature=_TEMPERATURE.value,
        top_p=_TOP_P.value,
        seed=_SEED.value,
    )
    prompt = None if _INSTRUCTION.value is None else prompts.from_instruction(_INSTRUCTION.value)
    length = _MAX_NEW_TOKENS.value
    aligner = _main.load_aligner(_WORKDIR.value, need_llm=_USE_LLM.value, new_tokens=length)
    if _USER.value:
        found = state.find(_main.users_dir(_USERS.value), _USER.value)
        aligner = user.apply(aligner, found, user.fingerprint(_WORKDIR.value))
    how = reading_config.load_config(_WORKDIR.value, _READING.value, _READING_FILE.value)
    reader = reading.load(aligner, _main.CACHE_DIR.value, how)
    transcriber = transcribe.Transcriber(aligner, prompt, settings, _SNAP.value, reader)
    if _WARM.value:
        transcriber(_AUDIO.value)
    if _JSON.value:
        print(json.dumps(dataclasses.asdict(transcriber(_AUDIO.value)), ensure_ascii=False))
        return
    transcript = transcriber(
        _AUDIO.value,
        on_heard=lambda text: print(f"heard:  {text or '(nothing)'}", flush=True),
        on_piece=_print_piece(),
    )
    if transcript.answer == "":
        print("answer: (nothing)", end="")
    print()


def _print_piece():
    """Prints pieces of an answer behind one label."""
    label = iter(["answer: "])
    return lambda piece: print(next(label, "") + piece, end="", flush=True)


if __name__ == "__main__":
    _main.run(main)
