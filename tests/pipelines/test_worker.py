"""What a worker does with a remote that comes and goes, and what Prefect's pages are told."""

import json

import pytest
from helpers import ROOT

from pipelines import showing, stage, worker


def test_it_tries_until_it_works_and_says_why_it_waits(monkeypatch):
    slept, said, tries = [], [], []
    monkeypatch.setattr(worker.time, "sleep", slept.append)

    def call():
        tries.append(None)
        if len(tries) < 4:
            raise OSError("no space left\non device")
        return "done"

    assert worker.patiently(call, "pushing it", said.append) == "done"
    assert slept == [2, 5, 10]
    assert said[0] == "pushing it failed (OSError: no space left on device); again in 2 s"


def test_after_an_hour_it_gives_up_as_something_that_may_pass(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(worker.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(worker.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + 60 * seconds))

    def call():
        raise OSError("gone")

    with pytest.raises(stage.PassingError, match=r"pushing it failed for an hour \(OSError: gone\)"):
        worker.patiently(call, "pushing it", lambda _text: None)


def test_a_worker_has_its_name_from_who_started_it(monkeypatch):
    monkeypatch.setenv("LAMBDANET_WORKER", "gpu1-3")
    assert worker.worker() == "gpu1-3"
    monkeypatch.delenv("LAMBDANET_WORKER")
    assert worker.worker()


@pytest.mark.parametrize(
    ("text", "percent"),
    [
        ("epoch 5/50: loss 0.01, 20.00 dB", 10.0),
        ("step 1,000 of 4,000: loss 0.01", 25.0),
        ("going on from epoch 1.5 of 3", 50.0),
        ("", 0.0),
        ("epoch 3/0", 0.0),
        ("epoch 9/3", 100.0),
    ],
)
def test_how_far_a_stage_is(text, percent):
    assert showing.percent(text) == percent


def test_keys_have_lower_case_digits_and_dashes():
    assert showing.key("train@sample-Speckle_x-0", "progress") == "train-sample-speckle-x-0-progress"


def test_what_is_called_again_and_again_may_fail_and_ends_with_the_block():
    calls = []

    def call():
        calls.append(None)
        raise OSError

    with showing.every(0.01, call):
        while len(calls) < 3:
            pass
    count = len(calls)
    assert not showing.threading.Event().wait(0.05)
    assert len(calls) == count


def test_a_cell_is_shown_beside_the_paper_and_what_is_none_is_not(tmp_path, monkeypatch):
    made, said = [], []
    monkeypatch.setattr(showing, "create_table_artifact", lambda table, **_: made.append(table))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lambdanet").symlink_to(ROOT / "lambdanet")
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    for name in ("download@quick", "corrupt@quick-speckle", "plot@quick"):
        showing.result_artifacts(name, "quick", said.append)
    assert made == said == []
    showing.result_artifacts("evaluate@quick-speckle-dncnn-0", "quick", said.append)
    assert made == []
    assert "history.csv cannot be read" in said.pop()
    score = json.loads((ROOT / "results/quick/scores/speckle-dncnn-0.json").read_text())
    digests = dict.fromkeys(("clean_sha256", "noisy_sha256", "weights_sha256"), "e" * 64)
    (tmp_path / "scores/quick").mkdir(parents=True)
    (tmp_path / "scores/quick/speckle-dncnn-0.json").write_text(json.dumps(score | digests))
    showing.result_artifacts("evaluate@quick-speckle-dncnn-0", "quick", said.append)
    assert said == []
    ((row,),) = made
    assert (row["PSNR (dB)"], row["paper"], row["noise"]) == (round(score["psnr"], 2), 26.41, "speckle")
