"""The wheel holds every module once, under the name that it is imported by, and the weights of `load`."""

import re
import zipfile

import helpers
import pytest

BASE = "torch numpy pillow safetensors click filelock psutil pydantic ruamel-yaml tifffile tqdm"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    done = helpers.python("-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=helpers.ROOT)
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def files(folder, name):
    """The files below a folder, with `name` in its place."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.parent.name != "__pycache__"]
    assert not any(path.is_symlink() or path.parent.is_symlink() for path in paths)
    return [f"{name}/{path.relative_to(folder).as_posix()}" for path in paths]


def test_wheel_holds_the_modules_and_the_weights(wheel):
    packed = [name for name in wheel.namelist() if ".dist-info/" not in name]
    of_studies = re.compile("-(size|autoencoder-batch)-")  # no denoisers that anybody would choose
    kept = files(helpers.ROOT / "weights/paper", "lambdanet/weights")
    weights = [name for name in kept if not of_studies.search(name)]
    assert sorted(packed) == sorted(files(helpers.ROOT / "lambdanet", "lambdanet") + weights)
    assert "lambdanet/models/lambdanet.py" in packed
    assert sum(wheel.getinfo(name).file_size for name in weights) < 10_000_000


def test_base_install_needs_none_of_the_pipeline(wheel):
    (name,) = (name for name in wheel.namelist() if name.endswith("METADATA"))
    needs = re.findall(r"^Requires-Dist: ([\w-]+)(?!.*extra ==)", wheel.read(name).decode(), re.MULTILINE)
    assert sorted(needs) == sorted(BASE.split())
