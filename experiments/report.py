"""One table, its pictures and one page from a sweep's folder.

    python -m experiments.report --workdir=workdirs/objective
    python -m experiments.report --workdir=workdirs/objective --scoring=test/answer --compare="embedlink_ctc:embedlink"

Writes report.md, report.csv, report.tex, report.html (one file, pictures inside) and PNGs to
WORKDIR/report. --compare takes pairs of rows `a:b` (any part of a row's name that is found once) and tests
the difference on the same resampled speakers.
"""

from pathlib import Path

from absl import flags

from experiments import _main

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a sweep.")
_SCORING = flags.DEFINE_string(
    "scoring", "", "Which scores, e.g. test/answer; default: most points'."
)
_SYSTEMS = flags.DEFINE_list(
    "system", [""], "Rows for each of heard, answer, oracle; default: the one that counts."
)
_METRIC = flags.DEFINE_enum(
    "metric", "wer", ["wer", "cer", "rouge1", "rougeL"], "For the pictures."
)
_COMPARE = flags.DEFINE_multi_string("compare", [], "Two rows, a:b; may be repeated.")
_TITLE = flags.DEFINE_string("title", None, "Heading; default: the folder's name.")
_OUT = flags.DEFINE_string("out", None, "Where to write; default: WORKDIR/report.")
flags.mark_flag_as_required("workdir")


def main(argv):
    del argv
    from tiny_align_jax import report, report_page, report_tables
    from tiny_align_jax.types import ConfigError

    workdir = Path(str(_WORKDIR.value))
    rows, scoring = report.load(workdir, _SCORING.value, _SYSTEMS.value or [""])
    pairs = []
    for pair in _COMPARE.value:
        names = pair.split(":")
        if len(names) != 2:
            raise ConfigError(f"--compare={pair!r}; expected two rows, a:b")
        pairs.append((report.find_row(rows, names[0]), report.find_row(rows, names[1])))
    title = _TITLE.value or f"Sweep {workdir.name}"
    out = Path(_OUT.value) if _OUT.value else workdir / "report"
    paths = report_page.write(rows, scoring, title, out, _METRIC.value, pairs)
    print(report_tables.markdown(rows))
    for a, b in pairs:
        print(report_tables.comparison(a, b))
    print("wrote " + ", ".join(str(path) for path in paths.values()))


if __name__ == "__main__":
    _main.run(main)
