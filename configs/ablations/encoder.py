"""Which encoder, and which of its layers? Features of each are extracted once and cached.

python -m experiments.sweep --config=configs/ablations/encoder.py:screen --sweep=encoder --workdir=workdirs/encoder
"""

from configs.ablations import _base

get_config, sweep_seed = _base.get_config, _base.sweep_seed


def sweep_encoder():
    """Whisper tiny.en and base; single layers of base from the middle up, some side by side, a mean."""
    yield {"encoder.asset": "whisper-tiny.en", "label": "tiny.en, last"}
    yield {"encoder.asset": "whisper-base", "label": "base, last"}
    for layers in ((3,), (4,), (5,), (4, -1)):
        yield {
            "encoder.asset": "whisper-base",
            "encoder.layers": layers,
            "label": f"base, {'+'.join('last' if i < 0 else str(i) for i in layers)}",
        }
    layers = (3, 4, 5, -1)
    side_by_side = {"encoder.asset": "whisper-base", "encoder.layers": layers}
    yield side_by_side | {"label": "base, 3+4+5+last"}
    yield side_by_side | {
        "projector.bridgeformer.mix_layers": len(layers),
        "label": "base, learned mean of 3, 4, 5, last",
    }
