"""Batches of random shapes, in a process of their own: the plain network's values or its error."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("hypothesis")
SCRIPT = Path(__file__).with_name("contract_shapes.py")


@pytest.mark.parametrize("count", [25, pytest.param(400, marks=pytest.mark.slow)])
def test_any_shape_is_as_the_plain_network_takes_it(count):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", SCRIPT, str(count)], capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert done.returncode == 0, (done.returncode, lines[-1:], done.stderr[-3000:])
    assert lines[-1] == "done"
    assert sum(line.startswith("begins") for line in lines) >= count // 2
