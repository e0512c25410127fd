"""An assistant on a board: a short window, one user, an LLM held in few bits.

    python -m experiments.prove_assistant --config=configs/assistant.py \\
        --config.llm.asset=Llama-3.2-1B --config.llm.quantize.weights=int4 --limit_bytes=4000000000

Weights that are not on this machine are random ones of the published shape, and so is the corpus:
memory and speed do not depend on either. What fits which board: docs/quantization.md.
"""

from configs import common


def get_config(arg: str = ""):
    """`arg` is unused."""
    if arg:
        raise ValueError(f"assistant: unknown argument {arg!r}; expected ''")
    config = common.base()
    config.dataset = common.plugin("datasets", "jsonl")
    config.split.update(test="", validation_speakers=1)
    config.encoder.update(asset="whisper-base", window_s=5.12)
    config.features.batch_size = 4
    config.vocabulary.kind = "seen"
    config.projector.bridgeformer.positions = "rotary"
    config.train.update(num_steps=2, batch_size=4, num_buckets=1, validate_limit=4)
    config.prompt.update(instruction="Answer in one sentence.\n{audio}", examples=())
    return config.lock()
