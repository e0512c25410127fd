"""Synthetic speech for so762: alone, before real speech, beside it, or none of it.

The corpus is made once; its sentences hold none of validation or test:
    python -m experiments.write_sentences --config=configs/so762.py --out=sentences.txt
    python -m experiments.render_speech --sentences=sentences.txt --out=spoken

Then, with MORE standing for
    --config.mixture.dataset.jsonl.manifest=spoken/manifest.jsonl --config.vocabulary.texts=sentences.txt

    real speech alone       python -m experiments.train --config=configs/synthetic_pretraining.py:real --workdir=w/real
    synthetic alone         python -m experiments.train --config=configs/synthetic_pretraining.py:pretrain --workdir=w/pre MORE
    synthetic, then real    the same, then
                            python -m experiments.train --config=configs/synthetic_pretraining.py:finetune --workdir=w/fine \
                                --config.train.init_from=w/pre --config.vocabulary.texts=sentences.txt
    both in one run         python -m experiments.train --config=configs/synthetic_pretraining.py:mixture --workdir=w/mix MORE

Every command resumes when it is given again; a stage starts from the exported projector of the one before.
Validation and test are those of configs/so762.py in all of them. --config.mixture.limit=4000 takes a part
of the synthetic corpus; `--sweep=amount` in experiments.sweep does so step by step.
"""

from configs import so762


def get_config(arg: str = "real"):
    """`arg`: 'real', 'pretrain', 'finetune' or 'mixture'; 'pretrain_tiny' and so on for two cores."""
    stage, _, size = arg.partition("_")
    config = so762.get_config(size)
    config.unlock()
    if stage == "pretrain":
        config.mixture.share = 1.0
    elif stage == "mixture":
        config.mixture.share = 0.5
    elif stage == "finetune":
        # The projector knows the words by now: a lower rate, half of the steps.
        config.optimizer.learning_rate = config.optimizer.learning_rate / 2
        config.train.num_steps = config.train.num_steps // 2
    elif stage not in ("", "real"):
        raise ValueError(
            f"synthetic_pretraining: unknown argument {arg!r}; expected real, pretrain, finetune or "
            "mixture"
        )
    return config.lock()


def sweep_amount():
    """How many synthetic utterances."""
    for limit in (1000, 2000, 4000, 8000, 16_000):
        yield {"mixture.limit": limit}


def sweep_seed():
    """Three seeds."""
    for seed in range(3):
        yield {"seed": seed}
