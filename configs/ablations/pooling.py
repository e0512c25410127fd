"""How should frames become tokens?

python -m experiments.sweep --config=configs/ablations/pooling.py:screen --sweep=pooling --workdir=workdirs/pooling
"""

from configs.ablations import _base

get_config, sweep_seed = _base.get_config, _base.sweep_seed


def sweep_pooling():
    """Rates for the learned alignment, fixed lengths for matching position by position."""
    for stack in (2, 4, 8):
        yield {"projector.bridgeformer.stack": stack, "label": f"ctc none, stack {stack}"}
    yield {"projector.bridgeformer.pooling": "stride", "label": "ctc stride 2"}
    yield {
        "projector.bridgeformer.pooling": "adaptive",
        "projector.bridgeformer.num_tokens": 64,
        "label": "ctc adaptive 64",
    }
    for kind, stride in (("adaptive", 2), ("attention", 2), ("window", 8)):
        yield _base.embedlink() | {
            "projector.bridgeformer.pooling": kind,
            "projector.bridgeformer.pool_stride": stride,
            "label": f"embedlink {kind}",
        }
