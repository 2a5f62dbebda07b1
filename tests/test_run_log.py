import json
import platform
import re
import resource
import sys
from datetime import UTC, datetime, timedelta

import pytest
import torch

from lambdanet.devices import describe_device
from lambdanet.run_log import Log, find_record, read_records

CPU = torch.device("cpu")
DETAILS = {"task": "train", "noise": "speckle", "description": {"model": {"width": 4}, "seeds": [0]}}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.json"


def row(epoch):
    return {"epoch": epoch, "loss": 1 / epoch}


def rewritten(path, **changes):
    """The last record, changed as an earlier process could have left it."""
    records = read_records(path)
    records[-1] |= changes
    path.write_text(json.dumps(records))


def epochs(record):
    return [one["epoch"] for one in record["history"]]


def test_record_is_there_from_the_beginning(path):
    before = datetime.now(UTC)
    Log(path, CPU, **DETAILS)
    (record,) = read_records(path)
    assert {key: record[key] for key in DETAILS} == DETAILS
    assert (record["finished"], record["history"]) == (None, [])
    assert "weights_sha256" not in record
    assert (record["device"], record["python"]) == (describe_device(CPU), platform.python_version())
    assert record["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert record["seconds"] >= 0
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", record["started"])
    assert before <= datetime.fromisoformat(record["started"]) + timedelta(milliseconds=1)


def test_epochs_and_the_end_are_written_at_once(path):
    log = Log(path, CPU, **DETAILS)
    for epoch, seconds in ((1, None), (2, 0.5)):
        log.epoch(row(epoch), seconds)
        (record,) = read_records(path)
        assert epochs(record) == list(range(1, epoch + 1))
        *_, last = record["history"]
        assert (last["loss"], last["seconds"]) == (1 / epoch, seconds)
        assert record["started"] <= last["finished"]
        assert record["finished"] is None
    log.finish("ab")
    (record,) = read_records(path)
    assert record["weights_sha256"] == "ab"
    assert record["finished"] >= last["finished"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    assert 0.5 * peak < record["peak_memory_bytes"] <= peak


def test_a_killed_record_is_continued_and_its_seconds_add_up(path):
    log = Log(path, CPU, **DETAILS)
    log.epoch(row(1), 0.1)
    rewritten(path, seconds=1000.0, started="2026-01-01T00:00:00.000Z", device="another", commit="older")
    log = Log(path, CPU, **DETAILS)
    (record,) = read_records(path)
    assert 1000 <= record["seconds"] < 1600
    assert record["started"] == "2026-01-01T00:00:00.000Z"
    assert (record["device"], epochs(record)) == (describe_device(CPU), [1])
    assert record["commit"] != "older"
    log.epoch(row(2), 0.1)
    log.finish("ab")
    (record,) = read_records(path)
    assert 1000 <= record["seconds"] < 1600
    assert epochs(record) == [1, 2]


def test_repeated_epoch_takes_the_place_of_what_came_after_it(path):
    """A checkpoint may be older than the last epochs, or may not be usable at all."""
    log = Log(path, CPU, **DETAILS)
    for epoch in (1, 2, 3, 4):
        log.epoch(row(epoch), 0.1)
    log = Log(path, CPU, **DETAILS)
    log.epoch(row(3), 0.3)
    (record,) = read_records(path)
    assert [(one["epoch"], one["seconds"]) for one in record["history"]] == [(1, 0.1), (2, 0.1), (3, 0.3)]
    Log(path, CPU, **DETAILS).epoch(row(1), 0.4)
    assert epochs(read_records(path)[0]) == [1]


@pytest.mark.parametrize("changed", [{"noise": "gaussian-01"}, {"description": {}}, {"data": {"images": 1}}])
def test_a_record_of_something_else_is_not_continued(path, changed):
    Log(path, CPU, **DETAILS).epoch(row(1), 0.1)
    rewritten(path, seconds=1000.0, started="2026-01-01T00:00:00.000Z")
    Log(path, CPU, **DETAILS | changed)
    (record,) = read_records(path)
    assert record["seconds"] < 600
    assert record["started"] > "2026-01-01T00:00:00.000Z"
    assert record["history"] == []


def test_finished_records_are_kept(path):
    for digest in ("ab", "cd"):
        log = Log(path, CPU, **DETAILS)
        log.epoch(row(1), 0.1)
        log.finish(digest)
        finished = read_records(path)
    Log(path, CPU, **DETAILS).epoch(row(1), 0.2)
    Log(path, CPU, **DETAILS | {"noise": "gaussian-01"})
    *older, last = read_records(path)
    assert older == finished
    assert [record["weights_sha256"] for record in older] == ["ab", "cd"]
    assert (last["noise"], last["history"]) == ("gaussian-01", [])


def test_writing_the_same_weights_again_without_training_keeps_the_record_of_the_training(path):
    for digest in ("ab", "cd"):
        log = Log(path, CPU, **DETAILS)
        log.epoch(row(1), 0.1)
        log.finish(digest)
    trained, other = read_records(path)
    Log(path, CPU, **DETAILS).finish("ab")
    assert read_records(path) == [other, trained]


@pytest.mark.parametrize("content", [b"", b"[{", b"{}", b"null", b"3", b"\xff\xfe"], ids=repr)
def test_damaged_log_begins_anew(path, content):
    path.write_bytes(content)
    assert read_records(path) == []
    Log(path, CPU, **DETAILS).finish("ab")
    assert [record["weights_sha256"] for record in read_records(path)] == ["ab"]


def test_newest_record_of_the_weights_is_found(path):
    path.write_text('[{"weights_sha256": "ab", "n": 1}, {"weights_sha256": "ab", "n": 2}, {"n": 3}]')
    assert find_record(path, "ab") == {"weights_sha256": "ab", "n": 2}
    assert find_record(path, "cd") is None
    assert find_record(path.with_name("none.json"), "ab") is None
