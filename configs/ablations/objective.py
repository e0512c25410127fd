"""Which objective? Every one with BridgeFormer; the end-to-end ones hold the LLM in training.

    python -m experiments.sweep --config=configs/ablations/objective.py:screen --sweep=objective,learning_rate --workdir=workdirs/objective
    python -m experiments.report --workdir=workdirs/objective --compare="embedlink_ctc 0.0005:next_token 0.0005"

All objectives get the same learning rates; objectives without the LLM are scored by what is heard, the
others by the LLM's answer to the raw tokens.
"""

from configs.ablations import _base

get_config, sweep_seed = _base.get_config, _base.sweep_seed


def sweep_objective():
    """Matching by alignment, position by position, as a choice, and through the LLM."""
    yield {"objective.name": "embedlink_ctc"}
    yield _base.embedlink(label="embedlink")
    stretch = {"objective.embedlink.cast": "stretch", "projector.bridgeformer.num_tokens": 24}
    yield _base.embedlink() | stretch | {"label": "embedlink stretched"}
    for negatives, label in ((0, "contrastive, all rows"), (256, "contrastive, 256 rows")):
        contrastive = {
            "objective.name": "embedlink_contrastive",
            "objective.embedlink_contrastive.num_negatives": negatives,
        }
        yield _base.embedlink() | contrastive | {"label": label}
    risk = {"objective.min_risk.ctc_weight": 1.0, "label": "min_risk, no first stage"}
    yield {"objective.name": "min_risk"} | risk
    # Trained through the prompt, they need no worked examples: a fifth of the tokens.
    for name in ("next_token", "distill"):
        yield {"objective.name": name, "prompt.examples": (), "label": name}


def sweep_learning_rate():
    """The same search for everyone, chosen on validation speakers."""
    for rate in (2e-4, 5e-4, 1e-3):
        yield {"optimizer.learning_rate": rate}
