import contextlib
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import BrokenExecutor

import helpers
import psutil
import pytest

from lambdanet import workers
from pipelines import processes


def who(number):
    return os.getpid(), number


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def test_pieces_are_done_in_other_processes_that_end_with_the_block():
    with workers.several(2, ["fractions"]) as later:
        results = [later(who, number) for number in range(6)]
        found = [result() for result in results]
        assert [one[-1] for one in found] == list(range(6))
        assert os.getpid() not in {one[0] for one in found}
        assert 1 <= len({one[0] for one in found}) <= 2
        below = [psutil.Process(process) for process in {one[0] for one in found}]
    helpers.wait_until(lambda: not any(map(processes.lives, below)))


@pytest.mark.parametrize("count", [0, 1])
def test_one_process_alone_works_when_it_is_asked_and_once(count):
    done = []
    with workers.several(count, ["no.such.module"]) as later:
        result = later(done.append, 1)
        assert done == []
        result(), result()
        assert done == [1]
        assert later(who, 3)()[0] == os.getpid()


@pytest.mark.parametrize("count", [1, 2])
def test_what_a_piece_raises_is_raised(count):
    with workers.several(count, []) as later, pytest.raises(ZeroDivisionError):
        later(divmod, 1, 0)()


def test_a_process_that_is_killed_is_told_of_at_once_and_later():
    with workers.several(2, ["no.such.module"]) as later:
        with pytest.raises(BrokenExecutor):
            later(die)()
        with pytest.raises(BrokenExecutor):
            later(who, 1)()


def sleep_and_note(path):
    time.sleep(0.2)
    path.touch()


def test_what_is_not_begun_is_not_done_after_an_error(tmp_path):
    with contextlib.suppress(KeyError), workers.several(2, []) as later:
        results = [later(sleep_and_note, tmp_path / str(number)) for number in range(400)]
        results[0]()
        raise KeyError
    assert 1 <= len(list(tmp_path.iterdir())) < 200  # 40 seconds for each process


def test_where_the_one_that_forks_dies_it_is_told_of(tmp_path):
    (tmp_path / "fails_to_load.py").write_text("1 / 0")
    code = """
from concurrent.futures import BrokenExecutor
from lambdanet import workers
if __name__ == "__main__":
    with workers.several(2, ["fails_to_load"]) as later:
        try:
            later(len, "four")()
        except BrokenExecutor:
            print("broken")
"""
    paths = {"PYTHONPATH": os.pathsep.join((str(tmp_path), str(helpers.ROOT)))}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | paths,
        timeout=helpers.PATIENCE,
    )  # fmt: skip
    assert done.stdout == "broken\n"


SLEEPERS = """
import signal, time
from lambdanet import workers
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background has it ignored
if __name__ == "__main__":
    with workers.several(2, ["lambdanet.files"]) as later:
        for result in [later(time.sleep, 0.2) for _ in range(2)]:
            result()
        for _ in range({pieces}):
            later(time.sleep, {seconds})
        try:
            print("begun", flush=True)  # the signal may come before this returns
            time.sleep(60)  # cut short
        except KeyboardInterrupt:
            print("interrupted", flush=True)
        print(later(len, "four")(), flush=True)
"""


@pytest.fixture
def sleepers():
    """Start a process that has two others sleep for so long; it has begun."""
    started = []

    def start(seconds, pieces=2):
        process = subprocess.Popen(
            [sys.executable, "-c", SLEEPERS.format(seconds=seconds, pieces=pieces)], text=True,
            start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        started.append(process)
        assert process.stdout.readline() == "begun\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("pieces", [0, 2])  # the others have nothing to do, or are busy
def test_a_control_c_is_for_who_waits(sleepers, pieces):
    process = sleepers(0.5, pieces)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    output, errors = process.communicate(timeout=helpers.PATIENCE)
    assert (process.returncode, output, errors) == (0, "interrupted\n4\n", "")


def test_processes_end_with_the_one_that_started_them(sleepers):
    process = sleepers(600)
    below = psutil.Process(process.pid).children(recursive=True)
    assert len(below) >= 3  # one that forks, and two
    process.kill()
    process.communicate(timeout=helpers.PATIENCE)  # ends when they all have closed stdout
    helpers.wait_until(lambda: not any(map(processes.lives, below)))


@pytest.mark.parametrize(
    ("environment", "expected"),
    [({"LAMBDANET_CORES": "3", "OMP_NUM_THREADS": "1"}, 3), ({"OMP_NUM_THREADS": "5"}, 5),
     ({"LAMBDANET_CORES": "0"}, 1)],
)  # fmt: skip
def test_cores_are_those_that_the_environment_grants(monkeypatch, environment, expected):
    for name in ("LAMBDANET_CORES", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert workers.cores() == expected


@pytest.mark.parametrize("said", [None, "", "two", "2,2"])
def test_else_cores_are_those_that_this_process_may_use(monkeypatch, said):
    monkeypatch.delenv("LAMBDANET_CORES", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if said is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", said)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    assert workers.cores() == 4
