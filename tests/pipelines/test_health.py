"""What `lambdanet doctor` finds of a clone and of a cluster, with each fault made on purpose."""

import http.server
import json
import os
import subprocess
import sys
import threading
import time
from typing import ClassVar

import pytest
import yaml
from helpers import PARAMS, ROOT

from pipelines import cluster, health, profiles, versions


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A little project with data in DVC's cache; the current folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(PARAMS, sort_keys=False))
    make = "mkdir -p data/tiny/clean && printf one > data/tiny/clean/a && printf two > data/tiny/clean/b"
    stages = {"download@tiny": {"cmd": make, "outs": ["data/tiny/clean"]}}
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"download": {
        "matrix": {"profile": ["tiny"]}, "cmd": stages["download@tiny"]["cmd"], "outs": ["data/tiny/clean"],
    }}}))  # fmt: skip
    for words in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(words, check=True)
    subprocess.run([sys.executable, "-m", "dvc", "repro", "-q"], check=True)
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@localhost"]
    subprocess.run([*git, "add", "-A"], check=True)
    subprocess.run([*git, "commit", "-qm", "one"], check=True)
    return tmp_path


def found(lines, text):
    """The one finding that holds a text."""
    matching = [line for line in lines if text in line[1]]
    assert len(matching) == 1, lines
    return matching[0]


def test_a_healthy_clone_has_nothing_bad(project):
    lines = list(health.clone(fix=False))
    assert {level for level, _, _ in lines} == {"ok"}
    assert found(lines, "data/tiny/clean")[1] == "data/tiny/clean is intact"
    assert list(health.servers()) == [("ok", "no cluster is named", "")]


def test_a_flipped_byte_in_the_data_is_named_and_the_advice_helps(project):
    file = project / "data/tiny/clean/a"
    os.chmod(file, 0o644)
    before = file.stat()
    file.write_text("One")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # as a disk does it
    level, what, advice = found(list(health.clone(fix=False)), "clean/a")
    assert (level, what) == ("BAD", "data/tiny/clean/a is damaged")
    remedy, _, rest = advice.partition("; ")
    subprocess.run(remedy, shell=True, check=True)
    subprocess.run([sys.executable, "-m", "dvc", "repro", "-q"], check=True)
    assert rest.startswith("dvc repro")
    assert file.read_text() == "one"
    assert {level for level, _, _ in health.clone(fix=False)} == {"ok"}


def test_data_that_is_not_there_is_no_fault(project):
    subprocess.run(["rm", "-rf", "data"], check=True)
    assert found(list(health.clone(fix=False)), "data/tiny/clean")[0] == "note"


@pytest.mark.parametrize(
    ("path", "damaged"),
    [("dvc.lock", "stages:\n  download@tiny:\n    cm"), (".dvc/tmp/rwlock", '{"/x": {"re')],
)
def test_damaged_lock_files_are_named_and_mended(project, path, damaged):
    before = (project / path).read_text() if path == "dvc.lock" else ""
    (project / path).write_text(damaged)
    level, what, advice = found(list(health.clone(fix=False)), path)
    assert (level, advice) == ("BAD", "`lambdanet doctor --fix`, while no dvc runs")
    assert "cut off" in what
    level, _, advice = found(list(health.clone(fix=True)), path)
    assert (level, path in advice) == ("ok", True)
    assert ((project / path).read_text() if (project / path).exists() else "") == before
    assert {level for level, _, _ in health.clone(fix=False)} == {"ok"}


def commit(message):
    subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "-qam", message])


@pytest.mark.parametrize("fix", [False, True])
def test_a_merge_conflict_in_dvc_lock_is_named_and_left_alone(project, fix):
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@localhost"]
    lock = project / "dvc.lock"
    text = lock.read_text()
    subprocess.run([*git, "checkout", "-qb", "other"], check=True)
    lock.write_text(text.replace("cmd: mkdir", "cmd: true; mkdir"))
    commit("theirs")
    subprocess.run([*git, "checkout", "-q", "-"], check=True)
    lock.write_text(text.replace("cmd: mkdir", "cmd: false; mkdir"))
    commit("ours")
    assert subprocess.run([*git, "merge", "other"], capture_output=True).returncode == 1
    conflict = lock.read_bytes()
    assert b"<<<<<<< HEAD" in conflict
    level, what, advice = found(list(health.clone(fix=fix)), "dvc.lock")
    assert (level, what) == ("BAD", "dvc.lock is in a merge conflict and was left as it is")
    assert advice.startswith("choose a side (`git checkout --ours dvc.lock` or `--theirs`) or edit it")
    assert lock.read_bytes() == conflict
    with pytest.raises(ValueError, match=r"^dvc.lock is in a merge conflict: choose a side"):
        profiles.read_lock(lock.read_text())


def test_a_damaged_dvc_lock_is_kept_whatever_git_has(project):
    lock, damaged = project / "dvc.lock", "stages:\n  download@tiny:\n    cm"
    lock.write_text(damaged)
    commit("the damaged one too")
    _, _, advice = found(list(health.clone(fix=True)), "dvc.lock was cut off")
    assert "no whole one is committed, moved away" in advice
    assert not lock.exists()
    assert (project / ".dvc/tmp/dvc.lock.damaged").read_text() == damaged


def test_old_half_written_files_are_removed_and_young_ones_kept(project):
    old, young = project / ".dvc/cache/files/md5/aa/x.tmp", project / "data/.new.part"
    for path in (old, young):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 10**6)
    os.utime(old, (0, 0))
    level, what, _ = found(list(health.clone(fix=False)), "half-written")
    assert (level, what) == ("note", "1 half-written files of more than a day ago, 1 MB")
    assert old.exists()
    found(list(health.clone(fix=True)), "half-written")
    assert not old.exists()
    assert young.exists()


def test_profiles_that_push_and_gc_would_miss_are_named(project):
    lock = yaml.safe_load((project / "dvc.lock").read_text())
    lock["stages"]["plot@other"] = {"cmd": "true"}
    (project / "dvc.lock").write_text(yaml.safe_dump(lock))
    profiles = PARAMS["profiles"] | {"other": PARAMS["profiles"]["tiny"]}
    (project / "params.yaml").write_text(yaml.safe_dump(PARAMS | {"profiles": profiles}, sort_keys=False))
    level, what, advice = found(list(health.clone(fix=False)), "is active")
    assert (level, what) == ("note", "profile tiny is active; dvc.lock also has other")
    assert "make push" in advice


def test_a_remote_that_does_not_answer_is_named(project):
    subprocess.run(
        [sys.executable, "-m", "dvc", "remote", "add", "-q", "-d", "r", "ssh://127.0.0.1:9/x"], check=True
    )
    assert found(list(health.clone(fix=False)), "DVC remote")[0] == "BAD"


def test_other_versions_than_the_locked_are_named(project):
    (project / "requirements.lock").write_text(
        'torch==1.0.0 \\\n    --hash=sha256:0\nnumpy==0.1 ; python_version < "3" \\\n    --hash=sha256:0\n'
    )
    level, what, _ = found(list(health.clone(fix=False)), "locked")
    assert level == "note"
    assert what.endswith("locked is 1.0.0")
    assert "numpy" not in what


def test_the_lock_file_of_this_project_can_be_read():
    said = versions.differences(ROOT / "requirements.lock")
    assert all(" locked is " in one for one in said.split(", ") if one.startswith("torch "))


class Answers(http.server.BaseHTTPRequestHandler):
    """A Prefect server of which only what `answers` holds is there."""

    answers: ClassVar[dict] = {}

    def do_GET(self):
        self._send(200 if "health" in self.path else 404, True)

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        path = self.path.removeprefix("/api/")
        self._send(200 if path in self.answers else 404, self.answers.get(path))

    def _send(self, status, body):
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def server(project, monkeypatch):
    (project / "prefect.yaml").write_bytes((ROOT / "prefect.yaml").read_bytes())
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        monkeypatch.setenv("PREFECT_API_URL", f"{address}/api")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        yield Answers
        server.shutdown()


def everything(head):
    def worker(name, status="ONLINE"):
        return {"name": name, "status": status}

    return {
        "work_pools/filter": [{"name": cluster.POOL}, {"name": cluster.FLOWS_POOL}],
        "deployments/filter": [{"name": name} for name in ("grid", "cell", "worker", "experiment")],
        "automations/filter": [{"name": one, "enabled": True} for one in (cluster.LOST, cluster.TAKEN_UP)],
        f"work_pools/{cluster.POOL}/workers/filter": [
            worker(f"gpu1-0 {head} {versions.queue()}"), worker("gone a b", "OFFLINE"),
        ],
        f"work_pools/{cluster.FLOWS_POOL}/workers/filter": [worker(f"lab1-flows {head} {versions.queue()}")],
    }  # fmt: skip


def head():
    return subprocess.run(
        ["git", "rev-parse", "--short=8", "HEAD"], capture_output=True, text=True
    ).stdout.strip()


def test_a_whole_cluster_is_well(server):
    server.answers = everything(head())
    lines = list(health.servers())
    assert {level for level, _, _ in lines} == {"ok"}, lines
    assert found(lines, "gpu1-0")
    assert not any("gone" in what for _, what, _ in lines)


def test_what_a_cluster_lacks_is_named(server):
    server.answers = everything(head()) | {
        "deployments/filter": [{"name": "grid"}],
        "automations/filter": [{"name": cluster.LOST, "enabled": False}],
        f"work_pools/{cluster.FLOWS_POOL}/workers/filter": [],
        f"work_pools/{cluster.POOL}/workers/filter": [
            {"name": f"old 00000000 {versions.queue()}", "status": "ONLINE"},
            {"name": f"odd {head()} python3.9-torch1.0-0", "status": "ONLINE"},
        ],
    }
    lines = list(health.servers())
    level, what, advice = found(lines, "Prefect lacks")
    assert level == "BAD"
    assert "deployment cell, deployment experiment, deployment worker, automation" in what
    assert advice == "python -m pipelines.cluster init"
    assert found(lines, "no worker of pool lambdanet-flows")[0] == "BAD"
    assert "another commit" in found(lines, "worker old")[1]
    assert "other versions" in found(lines, "worker odd")[1]


def test_servers_that_are_away_are_named(project, monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    began = time.monotonic()
    lines = list(health.servers())
    assert [level for level, _, _ in lines] == ["BAD", "BAD"]
    assert time.monotonic() - began < 5
