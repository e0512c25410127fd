"""Which instruction makes the LLM repeat what was said? Trains once and asks in every wording.

    python -m experiments.sweep --config=configs/ablations/instruction.py --sweep=instruction --score=answer --workdir=workdirs/instruction
    python -m experiments.report --workdir=workdirs/instruction --system=answer,oracle --metric=rouge1

The oracle row (the true text in the same prompt) bounds what any projector can reach with a wording.
"""

from configs.ablations import _base

get_config, sweep_seed = _base.get_config, _base.sweep_seed

WORDINGS = {
    "repeat": "Repeat the sentence.\nSentence: {audio}",
    "repeat exactly": "Repeat this sentence exactly, without changing a word: {audio}",
    "transcribe": "Transcribe the speech: {audio}",
    "bare": "{audio}\nRepeat that.",
}


def sweep_instruction():
    """The default prompt, then every wording with and without worked examples."""
    yield {"evaluation.snap": "", "label": "default"}
    for name, text in WORDINGS.items():
        yield {"prompt.instruction": text, "label": name}
        yield {"prompt.instruction": text, "prompt.examples": (), "label": f"{name}, no examples"}
