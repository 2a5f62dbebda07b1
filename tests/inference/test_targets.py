from pathlib import Path

import pytest
from helpers import folder, refusal

from lambdanet.inference import targets

IN_FOLDER = {"in/b.JPG": "new/b.png", "in/c.tif": "new/c.png"}
STREAM = "- is one image, from standard input or to standard output; name one image and one file"
LEFT = ["in: not taken: f.txt, g.png, sub/"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Files by their names alone; nothing is read."""
    monkeypatch.chdir(tmp_path)
    names = ("a.png", "in/b.JPG", "in/c.tif", "in/.d.png", "in/sub/e.png", "in/f.txt", "full/a.png")
    folder(tmp_path, dict.fromkeys(names, b""))
    (tmp_path / "in/g.png").symlink_to("nowhere")
    (tmp_path / "same").symlink_to("in")
    return tmp_path


def plan(*images, out):
    planned, notes = targets.plan([Path(image) for image in images], Path(out))
    return {str(path): str(target) for path, target in planned.items()}, notes


@pytest.mark.parametrize(
    ("images", "out", "expected", "notes"),
    [
        (["a.png"], "new/x.PNG", {"a.png": "new/x.PNG"}, []),
        (["a.png"], "in", {"a.png": "in/a.png"}, []),
        (["-"], "x.png", {"-": "x.png"}, []),
        (["a.png"], "-", {"a.png": "-"}, []),
        (["in"], "new", IN_FOLDER, LEFT),
        (["in/f.txt", "a.png"], "new", {"in/f.txt": "new/f.png", "a.png": "new/a.png"}, []),
        (["a.png", "a.png"], "new", {"a.png": "new/a.png"}, []),
        (["a.png", "in"], "new", {"a.png": "new/a.png"} | IN_FOLDER, LEFT),
    ],
)
def test_where_each_image_goes_and_what_is_left_out(here, images, out, expected, notes):
    assert plan(*images, out=out) == (expected, notes)


@pytest.mark.parametrize(
    ("images", "out", "says"),
    [
        (["a.png"], "x", "x: the output is a PNG file, name it .png"),
        (["a.png"], "./in/../a.png", "in/../a.png is the image a.png itself; name another output"),
        (["full"], ".", "a.png is the image full/a.png itself; name another output"),
        (["in"], "in", "in is the folder of the images themselves; name another one"),
        (["in"], "same", "same is the folder of the images themselves; name another one"),
        (["in"], "a.png", "a.png is a file; for several images, or those of a folder, name a folder"),
        (["a.png", "full/a.png"], "new", "a.png, full/a.png would be written to the same file; rename one"),
        (["a.png", "-"], "new", STREAM),
        (["in"], "-", STREAM),
        (["-"], "full", STREAM),
        (["in"], "a.png/new", "a.png is not a folder; name another output"),
        (["in/sub", "in/f.txt"], "in/f.txt/deep/er", "in/f.txt is not a folder; name another output"),
    ],
)
def test_what_does_not_fit_is_one_line(here, images, out, says):
    (here / "a.png").unlink()
    (here / "a.png").hardlink_to(here / "full/a.png")  # another name of the same file
    assert says in refusal(plan, *images, out=out)
