"""Dask's workers and clusters: what they listen on, and with which certificates."""

import copy
import os
import sys

import dask
import distributed  # noqa: F401, its configuration
import pytest
import scratch
from click.testing import CliRunner

from pipelines import cluster, placement


@pytest.mark.parametrize(("words", "host"), [([], "127.0.0.1"), (["--host", "lab2"], "lab2")])
def test_a_dask_worker_listens_on_loopback_unless_a_host_is_named(tmp_path, monkeypatch, words, host):
    monkeypatch.chdir(scratch.project(tmp_path / "project"))
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    commands = []
    monkeypatch.setattr(os, "execve", lambda _path, command, _environment: commands.append(command))
    options = ["workers", "--dask", "tcp://lab1:8786", "--name", "n", "--count", "2", *words]
    assert CliRunner().invoke(cluster.main, options).exit_code == 0
    worker = [sys.executable, "-m", "distributed.cli.dask_worker", "tcp://lab1:8786", "--host", host]
    assert commands == [[*worker, "--name", "n", "--no-dashboard", "--nworkers", "2", "--nthreads", "1"]]


@pytest.mark.parametrize("kind", ["ssh", "slurm"])
def test_a_cluster_that_is_started_here_has_certificates(tmp_path, monkeypatch, kind):
    pytest.importorskip("dask_jobqueue")
    monkeypatch.chdir(scratch.project(tmp_path / "project"))
    before = copy.deepcopy(dask.config.get("distributed.comm"))
    with dask.config.set({"distributed.comm": before}):
        found = placement._dask(kind, "a", 1)["cluster_kwargs"]
        security = found["security"]
        assert security.require_encryption
        assert security.tls_worker_key.startswith("-----BEGIN PRIVATE KEY-----")
        assert found["scheduler_options"]["dashboard_address"] == "127.0.0.1:0"
        if kind == "ssh":
            tls = dask.config.get("distributed.comm.tls")
            assert tls["ca-file"] == tls["worker"]["cert"] == security.tls_ca_file
            assert tls["scheduler"]["key"] == security.tls_scheduler_key
