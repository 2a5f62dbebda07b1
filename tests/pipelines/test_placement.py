"""Dask's workers and clusters: what they listen on, and with which certificates."""

import copy
import os
import sys
import threading

import dask
import distributed  # noqa: F401, its configuration
import pytest
from click.testing import CliRunner
from helpers import refusal

from pipelines import cluster, placement, stage


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(("words", "host"), [([], "127.0.0.1"), (["--host", "lab2"], "lab2")])
def test_a_dask_worker_listens_on_loopback_unless_a_host_is_named(monkeypatch, words, host):
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    commands = []
    monkeypatch.setattr(os, "execve", lambda _path, command, _environment: commands.append(command))
    options = ["workers", "--dask", "tcp://lab1:8786", "--name", "n", "--count", "2", *words]
    assert CliRunner().invoke(cluster.main, options).exit_code == 0
    worker = [sys.executable, "-m", "distributed.cli.dask_worker", "tcp://lab1:8786", "--host", host]
    assert commands == [[*worker, "--name", "n", "--no-dashboard", "--nworkers", "2", "--nthreads", "1"]]


def test_a_card_is_a_slot_by_its_uuid_and_a_slice_of_one_is_none(tmp_path, monkeypatch):
    slice_ = "  MIG 1g.18gb Device 0: (UUID: MIG-cc-3)"
    listed = f"GPU 0: NVIDIA H200 (UUID: GPU-aa-1)\n{slice_}\nGPU 1: NVIDIA H200 (UUID: GPU-bb-2)"
    write_command(tmp_path / "bin", monkeypatch, "nvidia-smi", f"cat <<END\n{listed}\nEND")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert placement.gpus() == ["GPU-aa-1", "GPU-bb-2"]
    one, two = ((f"{card}-0", {"CUDA_VISIBLE_DEVICES": card}) for card in ("GPU-aa-1", "GPU-bb-2"))
    assert placement.slots() == [one, two]
    assert [name for name, _ in placement.slots(3)] == ["GPU-aa-1-0", "GPU-bb-2-0", "GPU-aa-1-1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1, MIG-cc-3")  # as Slurm gives a card by its number
    assert placement.gpus() == ["GPU-bb-2", "MIG-cc-3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(placement, "cores", lambda: [2, 5])
    assert placement.slots(3) == [("cpu-2-0", {}), ("cpu-5-0", {}), ("cpu-2-1", {})]


def test_the_slots_of_a_machine_are_shared_by_all_that_run_on_it(project, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "one,two")
    monkeypatch.setattr(stage, "stopping", threading.Event())
    with placement.slot(project) as first, placement.slot(project, 3) as second:
        assert [first, second] == [(f"{one}-0", {"CUDA_VISIBLE_DEVICES": one}) for one in ("one", "two")]
        monkeypatch.setenv("LAMBDANET_SLOTS", "3")
        with placement.slot(project) as third:
            assert third == ("one-1", {"CUDA_VISIBLE_DEVICES": "one"})
            threading.Timer(1, stage.stopping.set).start()
            with pytest.raises(stage.StageError), placement.slot(project):
                pass


@pytest.mark.parametrize("kind", ["ssh", "slurm"])
def test_a_cluster_that_is_started_here_has_certificates(project, tmp_path, monkeypatch, kind):
    pytest.importorskip("dask_jobqueue")
    write_command(tmp_path / "bin", monkeypatch, "sbatch", "exit 0")
    before = copy.deepcopy(dask.config.get("distributed.comm"))
    with dask.config.set({"distributed.comm": before}):
        settings = placement._ssh(["a"]) if kind == "ssh" else placement._slurm("a", 1)
        found = settings["cluster_kwargs"]
        assert found["scheduler_options"]["dashboard_address"] == "127.0.0.1:0"
        if kind == "ssh":
            security = found["security"]
            assert security.require_encryption
            assert security.tls_worker_key.startswith("-----BEGIN PRIVATE KEY-----")
            tls = dask.config.get("distributed.comm.tls")
            assert tls["ca-file"] == tls["worker"]["cert"] == security.tls_ca_file
            assert tls["scheduler"]["key"] == security.tls_scheduler_key
        else:  # nothing listens on all addresses, and jobs write no files among the project's
            assert found["security"] is True
            assert found["worker_extra_args"] == ["--no-dashboard"]
            assert found["job_script_prologue"] == ["export LAMBDANET_SLOTS=1"]
            assert found["log_directory"] == str(project / ".dvc/tmp/lambdanet/slurm")


@pytest.mark.usefixtures("project")
def test_a_job_that_slurm_refuses_is_an_error_at_once(tmp_path, monkeypatch):
    pytest.importorskip("dask_jobqueue")
    refuses = "grep -q -- '-p long' && echo invalid partition >&2; exit 1"
    write_command(tmp_path / "bin", monkeypatch, "sbatch", refuses)
    assert "refuses the job: invalid partition" in refusal(placement.task_runner, "slurm:long", 1, 1)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "needs the command sbatch" in refusal(placement.task_runner, "slurm", 1, 1)


def write_command(folder, monkeypatch, name, script):
    """A command that is this shell script."""
    folder.mkdir()
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join([str(folder), os.environ["PATH"]]))
