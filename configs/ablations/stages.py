"""Second stages: what a short further training of a finished projector gives, and what it costs.

    python -m experiments.sweep --config=configs/ablations/stages.py --config.train.init_from=workdirs/so762 --sweep=stage,learning_rate --lanes=2 --workdir=workdirs/stages
    python -m experiments.report --workdir=workdirs/stages --compare="min_risk, 4 readings:more embedlink_ctc"

The first row is the control: the same further steps of the first objective. Stages through the LLM are scored
by its answer to the raw tokens, with and without adapters (LoRA) in its attention.
"""

from configs import so762
from configs.ablations import _base, cross

sweep_seed = _base.sweep_seed


def get_config(arg: str = ""):
    """`arg`: '' 400 steps behind a run of configs/so762.py, 'screen' 100, 'tiny' on two cores."""
    if arg not in ("", "screen", "tiny"):
        raise ValueError(f"stages: unknown argument {arg!r}; expected '', 'screen' or 'tiny'")
    config = (so762.get_config("tiny") if arg == "tiny" else cross.get_config("screen")).unlock()
    config.train.update(num_steps=100 if arg == "screen" else 400, num_buckets=1)
    return config.lock()


def sweep_stage():
    """Without the LLM: fewer expected errors. Through it: to be read as it is."""
    yield {"objective.name": "embedlink_ctc", "label": "more embedlink_ctc"}
    for readings in (4, 8):
        count = {"objective.min_risk.num_readings": readings}
        yield {"objective.name": "min_risk"} | count | {"label": f"min_risk, {readings} readings"}
    for name in ("next_token", "distill"):
        for rank in (0, 8):
            adapters = {f"objective.{name}.lora_rank": rank, "prompt.examples": ()}
            label = f"{name}, LoRA {rank}" if rank else name
            yield {"objective.name": name} | adapters | {"label": label}


def sweep_learning_rate():
    """Low: the projector has learnt most of what it will."""
    for rate in (3e-5, 2e-4):
        yield {"optimizer.learning_rate": rate}
