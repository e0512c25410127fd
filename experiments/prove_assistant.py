"""Proves that a whole assistant fits: personalise, then answer, in one process under a hard memory limit.

    python -m experiments.prove_assistant --limit_bytes=4000000000 --config=configs/assistant.py \\
        --config.llm.asset=Llama-3.2-1B --config.llm.quantize.weights=int4
    python -m experiments.prove_assistant --limit_bytes=2000000000 --workdir=workdirs/so762 --llm=gguf

The first form builds a run from the config, with random weights where a model is not on this machine; the
second takes a finished run of real weights, its LLM held as --llm says. Then a process of its own loads
encoder, projector and LLM, learns 14 utterances of a validation speaker, and answers a question of about 4 s.
It is killed above the limit (exit code 1, as where only host and accelerator together are above it).
Writes OUT/assistant.json.
"""

import json
import sys
from pathlib import Path

from absl import flags

from experiments import _main

CONFIG = _main.define_config("config", "configs/assistant.py", "What to build.")
_METHOD = _main.define_config("personalize", "configs/personalize.py", "How to personalise.")
_WORKDIR = _main.define_workdir("workdir", "A finished run to take instead of building one.")
_LLM = flags.DEFINE_string("llm", "float", "With --workdir: float, int8, int4 or gguf.")
_ENCODER = flags.DEFINE_string("encoder", "float", "With --workdir: float or int8.")
_LIMIT = flags.DEFINE_integer("limit_bytes", 4_000_000_000, "The process is killed above this.")
_NEW_TOKENS = flags.DEFINE_integer("new_tokens", 16, "Longest answer.")
_OUT = flags.DEFINE_string("out", "workdirs/assistant", "Folder of models, run and result.")
_HERE = flags.DEFINE_bool("here", False, "Do the limited part in this process; used internally.")


def main(argv):
    del argv
    # They import JAX: after --help.
    from tiny_align_jax import assistant
    from tiny_align_jax.memory import limit

    out, cache_dir = Path(_OUT.value), _main.CACHE_DIR.value
    result = out / "assistant.json"
    if _HERE.value:
        how = assistant.settings_of(json.loads(_METHOD.value.to_json_best_effort()))
        folder = Path(str(_WORKDIR.value))
        found = assistant.prove(
            folder, cache_dir, how, _NEW_TOKENS.value, with_data=_main.with_local_data
        )
        return assistant.write(found, result)
    if _WORKDIR.value:
        held = {"llm": {"weights": _LLM.value}, "encoder": {"weights": _ENCODER.value}}
        workdir = assistant.copy(Path(_WORKDIR.value), out, cache_dir, held)
    else:
        workdir = assistant.build(_main.resolve_config(CONFIG.value), out, cache_dir)
    command = [sys.executable, "-m", "experiments.prove_assistant", "--here", f"--out={out}"]
    command += [
        f"--workdir={workdir}",
        f"--cache_dir={cache_dir}",
        f"--new_tokens={_NEW_TOKENS.value}",
    ]
    outcome = limit.run(command, _LIMIT.value)
    if outcome.killed or outcome.returncode:
        print(f"did not fit or failed: {outcome}")
        sys.exit(1)
    found = json.loads(result.read_text(encoding="utf-8"))
    assistant.write(found | {"limit_bytes": _LIMIT.value, "how": outcome.how}, result)
    print(assistant.describe(found, _LIMIT.value, outcome.how, outcome.peak_bytes))
    if max(found["peak_bytes"].values()) > _LIMIT.value:
        sys.exit(
            "over the limit: with what the accelerator allocated, which no limit of the host holds"
        )


if __name__ == "__main__":
    _main.run(main)
