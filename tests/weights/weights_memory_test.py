"""Peak memory of loading a checkpoint of Llama-3.2-1B's shape, measured in a process of its own."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

_CONFIG = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
}
# VmHWM counts file pages that are mapped as well as memory that is allocated.
_LOAD = """
import sys
import jax
from tiny_align_jax.weights import loading
from tiny_align_jax.weights.folder import open_folder
loaded = loading.load_llm(open_folder(sys.argv[1]), "bfloat16")
weights = sum(leaf.nbytes for leaf in jax.tree.leaves(loaded.params))
peak_kb = next(int(x.split()[1]) for x in open("/proc/self/status") if x.startswith("VmHWM"))
down = jax.tree.leaves(loaded.params["layers"]["mlp"]["down"])[0][3]
print(weights, 1024 * peak_kb, sorted(int(i[0]) for i in down.nonzero()), sep=";")
"""


def _shapes() -> dict[str, tuple[int, ...]]:
    width, ffn, keys = _CONFIG["hidden_size"], _CONFIG["intermediate_size"], 512
    shapes = {
        "model.embed_tokens.weight": (_CONFIG["vocab_size"], width),
        "model.norm.weight": (width,),
    }
    for i in range(_CONFIG["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        shapes |= {layer + f"self_attn.{n}_proj.weight": (keys, width) for n in "kv"}
        shapes |= {layer + f"self_attn.{n}_proj.weight": (width, width) for n in "qo"}
        shapes |= {layer + f"mlp.{n}_proj.weight": (ffn, width) for n in ("gate", "up")}
        shapes |= {layer + "mlp.down_proj.weight": (width, ffn)}
        norms = ("input_layernorm", "post_attention_layernorm")
        shapes |= {f"{layer}{norm}.weight": (width,) for norm in norms}
    return shapes


def _write_sparse(path: Path) -> int:
    """A checkpoint of zeros but for one value; a sparse file, so it takes hardly any disk."""
    header, end = {}, 0
    for name, shape in _shapes().items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    one = header["model.layers.3.mlp.down_proj.weight"]["data_offsets"][0]
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.seek(8 + len(text) + one + 2 * (7 * 8192 + 5))  # [out 7, in 5]
        file.write(b"\x80\x3f")  # 1.0 in bfloat16
        file.truncate(8 + len(text) + end)
    return end


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc/self/status")
def test_peak_memory_is_within_15_percent_of_the_weights(tmp_path):
    num_bytes = _write_sparse(tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(_CONFIG))
    command = [sys.executable, "-c", _LOAD, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    weights, peak, place = result.stdout.split(";")
    weights, peak = int(weights), int(peak)
    assert weights == num_bytes and place.strip() == "[5, 7]"
    print(f"weights {weights / 1e9:.3f} GB, peak {peak / 1e9:.3f} GB, ratio {peak / weights:.3f}")
    assert peak <= 1.15 * weights
