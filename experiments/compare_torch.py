"""Trains one config with us and with the PyTorch baseline and puts both side by side.

    python -m experiments.compare_torch --config=configs/so762.py --workdir=workdirs/compare \\
        --torch_modes=eager,default,reduce-overhead --decode_size=smollm2

Same config, same weights, same feature cache, a process each: quality (validation and test, by our own scorers), step
time, training seconds to the quality that all reach, start-up (process start to first steps done), peak device and
host memory, greedy tokens a second. Writes compare.json, compare.md and compare.png, and prints the table last.
Needs PyTorch (pip install -e .[parity]). `--torch_set` gives the baseline another objective, for example:

    --torch_set=objective.name=next_token --torch_set=projector.bridgeformer.pooling=adaptive
"""

import json
import os

from absl import flags

from experiments import _main

_CONFIG = _main.define_config("config", None, "Experiment, e.g. configs/so762.py.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of both runs and the comparison.")
_MODES = flags.DEFINE_list(
    "torch_modes",
    ["eager"],
    "Modes of the baseline: eager, default, reduce-overhead, max-autotune.",
)
_SET = flags.DEFINE_multi_string("torch_set", [], "key=value of the config, for the baseline only.")
_DECODE_SIZE = flags.DEFINE_string("decode_size", "", "Size whose generation is timed; '': none.")
_TEST = flags.DEFINE_bool("test", True, "Score the test set, too.")
_DEVICE = flags.DEFINE_string("torch_device", "", "cpu or cuda; '': cuda if there is one.")
_TIMEOUT_S = flags.DEFINE_float("timeout_s", 600.0, "Limit of each process.")
flags.mark_flags_as_required(["config", "workdir"])


def main(argv):
    del argv
    from third_party.torch_baseline import compare  # imports matplotlib: after --help

    settings = compare.Settings(
        torch_modes=tuple(_MODES.value),
        torch_changes=dict(_parse(text) for text in _SET.value),
        decode_size=_DECODE_SIZE.value,
        score_test=_TEST.value,
        device=_DEVICE.value,
        timeout_s=_TIMEOUT_S.value,
    )
    workdir = str(_WORKDIR.value)
    config = _main.resolve_config(_CONFIG.value)
    found = compare.run(config, workdir, _main.CACHE_DIR.value, settings)
    print(compare.table(found))
    print(f"in {os.path.join(workdir, 'compare.json')}, compare.md and compare.png")


def _parse(text: str):
    """'a.b=3' as ('a.b', 3); what is no JSON is a string."""
    key, _, value = text.partition("=")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


if __name__ == "__main__":
    _main.run(main)
