"""The wheel holds every module once, under the name that it is imported by."""

import subprocess
import sys
import zipfile

import helpers


def test_wheel_holds_the_folders_and_not_the_links_to_them(tmp_path):
    words = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    done = subprocess.run(words, cwd=helpers.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    packed = [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]
    files = [
        path for path in (helpers.ROOT / "lambdanet").rglob("*") if path.is_file() and not path.is_symlink()
    ]
    assert not any(parent.is_symlink() for path in files for parent in path.parents)
    expected = [
        path.relative_to(helpers.ROOT).as_posix() for path in files if path.parent.name != "__pycache__"
    ]
    assert sorted(packed) == sorted(expected)
    assert "lambdanet/models/lambdanet.py" in packed
