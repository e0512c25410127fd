"""Benchmarks: what is counted, that every case runs at miniature size, and that a failure loses nothing."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tiny_align_jax import (
    benchmark,
    benchmark_curves,
    benchmark_input,
    benchmark_scaling,
    benchmark_sizes,
    benchmark_startup,
    benchmark_table,
    benchmark_timing,
)
from tiny_align_jax.types import ConfigError


def test_counts_products_as_often_as_they_run():
    a, b = np.ones((3, 4), np.float32), np.ones((4, 5), np.float32)
    assert benchmark_timing.count_flops(jnp.matmul, a, b) == 2 * 3 * 4 * 5

    def scanned(x):
        return jax.lax.scan(lambda c, _: (c @ c, None), x, length=7)[0]

    square = np.ones((4, 4), np.float32)
    assert benchmark_timing.count_flops(scanned, square) == 7 * 2 * 4**3
    loss = lambda x: jax.jit(jnp.matmul)(x, b).sum()  # noqa: E731
    forwards_and_into_a = benchmark_timing.count_flops(jax.value_and_grad(loss), a)
    assert forwards_and_into_a == 2 * 2 * 3 * 4 * 5
    assert benchmark_timing.count_flops(jax.grad(loss), a) == 2 * 3 * 4 * 5  # no value is read
    images, kernel = np.ones((1, 8, 2)), np.ones((3, 2, 6))
    convolve = lambda x, k: jax.lax.conv_general_dilated(  # noqa: E731
        x, k, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
    )
    assert benchmark_timing.count_flops(convolve, images, kernel) == 2 * 8 * 6 * (3 * 2)


def test_counts_compilations_only_while_asked():
    with benchmark_startup.Compilations() as counted:
        jax.jit(lambda x: x * 3.25 + 1)(np.float32(1)).block_until_ready()
    assert counted.count == 1
    jax.jit(lambda x: x * 4.25 + 1)(np.float32(1)).block_until_ready()
    assert counted.count == 1


def test_a_failed_case_loses_nothing(tmp_path):
    script = (
        "import json, pathlib, sys\ncase, size, out = sys.argv[1:]\n"
        "facts = dict(accelerator=False, copy_bytes_per_s=1e9, float32_flops_per_s=1e9)\n"
        "row = dict(case=case, size=size, variant='', framework='jax', seconds=0.5, low_s=0.4, high_s=0.6,"
        " repeats=3, flops=2e8, num_bytes=1e8, dtype='float32', facts=facts)\n"
        "assert case != 'decode'\n"
        "path = pathlib.Path(out, 'rows', f'{case}.{size}.json')\n"
        "path.parent.mkdir(parents=True, exist_ok=True)\n"
        "path.write_text(json.dumps([row]))\n"
    )
    command = ["-c", script, "{case}", "{size}", "{out}"]
    settings = benchmark.Settings(("embedlink", "decode", "encoder"), "tiny")
    rows = benchmark.run_all(settings, tmp_path, command, "")
    assert [row["case"] for row in rows] == ["ceilings", "embedlink", "decode", "encoder"]
    kept = json.loads((tmp_path / "benchmark.json").read_text())["rows"]
    assert kept == rows and "error" in kept[2] and kept[3]["seconds"] == 0.5
    table = (tmp_path / "benchmark.md").read_text()
    assert "failed" in table and "| 500 ms | 400 ms - 600 ms | 200 ms | 40 |  |" in table


def test_what_a_folder_holds_is_kept_and_nothing_starts_after_the_budget(tmp_path):
    row = {"case": "encoder", "size": "tiny", "variant": "", "framework": "jax", "seconds": 0.5,
           "low_s": 0.5, "high_s": 0.5, "repeats": 1, "flops": 0.0, "num_bytes": 0.0, "facts": {}}  # fmt: skip
    measured = {"median_ms": 2.0, "low_ms": 1.0, "high_ms": 3.0, "repeats": 3, "machine": "m"}
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "encoder.tiny.json").write_text(json.dumps([row]))
    (tmp_path / "rows" / "torch.encoder.tiny.0.eager.json").write_text(json.dumps(measured))
    settings = benchmark.Settings(
        ("encoder", "embedlink"), "tiny", torch_modes=("eager", "default"), keep=True, budget_s=0.0
    )
    rows = benchmark.run_all(settings, tmp_path, ["-c", "raise SystemExit(1)"], "")
    assert [r["framework"] for r in rows] == ["jax", "torch eager"]
    assert rows[0] == row and rows[1]["seconds"] == 0.002
    again = benchmark.run_all(
        benchmark.Settings(("encoder",), "tiny"), tmp_path, ["-c", "raise SystemExit(1)"], ""
    )
    assert [r["error"] for r in again] == ["CalledProcessError"] * 2


def test_ratio_is_to_the_fastest_mode_of_the_baseline():
    row = {"case": "embedlink", "size": "tiny", "variant": "", "framework": "jax", "seconds": 0.5,
           "low_s": 0.5, "high_s": 0.5, "repeats": 1, "flops": 0.0, "num_bytes": 0.0, "facts": {}}  # fmt: skip
    rows = [row] + [row | {"framework": f"torch {s}", "seconds": s} for s in (4.0, 1.5)]
    rows.append(row | {"framework": "torch failed", "error": "TimeoutExpired"})
    lines = benchmark_table.table(rows).splitlines()[4:]
    assert [line.split("|")[9].strip() for line in lines[:3]] == ["3.00", "", ""]


def test_scaling_names_all_its_axes(tmp_path):
    script = "import sys; sys.exit(1)"
    settings = benchmark.Settings(("scaling", "encoder"), "tiny")
    rows = benchmark.run_all(settings, tmp_path, ["-c", script], "")
    wanted = ["ceilings", *(f"scaling_{axis}" for axis in benchmark_scaling.AXES), "encoder"]
    assert [row["case"] for row in rows] == wanted and all("error" in row for row in rows)


def test_a_step_does_not_notice_how_many_utterances_lie_on_the_device(monkeypatch):
    monkeypatch.setattr(benchmark_scaling, "CORPORA", (2, 8))
    few, many = benchmark_scaling.utterances(benchmark_sizes.find("tiny"), "tiny")
    assert (few.facts["x"], many.facts["x"]) == (4, 16) and few.case == "scaling_utterances"
    assert many.facts["corpus_mb"] == pytest.approx(4 * few.facts["corpus_mb"])
    assert many.facts["temporaries_mb"] == few.facts["temporaries_mb"]


def test_input_is_a_share_of_training(monkeypatch):
    one = dict(list(benchmark_input.SETTINGS.items())[-1:])
    monkeypatch.setattr(benchmark_input, "SETTINGS", one)
    (row,) = benchmark_input.input_share(benchmark_sizes.find("tiny"), "tiny")
    assert row.repeats == 16 and row.variant == "on the device, an epoch a dispatch"
    assert 0 < row.facts["input_share"] < 1 and row.seconds > 0


def test_a_picture_an_axis(tmp_path):
    def row(axis, line, x, **facts):
        facts = {"line": line, "x": x, **facts}
        return {"case": f"scaling_{axis}", "variant": "", "seconds": 0.01 * x, "facts": facts}

    rows = [row("slots", "one token", x) for x in (64, 256)]
    rows += [row("batch", n, x, temporaries_mb=x) for n in ("a", "b") for x in (2, 4)]
    rows += [row("batch", "c", 2) | {"facts": {}}, {"case": "embedlink", "facts": {}}]
    names = [path.name for path in benchmark_curves.write(rows, tmp_path)]
    assert names == ["scaling_slots.png", "scaling_batch.png"]
    assert all((tmp_path / name).stat().st_size > 5000 for name in names)
    panels = benchmark_curves.draw(rows[2:6], "batch").axes
    assert len(panels) == 2 and len(panels[0].lines) == 5  # two lines, their slopes, the legend's


def test_unknown_names_are_refused():
    with pytest.raises(ConfigError, match="nonsense"):
        benchmark.Settings(("nonsense",))
    with pytest.raises(ConfigError, match="smollm2"):
        benchmark.Settings((), "nonsense")
