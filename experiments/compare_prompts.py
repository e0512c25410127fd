"""Compares wordings of the instruction: how faithfully the LLM repeats sentences it is given.

    python -m experiments.compare_prompts --llm=smollm2-135m-instruct --texts=train.txt --limit=100
    python -m experiments.compare_prompts --texts=train.txt --candidates=my_prompts.json

--texts holds one TRAINING sentence a line (a prompt chosen on test sentences would leak). Candidates are
a JSON object of names to the fields of a config's `prompt` section: {"mine": {"instruction": "Say:
{audio}", "examples": [["a b", "a b"]]}}; without the flag, the prompts of docs/prompts.md. Sentences are
given clean and with a third of their words disturbed, as a projector's readings are.
"""

import json

import numpy as np
from absl import flags

from experiments import _main

_LLM = flags.DEFINE_string("llm", "smollm2-135m-instruct", "Asset name, hub id or folder.")
_TEXTS = flags.DEFINE_string(
    "texts", None, "File with one training sentence a line.", required=True
)
_LIMIT = flags.DEFINE_integer("limit", 100, "Sentences to draw by seed 0; 0 for all.")
_CANDIDATES = flags.DEFINE_string("candidates", None, "JSON file of prompts by name.")


def main(argv):
    del argv
    import jax.numpy as jnp

    from tiny_align_jax import checks, decode, prompt_search, registry
    from tiny_align_jax.data import prompts, tokenizer
    from tiny_align_jax.responder import Llm
    from tiny_align_jax.types import ConfigError
    from tiny_align_jax.weights import assets, loading

    given = checks.lines_of("--texts", str(_TEXTS.value))
    lines = sorted({t.strip() for t in given if t.strip()})
    drawn = np.random.default_rng(0).permutation(len(lines))[: _LIMIT.value or None]
    candidates = prompt_search.CANDIDATES
    if _CANDIDATES.value:
        try:
            text = "\n".join(checks.lines_of("--candidates", _CANDIDATES.value))
            sections = json.loads(text).items()
        except (ValueError, AttributeError) as error:
            raise ConfigError(f"--candidates={_CANDIDATES.value}: {error}; see --help") from error
        candidates = {name: registry.make_config(prompts, section) for name, section in sections}
    folder = assets.resolve(_LLM.value, _main.CACHE_DIR.value)
    loaded = loading.load_llm(folder)
    llm = Llm(decode.LanguageModel(loaded.module, loaded.config, jnp.float32), loaded.params)
    results = prompt_search.compare(
        llm,
        tokenizer.load(folder.path),
        candidates,
        [lines[i] for i in drawn],
        on_result=lambda result: print(f"{result.name}: {dict(result.scores)}", flush=True),
    )
    print("\n" + prompt_search.table(results))


if __name__ == "__main__":
    _main.run(main)
