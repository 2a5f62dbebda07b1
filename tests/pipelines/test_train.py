"""The flow `train` as Prefect's pages see it, and what it refuses before anything is asked for."""

import pytest
import yaml
from helpers import ROOT
from prefect.utilities.callables import parameter_schema

from pipelines import choices, clone, grid, train, worker

GIVEN = {"noise": "speckle", "model": "autoencoder", "profile": "sample"}


def fields(flow):
    return parameter_schema(flow).model_dump()["properties"]


def options(field):
    return field["enum"]


def test_the_forms_have_drop_downs_of_what_is_in_params_yaml():
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    shown = fields(train.train)
    assert options(shown["noise"]) == list(params["noises"])
    assert options(shown["model"]) == list(params["models"])
    assert options(shown["profile"]) == list(params["profiles"])
    assert options(fields(grid.reproduce)["profile"]) == list(params["profiles"])


@pytest.mark.parametrize("flow", [train.train, grid.reproduce, worker.stage, worker.experiment])
def test_every_parameter_is_described(flow):
    assert all(len(field.get("description", "")) > 10 for field in fields(flow).values()), fields(flow)
    assert flow.description


def test_the_deployments_are_of_flows_that_exist_and_name_their_parameters():
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    flows = {one["entrypoint"]: one for one in deployments}
    found = {"grid": grid.reproduce, "train": train.train}
    for entrypoint, one in flows.items():
        path, _, name = entrypoint.partition(":")
        assert (ROOT / path).is_file()
        flow = found.get(path.split("/")[1].removesuffix(".py")) or getattr(worker, name)
        assert flow.fn.__name__ == name
        assert set(one.get("parameters", {})) <= set(fields(flow))
    names = {f"{one['entrypoint'].partition(':')[2]}/{one['name']}" for one in deployments}
    assert {grid.DEPLOYMENT, train.DEPLOYMENT} <= names


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"overrides": ["train.loss"]}, "'train.loss' is no KEY=VALUE without spaces"),
        ({"overrides": ["--force=1 2"]}, "is no KEY=VALUE"),
        ({"overrides": ["train.loss=bce"], "experiment": "no/good"}, "letters, digits and dashes only"),
        ({"overrides": ["train.loss=bce"], "revision": "nothing"}, "origin has no revision 'nothing'"),
        ({"seed": 7, "revision": "nothing"}, "origin has no revision 'nothing'"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(monkeypatch, changes, said):
    def resolve(revision):
        if revision == "nothing":
            raise clone.CloneError("origin has no revision 'nothing'")
        return "c0ffee"

    monkeypatch.setattr(clone, "resolve", resolve)
    state = train.train.fn(**GIVEN | changes)
    assert state.is_failed()
    assert said in state.message
    assert "\n" not in state.message


def test_an_order_for_an_experiment_is_what_dvc_is_told():
    order = worker.Order("evaluate@x", "quick", "c0ffee", 1.0, "bold-try", ("a.b=1", "c=2"))
    assert order.words == (
        "exp", "run", "--pull", "--name", "bold-try", "--set-param", "a.b=1", "--set-param", "c=2",
    )  # fmt: skip
    assert order.deliveries == [("exp", "push", "--force", "origin", "bold-try")]
    assert order.name == "bold-try"
    stage = worker.Order("evaluate@x", "quick", "c0ffee", 1.0)
    assert (stage.name, stage.words) == ("evaluate@x", ("repro", "--pull"))
    assert stage.deliveries == [("push", "--run-cache", "--with-deps", "evaluate@x")]


def test_seeds_of_the_grid_need_no_experiment():
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    assert choices.seeds("sample") == params["seeds"] == [0]
    assert choices.seeds("paper") == params["profiles"]["paper"]["seeds"] == [0, 1, 2]
