"""`lambdanet run --where slurm` on the Slurm that `sbatch` reaches; see docs/cluster.md for one machine."""

import os
import shutil
import signal
import subprocess

import pytest
import scratch

pytest.importorskip("dask_jobqueue")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not shutil.which("sbatch"), reason="needs Slurm")]


def test_ctrl_c_cancels_jobs_and_a_cancelled_job_runs_again(cluster, origin, tmp_path, monkeypatch):
    if subprocess.run(["sinfo"], capture_output=True).returncode:
        pytest.skip("Slurm is installed and does not answer")
    monkeypatch.setenv("DASK_JOBQUEUE__SLURM__MEMORY", "1GB")
    project, pid, go = origin("project"), tmp_path / "pid", tmp_path / "go"
    waits = f"{{ echo $SLURM_JOB_ID > {pid}; {scratch.WAITS.format(go=go)}; }}"
    scratch.write_stages(project, a=([], "true"), b=(["a"], waits))
    scratch.commit(project)
    words = ("reproduce", "--where", "slurm", "--jobs", "1")
    flow = scratch.start(project, *words, PREFECT_API_URL=cluster.url)
    stopped = scratch.number(pid)
    os.killpg(flow.pid, signal.SIGINT)
    _, err = flow.communicate(timeout=scratch.SECONDS)
    assert (flow.returncode, err.splitlines()[-1]) == (130, "error: stopped; run the same command again")
    listed = ["squeue", "--noheader", "--jobs", str(stopped)]
    scratch.wait_until(lambda: not subprocess.run(listed, capture_output=True, text=True).stdout)

    flow = scratch.start(project, *words, PREFECT_API_URL=cluster.url)
    scratch.wait_until(lambda: scratch.number(pid) != stopped)
    first = scratch.number(pid)
    subprocess.run(["scancel", str(first)], check=True)
    scratch.wait_until(lambda: scratch.number(pid) != first)
    go.touch()
    _, err = flow.communicate(timeout=scratch.SECONDS)
    assert flow.returncode == 0, err
    assert (project / "b").read_text() == "a\n"
    assert not list(project.glob("slurm-*.out"))
