"""Processes that stay: found again, ended with all below them, started again."""

import os
import signal
import subprocess
import sys

import psutil
import pytest
from helpers import lives, wait_until

from pipelines import processes

CHILD = [sys.executable, "-c", "import subprocess; subprocess.run(['sleep', '987'])"]


def test_start_is_once_and_stop_ends_all_below(tmp_path):
    processes.start(tmp_path, "one", CHILD, dict(os.environ))
    pid = int((tmp_path / "one.pid").read_text().split()[0])
    processes.start(tmp_path, "one", CHILD, dict(os.environ))
    assert int((tmp_path / "one.pid").read_text().split()[0]) == pid
    wait_until(lambda: psutil.Process(pid).children())
    below = psutil.Process(pid).children()[0].pid
    assert processes.stop(tmp_path, "one") == pid
    assert not lives(pid)
    assert not lives(below)
    assert not (tmp_path / "one.pid").exists()
    assert processes.stop(tmp_path, "one") is None


def test_another_process_of_the_same_number_is_left_alone(tmp_path):
    with subprocess.Popen(["sleep", "987"]) as other:
        (tmp_path / "one.pid").write_text(f"{other.pid} {psutil.Process(other.pid).create_time() - 100}\n")
        assert processes.stop(tmp_path, "one") is None
        assert lives(other.pid)
        other.kill()
    (tmp_path / "one.pid").write_text("nonsense\n")
    assert processes.stop(tmp_path, "one") is None


def test_a_server_that_ends_is_not_waited_for(tmp_path):
    processes.start(tmp_path, "one", [sys.executable, "-c", "raise SystemExit('no port')"], dict(os.environ))
    with pytest.raises(ValueError, match=r"^the server one did not start; see .*one.log$"):
        processes.wait_for(tmp_path, "one", "http://127.0.0.1:9/")
    assert (tmp_path / "one.log").read_text() == "no port\n"


SUPERVISE = """
import sys
from pipelines import processes
processes.RESTART_SECONDS = 0.1
processes.supervise([(["sh", "-c", sys.argv[1]], {"PATH": "/usr/bin:/bin", "N": n}) for n in "12"])
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_is_supervised_is_started_again_and_ended_with_patience(tmp_path, number):
    # What runs below ends a moment after it was asked to, as a training that writes a checkpoint does.
    script = (
        f"cd {tmp_path}; echo $$ >> started$N; [ $(wc -l < started$N) -gt 1 ] || exit 3; "
        "trap 'kill $child; wait; sleep 0.3; echo ended > ended$N; exit' TERM; "
        "sleep 987 & child=$!; wait"
    )
    command = [sys.executable, "-c", SUPERVISE, script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:

        def again():
            files = [tmp_path / f"started{n}" for n in "12"]
            return all(file.exists() and len(file.read_text().split()) == 2 for file in files)

        wait_until(again)
        process.send_signal(number)
        out, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert out.count("ended with 3; started again") == 2
    for n in "12":
        assert (tmp_path / f"ended{n}").read_text() == "ended\n"
        for pid in (tmp_path / f"started{n}").read_text().split():
            assert not lives(int(pid))
