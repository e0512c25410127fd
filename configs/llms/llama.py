"""Llama-like LLMs as the frozen LLM on split `so762`; training needs only rows of the embedding table.

    python -m experiments.train --config=configs/llms/llama.py --workdir=workdirs/llama

Llama 3.x, SmolLM2, TinyLlama, Mistral, Qwen2 and Qwen3 are one family with switches. Weights come from the hub unless said otherwise; those were not run here
(docs/models.md says how the port was verified).
"""

from configs import common, so762

SIZES = {
    "": "meta-llama/Llama-3.2-1B-Instruct",
    "3b": "meta-llama/Llama-3.2-3B-Instruct",
    "smollm2": "HuggingFaceTB/SmolLM2-360M-Instruct",
    "qwen2": "Qwen/Qwen2.5-0.5B-Instruct",
    "qwen3": "Qwen/Qwen3-0.6B",
    "mistral": "mistralai/Mistral-7B-Instruct-v0.3",
    "tinyllama": "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
}


def get_config(arg: str = ""):
    """`arg`: '' for meta-llama/Llama-3.2-1B-Instruct, '3b' for meta-
    llama/Llama-3.2-3B-Instruct, 'smollm2' for HuggingFaceTB/SmolLM2-360M-Instruct, 'qwen2'
    for Qwen/Qwen2.5-0.5B-Instruct, 'qwen3' for Qwen/Qwen3-0.6B, 'mistral' for
    mistralai/Mistral-7B-Instruct-v0.3, 'tinyllama' for TinyLlama/TinyLlama-1.1B-Chat-v1.0."""
    config = so762.get_config().unlock()
    config.llm.asset = common.pick("llama", arg, SIZES)
    return config.lock()
