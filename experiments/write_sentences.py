"""The frozen LLM writes sentences for a synthetic corpus, in the style of a config's training text.

    python -m experiments.write_sentences --config=configs/so762.py --out=sentences.txt
    python -m experiments.write_sentences --config=configs/so762.py --out=s.txt --set=num_words=500,per_word=1

The words it has to use are its own, most frequent first. Sentences that validation or test of the config
has are dropped and counted. The report (counts, seconds, distinct words) lies beside the file as .json;
the same command goes on where it was interrupted. Speak the file with
    python -m experiments.render_speech --sentences=sentences.txt --out=FOLDER
"""

import json

from absl import flags

from experiments import _main

_CONFIG = _main.define_config("config", None, "Whose corpus and LLM, configs/so762.py.")
_OUT = flags.DEFINE_string("out", None, "Text file, one sentence a line.")
_SET = flags.DEFINE_list("set", [], "Fields of write_sentences.Config, e.g. num_words=500,seed=1.")
_PROGRESS = flags.DEFINE_bool("progress", True, "Show a progress bar.")
flags.mark_flags_as_required(["config", "out"])


def main(argv):
    del argv
    import jax.numpy as jnp  # imports JAX: after --help

    from tiny_align_jax import decode, registry, write_sentences
    from tiny_align_jax.data import tokenizer
    from tiny_align_jax.responder import Llm
    from tiny_align_jax.train import corpus
    from tiny_align_jax.weights import assets, loading

    config = _main.resolve_config(_CONFIG.value)
    settings = {k: json.loads(v) for k, _, v in (item.partition("=") for item in _SET.value)}
    split = corpus.read_split(config)
    folder = assets.resolve(config["llm"]["asset"], _main.CACHE_DIR.value)
    loaded = loading.load_llm(folder)
    report = write_sentences.to_file(
        registry.make_config(write_sentences, settings),
        Llm(decode.LanguageModel(loaded.module, loaded.config, jnp.float32), loaded.params),
        tokenizer.load(folder.path),
        [u.text for u in split.train],
        [u.text for u in (*split.validation, *split.test)],
        str(_OUT.value),
        llm_fingerprint=folder.fingerprint,
        progress=_PROGRESS.value,
    )
    print(json.dumps(vars(report), indent=1))


if __name__ == "__main__":
    _main.run(main)
