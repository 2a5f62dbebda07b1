"""The rehearsal itself: hosts in network namespaces, from nothing, as a person starts it."""

import os
import re
import shutil
import subprocess
import sys

import pytest
from helpers import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("sshd", path="/usr/sbin:/usr/bin"),
        reason="network namespaces need root, iproute2 and an OpenSSH server",
    ),
]


def test_two_workers_in_networks_of_their_own_give_what_a_serial_run_gives():
    command = [sys.executable, "-m", "pipelines.rehearsal", "--namespaces", "--small"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "dvc.lock and results/ are those of the serial run" in done.stdout
    shares = dict(re.findall(r"^(worker\d) ran (\d) of 6", done.stdout, re.MULTILINE))
    assert set(shares) == {"worker1", "worker2"}
    assert sum(map(int, shares.values())) == 6
    assert all(int(share) > 0 for share in shares.values())
    left = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout
    assert "lnet" not in left
