import atexit
import os
import runpy
import shutil
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["LAMBDANET_DEVICE"] = "cpu"
os.environ["LAMBDANET_TRACKING"] = "off"  # what is about MLflow switches it on
os.environ.pop("LAMBDANET_CIFAR10", None)
os.environ.pop("LAMBDANET_BSDS500", None)
os.environ.pop("MLFLOW_TRACKING_URI", None)
os.environ["GIT_AUTHOR_NAME"] = os.environ["GIT_COMMITTER_NAME"] = "t"
os.environ["GIT_AUTHOR_EMAIL"] = os.environ["GIT_COMMITTER_EMAIL"] = "t@localhost"
# For compiled kernels: one folder for all of pytest-xdist's processes.
if not (cache := os.environ.get("LAMBDANET_TESTS_CACHE")):
    cache = os.environ["LAMBDANET_TESTS_CACHE"] = tempfile.mkdtemp(prefix="lambdanet-tests-")
    atexit.register(shutil.rmtree, cache, ignore_errors=True)
os.environ["XDG_CACHE_HOME"] = cache

import pytest
import torch

from lambdanet.data import cifar10

STAGES = Path(__file__).resolve().parents[1] / "stages"

LONGEST = (
    "test_pipeline.py", "test_train.py", "test_reproduce.py", "test_loop.py", "test_contract.py",
    "test_lambdanet_backends.py",
)  # fmt: skip

torch.set_num_threads(1)


def pytest_configure(config):
    """The warnings of other packages that no test is about."""
    for text in (
        "_NoneStep.value will soon raise:DeprecationWarning",  # pygtrie's, by DVC
        "The ``noload`` loader strategy is deprecated",  # SQLAlchemy's, where MLflow opens a database first
        ".*Any type hint is inferred as AnyType",  # MLflow's, where it loads models first
    ):
        config.addinivalue_line("filterwarnings", f"ignore:{text}")


def pytest_collection_modifyitems(items):
    """The longest files first, or one process would be busy with them when the others are done."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(scope="session")
def shared_data():
    folder = Path(__file__).resolve().parents[2] / "shared/data"
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} does not exist")
    return folder


@pytest.fixture(scope="session")
def real_cifar10(shared_data):
    """The real CIFAR-10, verified: {"train", "test"} of uint8 arrays."""
    images, _ = cifar10.load(str(shared_data / "cifar10.tgz"), Path("unused"))
    return images


@pytest.fixture
def stage(monkeypatch, capfd, caplog):
    """Run a stage script in this process: a function of (name, words, folder) to (status, stderr's lines).

    Much faster than a process of its own; anything but SystemExit, which a user would see as a
    traceback, fails the test.
    """
    monkeypatch.syspath_prepend(STAGES)
    deterministic = torch.are_deterministic_algorithms_enabled()

    def call(name, words, folder):
        script = str(STAGES / f"{name}.py")
        monkeypatch.setattr(sys, "argv", [script, *map(str, words)])
        monkeypatch.chdir(folder)
        capfd.readouterr()
        caplog.clear()
        status, last = 0, []
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as end:  # the interpreter prints a text and ends with 1
            status, last = (1, end.code.split("\n")) if isinstance(end.code, str) else (end.code or 0, [])
        return status, capfd.readouterr().err.splitlines() + caplog.messages + last

    yield call
    torch.use_deterministic_algorithms(deterministic)
