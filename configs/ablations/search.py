"""The same search for the paper's objective and for ours: eight settings each at four learning rates.

    python -m experiments.sweep --config=configs/ablations/search.py --sweep=setting,learning_rate --lanes=4 --jobs=8 --score=none --workdir=workdirs/search
    python -m experiments.report --workdir=workdirs/search

Both on the same validation speakers, for the same steps. Settings of `embedlink` stay within what is known of
the paper: what speech is cast to (T tokens; end-of-text behind the transcript, or stretched), which spans
are pooled (of the utterance, or of the encoder's window, as Whisper pads to one), positions, the
cosine's origin, the weight of end-of-text, augmentation.
"""

from configs.ablations import _base, augmentation, cross

sweep_seed = _base.sweep_seed

_BRIDGE = "projector.bridgeformer."
_WINDOW = {f"{_BRIDGE}pooling": "window", f"{_BRIDGE}pool_stride": 8, f"{_BRIDGE}num_tokens": 16}
_STRETCH = {"objective.embedlink.cast": "stretch", f"{_BRIDGE}num_tokens": 24}


def get_config(arg: str = ""):
    """`arg`: '' 1200 steps on utterances up to 10.24 s, 'screen' 600, 'full' the recipe of configs/so762.py."""
    if arg not in ("", "screen", "full"):
        raise ValueError(f"search: unknown argument {arg!r}; expected '', 'screen' or 'full'")
    if arg == "full":
        return cross.get_config()
    config = cross.get_config("screen").unlock()
    config.train.num_steps = 600 if arg else 1200
    return config.lock()


def sweep_setting():
    """Eight of `embedlink`, eight of `embedlink_ctc`."""
    paper = {
        "pad 16": {},
        "pad 16, window": _WINDOW,
        "pad 16, window, sinusoidal": _WINDOW | {f"{_BRIDGE}positions": "sinusoidal"},
        "pad 16, window, end-of-text 0.3": _WINDOW | {"objective.embedlink.pad_weight": 0.3},
        "pad 16, window, no augmentation": _WINDOW | augmentation.NOTHING,
        "stretch 24": _STRETCH,
        "stretch 24, centred": _STRETCH | {"objective.embedlink.centre": True},
        "stretch 24, no augmentation": _STRETCH | augmentation.NOTHING,
    }
    for label, values in paper.items():
        yield _base.embedlink() | values | {"label": f"embedlink: {label}"}
    ours = {
        "rotary": {},
        "no positions": {f"{_BRIDGE}positions": "none"},
        "no augmentation": augmentation.NOTHING,
        "speed": {"augment.warp": 0.1},
        "dropout 0.3": {f"{_BRIDGE}dropout": 0.3},
        "25 tokens a second": {f"{_BRIDGE}stack": 2},
        "6 layers": {f"{_BRIDGE}num_layers": 6},
        "centred": {"objective.embedlink_ctc.centre": True},
    }
    for label, values in ours.items():
        yield {"objective.name": "embedlink_ctc"} | values | {"label": f"embedlink_ctc: {label}"}


def sweep_learning_rate():
    """The same four for everyone."""
    for rate in (2e-4, 5e-4, 1e-3, 2e-3):
        yield {"optimizer.learning_rate": rate}
