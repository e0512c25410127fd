"""Quality against training seconds: our objective, the paper's, and end-to-end training through the LLM.

    python -m experiments.reproduce_cross --stage=race --workdir=workdirs/cross

which searches the end-to-end learning rate (`:search`), then runs, one at a time and validated on the way,
`python -m experiments.sweep --config=configs/time_to_quality.py --sweep=system,learning_rate --point=...`.
All see the same utterances up to 10.24 s and the same validation speakers. End-to-end gets frame-rate
input, a prompt without worked examples (it learns its own), bfloat16, and trains until validation stops
improving or for ten minutes.

On two cores, against the PyTorch baseline's end-to-end training (about eight minutes once features are cached):
    python -m experiments.compare_torch --config=configs/time_to_quality.py:cpu --workdir=workdirs/race_cpu --notest \
        --torch_set=objective.name=next_token --torch_set=train.num_steps=36 --torch_set=train.validate_every=12
"""

from configs import so762
from configs.ablations import _base, cross

sweep_seed = _base.sweep_seed

RATES = (1e-4, 2e-4, 5e-4, 1e-3)


def get_config(arg: str = ""):
    """`arg`: '' the race, 'search' 600 steps to choose a learning rate, 'cpu' for two cores."""
    if arg not in ("", "search", "cpu"):
        raise ValueError(
            f"time_to_quality: unknown argument {arg!r}; expected '', 'search' or 'cpu'"
        )
    if arg == "cpu":
        return _on_two_cores()
    config = cross.get_config("screen").unlock()
    config.train.update(num_steps=4000, num_buckets=1, validate_every=100, validate_limit=120)
    if arg == "search":
        config.train.update(num_steps=600, validate_every=0)
    return config.lock()


def _on_two_cores():
    """The recipe of configs/so762.py:tiny for 200 steps, often validated; the prompt has no examples."""
    config = so762.get_config("tiny").unlock()
    config.train.update(num_steps=200, num_buckets=2, validate_every=10, validate_limit=48)
    config.prompt.examples = ()
    return config.lock()


def sweep_system():
    """Ours, the paper's, and two end-to-end ones: BridgeFormer as ours, and SLAM-ASR's stack and MLP."""
    yield {"objective.name": "embedlink_ctc", "label": "embedlink_ctc"}
    yield _base.embedlink() | {
        "objective.embedlink.cast": "stretch",
        "projector.bridgeformer.num_tokens": 24,
        "label": "embedlink",
    }
    through = {"objective.name": "next_token", "prompt.examples": ()}
    yield through | {"label": "next_token"}
    stacked = {"projector.name": "mlp", "projector.mlp.stack": 5, "projector.mlp.dropout": 0.1}
    yield through | stacked | {"label": "next_token, stack 5 + MLP"}


def sweep_learning_rate():
    """Equal for all."""
    for rate in RATES:
        yield {"optimizer.learning_rate": rate}


def sweep_end():
    """How a run ends: after its steps, or when there is nothing more to gain."""
    yield {"train.max_train_s": 0.0, "label": "4000 steps"}
    yield {
        "train.num_steps": 20_000,
        "train.validate_every": 500,
        "train.patience": 8,
        "train.max_train_s": 600.0,
        "label": "until it stops improving",
    }
