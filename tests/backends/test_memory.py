"""Kernels neither read nor write beyond their arrays; each lies between pages that may not be touched."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("guarded.py")
KERNELS = ("lambdanet", "lambdanet-u4", "dncnn")


def run(network, at):
    return subprocess.run([sys.executable, SCRIPT, network, at], capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("at", ["start", "end"])
@pytest.mark.parametrize("network", KERNELS)
def test_kernels_stay_within_their_arrays(network, at):
    done = run(network, at)
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
    counts = json.loads(done.stdout.splitlines()[-1])
    assert counts["calls"] >= 18
    assert counts["arrays"] >= 200


@pytest.mark.slow
@pytest.mark.parametrize("network", KERNELS)
def test_a_kernel_that_would_not_dies(network):
    assert run(network, "beyond").returncode == -signal.SIGSEGV
