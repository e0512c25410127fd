"""Which projector? Every one under both objectives, with the parameters of BridgeFormer.

    python -m experiments.sweep --config=configs/ablations/projector.py:screen --sweep=projector --workdir=workdirs/projector
    python -m experiments.report --workdir=workdirs/projector

Widths are scaled until parameters match within 2 %; `linear` has no width of its own and stays small.
"""

import functools

from configs.ablations import _base
from tiny_align_jax import matching, registry

get_config, sweep_seed = _base.get_config, _base.sweep_seed

_RATE = {
    "linear": {},
    "mlp": {},
    "conv": {},
    "conformer": {},
    "qformer": {"window": 4, "num_tokens": 4},
    "cif": {"firing": "rate"},
}
_FIXED = {name: {"pooling": "adaptive"} for name in ("linear", "mlp", "conv", "conformer")}
_FIXED |= {"qformer": {}, "cif": {"firing": "count"}}


def sweep_projector():
    """At frame rate under `embedlink_ctc`, at 16 tokens under `embedlink`, and a cell that cannot be."""
    yield {"projector.name": "bridgeformer", "label": "ctc bridgeformer"}
    for name, values in _RATE.items():
        yield _row(name, values) | {"label": f"ctc {name}"}
    yield _base.embedlink(label="embedlink bridgeformer")
    for name, values in _FIXED.items():
        yield _row(name, values) | {"objective.name": "embedlink", "label": f"embedlink {name}"}
    yield {"objective.name": "embedlink", "label": "embedlink bridgeformer at frame rate"}


def _row(name, values):
    widths = dict(_matched(name, tuple(values.items())))
    return {"projector.name": name} | {
        f"projector.{name}.{key}": value for key, value in (values | widths).items()
    }


@functools.cache
def _matched(name, values):
    """Width keys of a projector, scaled to the parameters of BridgeFormer."""
    bridge = registry.resolve("projectors", "bridgeformer")
    sizes = (_base.ENCODER_DIM, _base.LLM_DIM)
    target = matching.param_count(bridge, bridge.Config(), *sizes)
    module = registry.resolve("projectors", name)
    if not module.WIDTHS:
        return ()
    config = matching.match_params(module, module.Config(**dict(values)), target, *sizes)
    return tuple((key, getattr(config, key)) for key in module.WIDTHS)
