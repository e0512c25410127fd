"""Reports from folders written by hand, whose scores are known."""

import csv
import dataclasses
import io
import json
import re

import numpy as np
import pytest

from tiny_align_jax import report, report_page, report_plots, report_race, report_tables
from tiny_align_jax.types import ConfigError, DataError

WORDS = ["cat", "dog", "cow", "hen", "pig", "fox", "owl", "bee", "ant", "elk"]


def _point(root, row, seed, wrong, index=0, status="finished", train_s=10.0, **changes):
    """A point whose first `wrong` words of every utterance are misread; two utterances a speaker."""
    folder = root / f"row={row},seed={seed}"
    folder.mkdir(parents=True)
    point = {
        "name": folder.name,
        "row": row,
        "index": index,
        "status": status,
        "error": "" if status == "finished" else "no room for it",
        "config": {"seed": seed, "objective": {"name": "embedlink_ctc"}},
        "scored": {"test/heard": {"predictions": "predictions.jsonl"}},
    } | changes
    if status != "finished":
        del point["scored"]
    (folder / "point.json").write_text(json.dumps(point))
    if status != "finished":
        return
    lines = []
    for i in range(12):
        bad = min(10, wrong + i % 3)
        heard = ["x"] * bad + WORDS[bad:]
        lines.append({"id": f"u{11 - i:02d}", "speaker": f"s{i // 2}", "reference": " ".join(WORDS),
                      "heard": " ".join(heard)})  # fmt: skip
    (folder / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = {"finished": True, "step": 40, "train_s": train_s, "trainable_params": 1_000_000 * (index + 1),
              "peak_rss_mb": 500.0 + seed, "peak_device_mb": None, "validation": {"wer": 0.5}}  # fmt: skip
    (folder / "train_result.json").write_text(json.dumps(result))
    log = [{"step": s, "loss": 40 / s + seed} for s in (10, 20, 30, 40)]
    log += [{"step": s, "validation/wer": wrong / 10 + 2 / s} for s in (10, 20, 40)]
    (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))


@pytest.fixture
def sweep_folder(tmp_path):
    for seed, wrong in enumerate((1, 2, 3)):
        _point(tmp_path, "good", seed, wrong, index=2)
    for seed in range(3):
        _point(tmp_path, "bad_50%", seed, 6, index=1, train_s=30.0, runs_before=seed + 1)
    _point(tmp_path, "none", 0, 0, index=0, status="impossible")
    return tmp_path


def test_scores_and_both_intervals(sweep_folder):
    rows, scoring = report.load(sweep_folder)
    assert scoring == "test/heard" and [r.name for r in rows] == ["none", "bad_50%", "good"]
    good = rows[2].scores["wer"]
    assert good.mean == pytest.approx(0.3)  # wrong + 0, 1, 2 words of ten: 0.2, 0.3, 0.4
    # Student's t, 2 degrees of freedom: 4.303 * 0.1 / sqrt(3).
    assert good.half_width == pytest.approx(0.2484, abs=1e-4)
    assert good.speakers.low < 0.3 < good.speakers.high and good.speakers.num_units == 6
    assert rows[1].scores["wer"].half_width == pytest.approx(0.0, abs=1e-12)
    assert rows[1].peak_mb == (502.0, True) and rows[2].peak_mb == (502.0, False)
    assert rows[0].scores == {} and rows[0].unfinished[0].error == "no room for it"


def test_paired_comparison_and_time_to_equal_score(sweep_folder):
    rows, _ = report.load(sweep_folder)
    good, bad = report.find_row(rows, "good"), report.find_row(rows, "bad")
    found = report.compare(good, bad)["wer"]
    assert found.significant and found.difference.value == pytest.approx(0.3 - 0.7)
    assert found.ratio[0] == pytest.approx(0.3 / 0.7) and found.ratio[1] <= 3 / 7 <= found.ratio[2]
    same = report.compare(good, good)["wer"]
    assert not same.significant and same.difference.low == same.difference.high == 0
    # bad: 0.65 at its end, step 40 of 30 s; good is at 0.2 + 2/10 = 0.4 after 10 of 40 steps.
    assert report.seconds_to_equal(good, bad) == pytest.approx((0.65, 30.0, 2.5))
    assert report.seconds_to_equal(bad, good)[2] is None
    text = report_tables.comparison(good, bad)
    assert "12.0 times sooner" in text and "significant at 95%" in text


def test_a_searched_axis_shows_its_best_row(tmp_path):
    for rate, wrong in (("0.1", 4), ("0.2", 2), ("0.3", 6)):
        for seed in range(2):
            labels = {"cell": "a", "rate": rate, "seed": str(seed)}
            _point(tmp_path, f"a, {rate}", seed, wrong, labels=labels)
    _point(tmp_path, "b, 0.1", 0, 5, labels={"cell": "b", "rate": "0.1", "seed": "0"})
    rows, _ = report.load(tmp_path)
    assert [r.name for r in report.best_of(rows, "rate", "wer")] == ["a, 0.2", "b, 0.1"]
    assert [r.name for r in report.best_of(rows, "rate", "rouge1")] == ["a, 0.2", "b, 0.1"]


def test_the_race_is_told_with_and_without_a_winner(sweep_folder):
    rows, _ = report.load(sweep_folder)
    good, bad = report.find_row(rows, "good"), report.find_row(rows, "bad")
    # bad: 40 steps in 30 s, at 0.65 in the end; good: 40 in 10 s, below 0.65 after 10 steps.
    text = report_race.tell(good, bad, good, "wer")
    assert "750.00 ms of bad_50%, 250.00 ms of good, ratio 3.0" in text
    assert "end-to-end did not emerge: 0.650 against 0.250 of good" in text
    assert "12.0 times sooner" in text
    assert "did not emerge" not in report_race.tell(good, bad, bad, "wer")
    assert "good never reaches" not in text
    assert "bad_50% never reaches 0.250" in report_race.tell(bad, good, bad, "wer")
    assert "no validation on the way of none" in report_race.tell(good, bad, rows[0], "wer")


def test_a_run_that_was_stopped_races_as_far_as_it_got(tmp_path):
    _point(tmp_path, "good", 0, 1)
    _point(tmp_path, "stopped", 0, 6, train_s=30.0)
    folder = tmp_path / "row=stopped,seed=0"
    point = json.loads((folder / "point.json").read_text()) | {"status": "running", "scored": {}}
    (folder / "point.json").write_text(json.dumps(point))
    clock = "".join(json.dumps({"step": s, "train_s": 0.7 * s}) + "\n" for s in (10, 20, 40))
    with (folder / "train.jsonl").open("a") as log:
        log.write(clock)

    def told():
        rows, _ = report.load(tmp_path)
        good, stopped = (report.find_row(rows, name) for name in ("good", "stopped"))
        return report_race.tell(good, stopped, good, "wer")

    assert "750.00 ms of stopped" in told() and "stopped was stopped from outside" in told()
    assert "of stopped: 28.0 s against 2.5 s" in told()
    (folder / "train_result.json").unlink()  # killed: only its log is left
    assert "700.00 ms of stopped" in told() and "28.0 s against 2.5 s" in told()

    rows, _ = report.load(tmp_path)
    figure = report_plots.against_seconds(rows, "wer", {row.name: i for i, row in enumerate(rows)})
    drawn = {line.get_label(): line for line in figure.axes[0].lines}
    assert list(drawn["stopped (stopped)"].get_xdata()) == pytest.approx([7.0, 14.0, 28.0])
    report_plots.plt.close(figure)
    grey = report_plots.against_seconds(rows, "wer", {})  # one of too many rows to be named
    assert not any("stopped" in line.get_label() for line in grey.axes[0].lines)
    report_plots.plt.close(grey)


def test_other_utterances_are_not_compared(sweep_folder):
    path = sweep_folder / "row=good,seed=0" / "predictions.jsonl"
    path.write_text("\n".join(path.read_text().splitlines()[1:]))
    rows, _ = report.load(sweep_folder)
    with pytest.raises(DataError, match="different utterances"):
        report.compare(rows[2], rows[1])


def test_tables_agree_and_are_well_formed(sweep_folder):
    rows, _ = report.load(sweep_folder)
    lines = report_tables.markdown(rows).splitlines()
    assert len(lines) == 5 and len({len(line) for line in lines}) == 1
    assert "impossible: no room for it" in lines[2] and "0.300 ± 0.248" in lines[4]
    table = list(csv.DictReader(io.StringIO(report_tables.to_csv(rows))))
    assert float(table[2]["wer"]) == pytest.approx(0.3) and table[0]["wer"] == ""
    assert float(table[1]["parameters"]) == 2e6 and table[1]["peak_is_bound"] == "True"
    tex = report_tables.latex(rows, "A & B")
    assert r"bad\_50\%" in tex and r"A \& B" in tex and r"$\pm$" in tex
    columns = re.search(r"tabular}{(\w+)}", tex)[1]
    assert all(
        line.count(" & ") == len(columns) - 1 for line in tex.splitlines() if line.endswith("\\\\")
    )


def test_page_holds_everything_in_one_file(sweep_folder, tmp_path):
    rows, scoring = report.load(sweep_folder)
    paths = report_page.write(rows, scoring, "T <1>", tmp_path / "out", pairs=[(rows[2], rows[1])])
    page = paths["report.html"].read_text()
    assert page.count("data:image/png;base64,") == 4 and "T &lt;1&gt;" in page
    assert "http" not in page.replace("charset", "") and "no room for it" in page
    pictures = [p for p in paths.values() if p.suffix == ".png"]
    assert len(pictures) == 4 and all(p.stat().st_size > 5000 for p in pictures)
    assert all(p.name in paths["report.md"].read_text() for p in pictures)


def test_without_predictions_the_validation_of_training_is_shown(sweep_folder):
    for path in sweep_folder.glob("*/point.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"scored": {}}))
    rows, scoring = report.load(sweep_folder)
    assert scoring == "" and rows[2].scores["wer"].mean == 0.5
    assert rows[2].scores["wer"].speakers is None
    with pytest.raises(DataError, match="no predictions"):
        report.compare(rows[2], rows[1])


def test_messages(sweep_folder, tmp_path):
    with pytest.raises(DataError, match="holds no points"):
        report.load(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="scorings there: test/heard"):
        report.load(sweep_folder, "test/answer")
    rows, _ = report.load(sweep_folder)
    with pytest.raises(ConfigError, match=r"2 rows match 'o'.*rows: none; bad_50%; good"):
        report.find_row(rows, "o")
    assert np.isfinite(rows[1].train_s)


def test_a_run_validated_at_its_end_alone_says_nothing_of_time(sweep_folder):
    rows, _ = report.load(sweep_folder)
    good, bad = report.find_row(rows, "good"), report.find_row(rows, "bad")
    entries = [dataclasses.replace(e, validation=e.validation[-1:]) for e in bad.entries]
    once = dataclasses.replace(bad, entries=tuple(entries))
    assert report.seconds_to_equal(good, once) is None
    assert report.seconds_to_equal(once, good) is None
