"""What quantised forms of the frozen LLM and encoder cost in quality, and save in bytes and time.

    python -m experiments.quantise_report --workdir=workdirs/so762
    python -m experiments.quantise_report --workdir=workdirs/so762 --forms=int8,gguf --limit=50 --noencoder

On validation utterances of the run's corpus: perplexity of the transcripts, ROUGE-1 of the LLM asked to
repeat the true text and what the projector heard, bytes of weights, tokens a second and a second of
processor time (which other work on the machine hardly changes). Writes
OUT/quantisation.json and OUT/quantisation.md. docs/quantization.md has the published table.
"""

from absl import flags

from experiments import _main

_WORKDIR = _main.define_workdir("workdir", "Folder of a finished training run.", required=True)
_FORMS = flags.DEFINE_list("forms", [], "Forms beside float32, by name; default: all.")
_LIMIT = flags.DEFINE_integer("limit", 200, "Validation utterances, drawn by seed 0; 0 for all.")
_QUALITY = flags.DEFINE_bool("quality", True, "Ask the LLM; --noquality measures bytes and speed.")
_ENCODER = flags.DEFINE_bool("encoder", True, "Compare the encoder in int8, too.")
_ENCODER_LIMIT = flags.DEFINE_integer("encoder_limit", 100, "Utterances for that, at most LIMIT.")
_MAX_NEW_TOKENS = flags.DEFINE_integer("max_new_tokens", 32, "Longest answer, in tokens.")
_OUT = flags.DEFINE_string("out", None, "Where to write; default: the workdir.")
_PROGRESS = flags.DEFINE_bool("progress", True, "Show progress bars.")


def main(argv):
    del argv
    from tiny_align_jax import decode, quantise_report  # they import JAX: after --help

    config = quantise_report.Config(
        forms=tuple(_FORMS.value) or tuple(quantise_report.FORMS),
        quality=_QUALITY.value,
        limit=_LIMIT.value,
        answers=decode.Config(max_new_tokens=_MAX_NEW_TOKENS.value),
        encoder=_ENCODER.value,
        encoder_limit=_ENCODER_LIMIT.value,
    )
    aligner = _main.load_aligner(_WORKDIR.value, need_llm=False)
    report = quantise_report.run(aligner, _main.CACHE_DIR.value, config, progress=_PROGRESS.value)
    paths = quantise_report.write(report, _main.out_dir(_OUT.value, _WORKDIR.value))
    print(quantise_report.table(report))
    print("wrote " + ", ".join(str(path) for path in paths))


if __name__ == "__main__":
    _main.run(main)
