"""The flow `train`: one training in a workspace of its own; several, and twice the same, at once."""

import contextlib
import logging
import os
import signal
import subprocess
import weakref
from types import SimpleNamespace

import cloudpickle
import pytest
import scratch
import yaml
from prefect.flows import load_flow_from_entrypoint
from prefect.states import Completed, Failed
from prefect.utilities.schema_tools.validation import ValidationError, validate

from pipelines import flows, graph, placement, stage, workspace

THERE = "there are gaussian-01-cnn, gaussian-01-deep-cnn, speckle-cnn, speckle-deep-cnn"
TRAIN = ["train", "speckle", "cnn", "--profile", "small"]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with scratch.Cluster(tmp_path_factory.mktemp("server")) as started:
        yield {"PREFECT_API_URL": started.url}


@pytest.fixture
def project(project, server, monkeypatch):
    monkeypatch.setattr(scratch, "SERVER", server)
    scratch.profiles(project)
    return project


def test_a_training_leaves_the_folder_alone_and_its_result_in_the_cache(project):
    (project / "train.sh").write_text(f"echo $$ >> {project}/ran\n")
    scratch.commit(project)
    (project / "source").write_text("not committed\n")
    assert scratch.run(project, *TRAIN)[0] == 0
    assert scratch.git(project, "status", "--porcelain").splitlines() == ["M source", "?? ran"]
    assert scratch.run(project, *TRAIN)[0] == 0  # there already
    (project / "source").write_text("source\n")
    scratch.repro(project, "small/dvc.yaml:train@speckle-cnn-0")
    assert len((project / "ran").read_text().split()) == 1
    assert (project / "small-speckle-cnn-0").read_text() == "1\n"

    # Another value, and another seed than the profile's, are experiments.
    status, _, err = scratch.run(project, *TRAIN, "--set", "rate=7", "--seed", "3")
    assert status == 0, err
    (name,) = scratch.git(project, "for-each-ref", "--format=%(refname)", "refs/exps").split()
    assert name.rpartition("/")[2].startswith("speckle-cnn-3-")
    for file, key, value in (("params.yaml", "rate", 7), ("small/profile.yaml", "seeds", [3])):
        assert yaml.safe_load(scratch.git(project, "show", f"{name}:{file}"))[key] == value
    assert scratch.run(project, *TRAIN, "--set", "rate=7", "--seed", "3")[0] == 0
    assert len((project / "ran").read_text().split()) == 2


def test_an_experiment_is_delivered_to_another_clone(project, tmp_path):
    origin, other = tmp_path / "origin.git", tmp_path / "other"
    scratch.dvc(project, "remote", "add", "-d", "r", str(tmp_path / "remote"))
    scratch.commit(project)
    scratch.git(project, "clone", "--quiet", "--bare", ".", str(origin))
    scratch.git(project, "remote", "add", "origin", str(origin))
    status, _, err = scratch.run(project, *TRAIN, "--seed", "5", "--set", "rate=7")
    assert status == 0, err
    scratch.git(project, "clone", "--quiet", str(origin), str(other))
    scratch.git(other, "fetch", "--quiet", "origin", "refs/exps/*:refs/exps/*")
    (reference,) = scratch.git(other, "for-each-ref", "--format=%(refname)", "refs/exps").split()
    scratch.git(other, "checkout", "--quiet", "--detach", reference)
    scratch.dvc(other, "pull", "-q", "small/dvc.yaml:train@speckle-cnn-5")
    assert (other / "small-speckle-cnn-5").read_text() == "7\n"


def test_two_of_the_same_at_once_train_once_and_a_killed_one_resumes(project):
    waits = f"touch checkpoint; echo $$ > {project}/pid; sleep 1234"
    (project / "train.sh").write_text(f"echo $$ >> {project}/ran; test -e checkpoint || {{ {waits}; }}\n")
    scratch.commit(project)
    process = scratch.start(project, *TRAIN)
    pid = scratch.number(project / "pid")
    # With its Prefect; the kernel ends `dvc`, in a group of its own, and a real training notices that.
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    scratch.wait_until(lambda: not scratch.has_parent(pid, "dvc"))
    os.kill(pid, signal.SIGKILL)
    scratch.wait_until(lambda: not scratch.lives(pid))
    both = [scratch.start(project, *TRAIN) for _ in range(2)]
    assert [process.communicate(timeout=scratch.SECONDS) and process.returncode for process in both] == [0, 0]
    assert len((project / "ran").read_text().split()) == 2  # the killed one, and one from its checkpoint
    assert not scratch.lives(pid)


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system, which only root can")
def test_with_the_remote_away_and_then_full_nothing_is_trained_twice(project, tmp_path):
    remote, away = tmp_path / "remote", tmp_path / "away"
    remote.mkdir()
    scratch.git(project, "remote", "add", "origin", str(project))
    scratch.dvc(project, "remote", "add", "-d", "r", str(remote / "dvc"))
    # The training takes it away: a file in its place cannot be written to.
    takes = f"echo $$ >> {project}/ran; test -e {away} || {{ mv {remote} {away}; touch {remote}; }}"
    (project / "train.sh").write_text(f"{takes}\n")
    scratch.commit(project)
    process = scratch.start(project, *TRAIN)
    lines = iter(process.stderr.readline, "")
    assert "pushing failed" in next(line for line in lines if "Retry 1/60" in line)
    remote.unlink()
    remote.mkdir()
    process.communicate(timeout=scratch.SECONDS)
    assert (process.returncode, len((project / "ran").read_text().split())) == (0, 1)
    assert list((remote / "dvc/files/md5").glob("*/*"))

    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(remote)], check=True)
    try:
        with pytest.raises(OSError, match="No space left"):
            (remote / "fill").write_bytes(bytes(2**17))
        status, _, err = scratch.run(project, *TRAIN, "--seed", "5")
        assert status == 1
        assert "\nerror: pushing failed: No space left" in err
        (remote / "fill").unlink()
        made = {*(remote / "dvc/files/md5").glob("*/*")}
        status, _, err = scratch.run(project, *TRAIN, "--seed", "5")
        assert status == 0, err
        assert {*(remote / "dvc/files/md5").glob("*/*")} > made
    finally:
        subprocess.run(["umount", str(remote)], check=True)
    assert len((project / "ran").read_text().split()) == 2


@pytest.mark.parametrize(("words", "said"), [
    (["train", "rain", "cnn"], f"error: dvc.yaml has no training of 'cnn' on 'rain'; {THERE}"),
    (["train", "rain", "cnn", "--revision", "HEAD"], "error: dvc.yaml has no training of 'cnn' on "),
    (["train", "speckle", "cnn", "--revision", "nowhere"], "error: there is no revision 'nowhere'"),
    (["train", "speckle", "cnn", "--revision", "--all"], "error: '--all' is no revision of git"),
    ([*TRAIN, "--set", "rate"], "error: "),
])  # fmt: skip
def test_what_cannot_be_trained_is_one_line(project, words, said):
    status, _, err = scratch.run(project, *words, PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL="CRITICAL")
    assert status == 1
    assert err.splitlines()[-1].startswith(said)
    assert "Traceback" not in err
    if "there are" in said:
        assert not (project / ".cluster").exists()
        assert not (project / ".dvc/tmp/lambdanet/workspaces").exists()


@pytest.mark.parametrize("profile", ["profile.yaml", "sample/profile.yaml", "quick/profile.yaml"])
def test_models_share_no_mapping_of_a_profile_which_dvc_would_override_for_both(profile):
    settings = yaml.safe_load((scratch.ROOT / profile).read_text())["train"].values()
    mappings = [id(value) for one in settings for value in one.values() if isinstance(value, dict)]
    assert len({*mappings}) == len(mappings)


def test_prefect_yaml_names_flows_that_are_there_with_described_parameters_and_a_schedule_that_is_off():
    described = yaml.safe_load((scratch.ROOT / "prefect.yaml").read_text())["deployments"]
    assert [one["name"] for one in described] == ["reproduce", "train"]
    for one in described:
        flow = load_flow_from_entrypoint(str(scratch.ROOT / one["entrypoint"]))
        schema = flow.parameters.model_dump()
        assert set(one["parameters"]) <= set(schema["properties"])
        assert all(field.get("description") for field in schema["properties"].values())
        assert [schedule["active"] for schedule in one["schedules"]] == [False]
        for profile in ("paper", "quick"):  # as Prefect's server checks a run
            validate(one["parameters"] | {"profile": profile}, schema, raise_on_error=True)
        with pytest.raises(ValidationError, match="'pape' is not one of"):
            validate(one["parameters"] | {"profile": "pape"}, schema, raise_on_error=True)
    properties = flow.parameters.model_dump()["properties"]
    assert properties["model"]["enum"] == graph.names("models")
    assert properties["noise"]["enum"] == graph.names("noises")
    assert properties["profile"]["enum"] == list(graph.profiles(scratch.ROOT))
    assert properties["seed"]["type"] == "integer"


def test_tags_are_the_kind_the_noise_and_the_model():
    assert flows.tags("train@speckle-lambdanet-u4-m7-0") == ["train", "speckle", "lambdanet-u4-m7"]
    assert flows.tags("sample/dvc.yaml:corrupt@salt-and-pepper") == ["corrupt", "salt-and-pepper"]
    assert flows.tags("plot") == ["plot"]


def test_a_stage_that_was_killed_or_found_dvc_busy_is_tried_again_and_nothing_else():
    def may_pass(error, tries):
        return flows._may_pass(None, SimpleNamespace(run_count=tries), Failed(data=error))

    killed, away = (stage.StageError("x", retries) for retries in (stage.RETRIES, stage.AWAY_RETRIES))
    assert [may_pass(killed, 4), may_pass(killed, 5), may_pass(away, 50)] == [True, False, True]
    assert not any(may_pass(error, 1) for error in (stage.StageError("x"), TypeError("x")))


def test_a_worker_without_the_folder_that_the_first_one_sees_refuses_the_stage(tmp_path, monkeypatch):
    monkeypatch.setattr(flows, "get_run_logger", logging.getLogger)
    order = flows.Order(tmp_path, 60, sign=str(tmp_path / "sign"), commit="c")
    with pytest.raises(stage.StageError, match=f"a was not run: .* does not see {tmp_path}, as the first"):
        flows._run_stage("a", order)


@pytest.mark.parametrize(("origin", "retries"), [("git://127.0.0.1:1/x", stage.AWAY_RETRIES), ("nowhere", 0)])
def test_what_needs_origin_is_tried_again_while_it_is_away(project, monkeypatch, origin, retries):
    scratch.git(project, "remote", "add", "origin", origin)
    monkeypatch.setattr(flows, "get_run_logger", logging.getLogger)
    monkeypatch.setattr(placement, "while_wanted", contextlib.nullcontext)  # this is no Dask worker
    monkeypatch.setattr(workspace, "FETCH_WAITS", ())
    monkeypatch.setattr(workspace, "experiment", lambda _folder, _name: "HEAD")
    monkeypatch.setenv("LAMBDANET_CLONE", str(project))
    order = flows.Order(project, 60, sign=str(project / "sign"), commit=40 * "0", key="key")
    for call in (
        lambda: flows._run_stage("a", order),
        lambda: flows.deliver.fn("experiment", project, everywhere=True),
    ):
        with pytest.raises((ValueError, stage.StageError), match="git origin cannot be reached") as caught:
            call()
        assert getattr(caught.value, "retries", 0) == retries


def test_workers_refuse_a_graph_that_needs_what_dvc_does_not_exchange(project, monkeypatch):
    for module, name in ((workspace, "check_pushed"), (flows.exchange, "Archive")):
        monkeypatch.setattr(module, name, lambda *_words: None)
    runner = SimpleNamespace(submit=lambda *_words: SimpleNamespace(result=lambda: False))  # nothing shared
    wanted = graph.Graph({"a": frozenset(), "b": frozenset("a")}, {"a": "changed"}, frozenset("a"))
    with pytest.raises(ValueError, match="a was not run, and DVC does not exchange its outputs"):
        flows._run_on_workers(runner, wanted, "paper", flows.Order(project, 60), lambda *_words: None)


def test_dask_can_send_the_flow_and_its_tasks_to_a_worker():
    sent = (flows.reproduce, flows.is_shared, flows.run_stage.with_options(tags=["train"]))
    names = [one.name for one in cloudpickle.loads(cloudpickle.dumps(sent))]
    assert names == ["reproduce", "look for a shared file system", "stage"]


def test_the_future_of_a_stage_that_has_ended_is_not_kept():
    """Dask runs a stage again whose result a lost worker held, as long as there is a future of it."""
    futures, alive = {}, {}

    class Done:
        state, wait = Completed(), print

        def add_done_callback(self, call):
            call(self)

        def result(self, raise_on_failure):
            return "done"

    def submit(_task, parameters, wait_for):
        name, made = parameters["name"], Done()
        alive[name] = [one for one, future in futures.items() if future() is not None]
        assert all(state.is_completed() for state in wait_for)
        futures[name] = weakref.ref(made)
        return made

    stages = {"a": frozenset(), "b": frozenset("a"), "c": frozenset("ab")}
    ended = flows.run_all(SimpleNamespace(submit=submit), flows.run_stage, stages, print)
    assert (ended, alive) == ({"a": "done", "b": "done", "c": "done"}, {"a": [], "b": [], "c": []})
