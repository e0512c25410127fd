import json
import os
import pathlib
import shlex
import time

import pytest

from configs import tables
from tiny_align_jax import jobs
from tiny_align_jax.types import ConfigError

ROOT = pathlib.Path(__file__).parent.parent
ONE_GPU = jobs.Machine((80.0,), 16)


def _job(name, code, **needs):
    return jobs.Job(name, f"-c {code!r}", **needs)


def _run(out, *some, machine=ONE_GPU, **kwargs):
    told = []
    state = jobs.run(some, out, machine, os.environ, tell=told.append, poll_s=0.02, **kwargs)
    return {name: found["status"] for name, found in state.items()}, told


def _starts_and_ends(told):
    return [line.split("s  ", 1)[1].split(" (")[0] for line in told if "s  " in line]


def test_a_failed_job_stops_only_what_needs_it_and_is_tried_again(tmp_path):
    flag = tmp_path / "flag"
    some = (
        _job("first", f"import pathlib; assert pathlib.Path({str(flag)!r}).exists(), 'no flag'"),
        _job("second", "pass", after=("first",)),
        _job("other", f"print({str(tmp_path)!r})"),
    )
    state, told = _run(tmp_path, *some)
    assert state == {"first": "failed", "second": "skipped", "other": "finished"}
    assert any("no flag" in line for line in told)  # the reason stands where one looks
    flag.touch()
    state, told = _run(tmp_path, *some)
    assert set(state.values()) == {"finished"}
    assert not any("other" in line for line in told)  # was not run twice
    assert set(json.loads((tmp_path / "jobs.json").read_text())) == {"first", "second", "other"}


@pytest.mark.parametrize(
    "needs", [{"gpu_gb": 50.0}, {"cores": 10}, {"quiet": "gpu"}, {"quiet": "machine"}]
)
def test_jobs_that_do_not_fit_together_wait_for_each_other(tmp_path, needs):
    sleep = "import time; time.sleep(0.2)"
    _, told = _run(tmp_path, _job("a", sleep, **needs), _job("b", sleep, **needs))
    assert _starts_and_ends(told) == ["a: started", "a: finished", "b: started", "b: finished"]


def test_jobs_that_fit_run_side_by_side_each_on_its_share(tmp_path):
    show = "import os, time; time.sleep(0.3); print([os.environ[k] for k in sorted(os.environ) if k in "
    show += "('CUDA_VISIBLE_DEVICES', 'XLA_PYTHON_CLIENT_MEM_FRACTION')])"
    pair = (_job("a", show, gpu_gb=60.0), _job("b", show, gpu_gb=40.0, quiet="gpu"))
    _, told = _run(tmp_path, *pair, machine=jobs.Machine((80.0, 80.0), 16))
    assert _starts_and_ends(told)[:2] == ["a: started", "b: started"]
    logs = [(tmp_path / "logs" / f"{name}.log").read_text().strip() for name in "ab"]
    assert logs == ["['0', '0.6000']", "['1', '0.4000']"]


def test_a_timing_gets_its_gpu_before_later_jobs_fill_it_again(tmp_path):
    brief, long = "import time; time.sleep(0.2)", "import time; time.sleep(1.5)"
    some = (
        _job("long", long),
        _job("brief", brief),
        _job("timing", brief, after=("brief",), quiet="gpu"),
        *(_job(f"later_{k}", brief) for k in range(2)),
    )
    _, told = _run(tmp_path, *some, machine=jobs.Machine((80.0, 80.0), 100))
    order = _starts_and_ends(told)
    assert order.index("timing: finished") < order.index("long: finished")
    again = jobs.Machine((80.0,), 100)
    some = (_job("a", brief), _job("timing", "pass", quiet="machine"), _job("b", "pass"))
    order = _starts_and_ends(_run(tmp_path / "x", *some, machine=again)[1])
    assert order.index("timing: finished") < order.index("b: started")


def test_time_limits_stop_a_job_and_its_children(tmp_path):
    child = tmp_path / "child"
    code = (
        "import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', 'import time; "
        f"time.sleep(60)']); open({str(child)!r}, 'w').write(str(p.pid)); time.sleep(60)"
    )
    state, _ = _run(
        tmp_path, _job("long", code, limit_s=1.0), _job("later", "pass", after=("long",))
    )
    assert state == {"long": "stopped", "later": "skipped"}
    time.sleep(0.1)
    stat = pathlib.Path(f"/proc/{child.read_text()}/stat")
    assert not stat.exists() or stat.read_text().split()[2] == "Z"
    state, _ = _run(tmp_path / "x", _job("long", "import time; time.sleep(60)"), budget_s=0.5)
    assert state == {"long": "stopped"}


def test_what_a_stopped_job_started_may_save_what_it_has(tmp_path):
    child = tmp_path / "child.py"
    child.write_text(
        "import pathlib, signal, sys, time\n"
        "def save(*_):\n"
        "    time.sleep(0.3)\n"
        "    pathlib.Path(__file__).with_name('saved').touch()\n"
        "    sys.exit()\n"
        "signal.signal(signal.SIGTERM, save)\n"
        "time.sleep(60)\n"
    )
    code = f"import subprocess, sys; subprocess.run([sys.executable, {str(child)!r}])"
    state, _ = _run(tmp_path, _job("long", code, limit_s=1.0))
    assert state == {"long": "stopped"} and (tmp_path / "saved").exists()


def test_a_job_that_could_never_run_is_refused():
    def refuse(*some):
        with pytest.raises(ConfigError) as caught:
            jobs.check(some, ONE_GPU)
        return str(caught.value)

    assert "big: gpu_gb=79; expected at most 73.6" in refuse(_job("big", "pass", gpu_gb=79.0))
    assert "stand before it" in refuse(_job("a", "pass", after=("b",)), _job("b", "pass"))
    assert "two jobs are named 'a'" in refuse(_job("a", "pass"), _job("a", "pass"))
    assert "quiet='loud'" in refuse(_job("a", "pass", quiet="loud"))


def test_names_choose_jobs_with_what_they_need():
    some = (_job("a", "pass"), _job("b", "pass", after=("a",)), _job("c", "pass"))
    names = lambda *how: [job.name for job in jobs.choose(some, *how)]  # noqa: E731
    assert names([], []) == ["a", "b", "c"]
    assert names(["b"], []) == ["a", "b"]
    assert names([], ["a"]) == ["c"]
    with pytest.raises(ConfigError, match="no job is named d; there are: a, b, c"):
        names(["d"], [])


def test_every_published_table_fits_one_large_gpu_and_names_what_exists():
    found = tables.get_jobs("spoken/manifest.jsonl", "sentences.txt")
    jobs.check(found, jobs.Machine((85.0,), 16))
    for job in found:
        module, *flags = shlex.split(job.command.removeprefix("-m experiments."))
        text = (ROOT / "experiments" / f"{module}.py").read_text()
        own = [f.removeprefix("--").split("=")[0] for f in flags if not f.startswith("--config.")]
        for flag in own:
            known = {flag, flag.removeprefix("no")} | ({"config"} if flag == "config" else set())
            assert any(f'"{name}"' in text for name in known), (job.name, flag)
        for config in (f.split("=")[1].split(":")[0] for f in flags if f.startswith("--config=")):
            assert (ROOT / config).is_file(), (job.name, config)


def test_only_visible_gpus_are_taken_by_their_names(tmp_path, monkeypatch):
    fake = tmp_path / "nvidia-smi"
    fake.write_text("#!/bin/sh\nprintf '0, GPU-a, 40960\\n1, GPU-b, 81559\\n'\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    both = jobs.Machine.here()
    assert both.gpu_names == ("0", "1")
    assert [round(gb) for gb in both.gpus_gb] == [43, 86]
    assert jobs.Machine.here("1").gpu_names == ("1",)
    assert jobs.Machine.here("GPU-b,0").gpu_names == ("GPU-b", "0")
    show = _job("a", "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])")
    _run(tmp_path / "x", show, machine=jobs.Machine.here("1"))
    assert (tmp_path / "x" / "logs" / "a.log").read_text().strip() == "1"


def test_a_machine_without_gpus_runs_them_by_cores(tmp_path):
    state, _ = _run(tmp_path, _job("a", "pass", gpu_gb=50.0), machine=jobs.Machine((), 2))
    assert state == {"a": "finished"}
    assert jobs.table([_job("a", "pass"), _job("b", "pass")], {"a": {"status": "finished"}}) == (
        "| job | status | seconds |\n| --- | --- | ---: |\n| a | finished |  |\n| b | not started |  |"
    )
