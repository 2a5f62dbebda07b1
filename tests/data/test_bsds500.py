import io
import json
import tarfile
from pathlib import Path

import helpers
import numpy as np
import pytest
from PIL import Image

from lambdanet import config, files
from lambdanet.config import Download
from lambdanet.data import archives, arrays, bsds500, datasets
from lambdanet.data.archives import Mirror
from lambdanet.data.patches import cut

COUNTS = {"train": 3, "test": 2, "val": 4}


def jpeg(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=95)
    return file.getvalue()


def photograph(number):
    """Of 481 x 321 pixels, every third standing; each differs."""
    rng = np.random.default_rng(number)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 13, 3), dtype=np.uint8))
    pixels = np.asarray(coarse.resize((481, 321), Image.Resampling.BICUBIC))
    return np.rot90(pixels, -1) if number % 3 == 2 else pixels


@pytest.fixture(scope="session")
def jpegs():
    """A BSDS500 of 9 images: name to JPEG file."""
    names = [f"{split}/{1000 + i}.jpg" for split, count in COUNTS.items() for i in range(count)]
    return {name: jpeg(photograph(number)) for number, name in enumerate(names)}


@pytest.fixture(autouse=True)
def tiny(jpegs, monkeypatch, request):
    """Make the library take the tiny BSDS500 for the real one."""
    if "shared_data" not in request.fixturenames:
        monkeypatch.setattr(bsds500, "COUNTS", COUNTS)
        monkeypatch.setattr(bsds500, "DIGEST", bsds500.digest(jpegs))


def bare(jpegs):
    return {f"BSDS500/images/{name}": content for name, content in jpegs.items()}


def berkeley(jpegs):
    made = {f"BSR/BSDS500/data/images/{name}": content for name, content in jpegs.items()}
    return made | {
        "BSR/BSDS500/data/images/train/Thumbs.db": b"x" * (2 << 20),
        "BSR/BSDS500/data/images/train/._1000.jpg": b"of a Mac",
        "BSR/BSDS500/data/groundTruth/train/1000.mat": b"MATLAB",
        "BSR/BSDS500/data/segs/train/1000.jpg": b"not an image of it",
        "BSR/bench/data/images/1000.jpg": b"neither",
        "1.jpg": b"nor this",
    }


def github(jpegs):
    return {f"BSDS500-master/BSDS500/data/images/{name}": content for name, content in jpegs.items()}


FORMS = {"bare": bare, "berkeley": berkeley, "github": github}


def wanted(train=5, test=4, **more):
    return Download(dataset="bsds500", train=train, test=test, **{"patches": 6} | more)


def load(source, **more):
    return bsds500.load(wanted(**more), str(source), source.parent / "downloads")


@pytest.fixture
def source(jpegs, tmp_path):
    return helpers.tar(tmp_path / "source.tar", bare(jpegs), "w")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kept", ["w:gz", "w", "w:xz", "folder"])
def test_every_form_gives_the_same_arrays(form, kept, jpegs, source, tmp_path):
    members = FORMS[form](jpegs)
    path = tmp_path / "other"
    other = helpers.folder(path, members) if kept == "folder" else helpers.tar(path, members, kept)
    expected, notes = load(source)
    images, same = load(other)
    assert notes == same
    for split in expected:
        np.testing.assert_array_equal(images[split], expected[split])
    assert not (tmp_path / "downloads").exists()


def test_folder_may_be_the_innermost_one(jpegs, source, tmp_path, monkeypatch):
    inner = helpers.folder(tmp_path / "unpacked", bare(jpegs)) / "BSDS500/images"
    np.testing.assert_array_equal(load(inner)[0]["train"], load(source)[0]["train"])
    monkeypatch.chdir(inner)
    assert len(bsds500.read_files(inner.relative_to(inner))) == 9


def test_links_beside_the_images_are_passed_over(jpegs, tmp_path):
    path = helpers.tar(tmp_path / "a", berkeley(jpegs), links={"BSR/bench/source/Makefile": "/etc/passwd"})
    assert bsds500.read_files(path) == jpegs


def test_training_patches_are_of_train_and_test_images(jpegs, source):
    images, notes = load(source)
    names = notes["photographs"]["train"]
    assert sorted(names) == sorted(name for name in jpegs if not name.startswith("val/"))
    assert (images["train"].shape, images["train"].dtype) == ((30, 40, 40, 3), np.uint8)
    for i, name in enumerate(names):
        expected = cut(bsds500.decode(jpegs[name]), 6, 40, seed=0, name=name)
        np.testing.assert_array_equal(images["train"][6 * i : 6 * i + 6], expected)
    assert len({patch.tobytes() for patch in images["train"]}) == 30


def test_test_images_are_whole_and_lie(jpegs, source):
    images, notes = load(source)
    names = notes["photographs"]["test"]
    assert sorted(names) == [f"val/{1000 + i}.jpg" for i in range(4)]
    assert (images["test"].shape, images["test"].dtype) == ((4, 321, 481, 3), np.uint8)
    turned = 0
    for image, name in zip(images["test"], names, strict=True):
        pixels = np.asarray(Image.open(io.BytesIO(jpegs[name])))
        if pixels.shape == (481, 321, 3):  # the left column is now the lowest row
            np.testing.assert_array_equal(image[-1], pixels[:, 0])
            np.testing.assert_array_equal(image[0, 0], pixels[0, -1])
            turned += 1
        else:
            np.testing.assert_array_equal(image, pixels)
    assert turned == 2


def test_fewer_images_are_the_first_of_more(source):
    every, notes = load(source)
    some, some_notes = load(source, train=2, test=3)
    np.testing.assert_array_equal(some["train"], every["train"][:12])
    np.testing.assert_array_equal(some["test"], every["test"][:3])
    assert some_notes["photographs"]["train"] == notes["photographs"]["train"][:2]


def test_fewer_patches_are_the_first_of_each_image(source):
    every, some = load(source)[0]["train"], load(source, patches=2)[0]["train"]
    np.testing.assert_array_equal(some, every.reshape(5, 6, 40, 40, 3)[:, :2].reshape(10, 40, 40, 3))


def test_another_seed_is_another_order_and_other_places(source):
    first, second = load(source), load(source, seed=1)
    assert first[1]["photographs"] != second[1]["photographs"]
    patches = [{patch.tobytes() for patch in each["train"]} for each, _ in (first, second)]
    assert not patches[0] & patches[1]


def test_prepare_writes_arrays_and_a_card(source, tmp_path):
    card = datasets.prepare(wanted(train=2), tmp_path / "clean", source=str(source), downloads=tmp_path)
    images = {split: arrays.load_images(tmp_path / "clean", split) for split in arrays.SPLITS}
    assert json.loads((tmp_path / "clean/card.json").read_text()) == card
    assert list(card) == ["dataset", "origin", "images", "sha256", "made", "photographs"]
    assert (card["dataset"], card["origin"]) == ("bsds500", "BSDS500")
    assert card["images"] == {"train": 12, "test": 4}
    assert card["sha256"] == {split: arrays.digest(each) for split, each in images.items()}
    assert "6 patches of 40 x 40 of each of 2 images" in card["made"]
    assert "turned by 90 degrees counter-clockwise" in card["made"]


def test_digest_is_that_of_sha256sum(tmp_path):
    """As `printf a | sha256sum` has it, `sha256sum a/b` has it with two spaces and the name."""
    a = "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    (tmp_path / "sums").write_text(f"{empty}  a/9.jpg\n{a}  b/10.jpg\n")
    assert bsds500.digest({"b/10.jpg": b"a", "a/9.jpg": b""}) == files.sha256(tmp_path / "sums")


def one_changed(members, name, change):
    full = next(each for each in members if each.endswith(name))
    return members | {full: change(members[full])}


def without(members, name):
    return {each: content for each, content in members.items() if not each.endswith(name)}


DAMAGED = {
    "one byte": (
        lambda made: one_changed(made, "train/1000.jpg", lambda b: b[:-9] + b"\0" + b[-8:]),
        "the images are not BSDS500's (content digest differs)",
    ),
    "two names changed": (
        lambda made: {name.replace("val/1003", "val/1009"): content for name, content in made.items()},
        "(content digest differs)",
    ),
    "one missing": (lambda made: without(made, "test/1001.jpg"), "1 images in test, BSDS500 has 2"),
    "no val": (
        lambda made: {name: b for name, b in made.items() if "/val/" not in name},
        "0 images in val, BSDS500 has 4",
    ),
    "one too many": (lambda made: made | {"x/images/val/7.jpg": b"x"}, "more than 9 images, so not BSDS500"),
    "two of one name": (
        lambda made: made | {"x/images/val/1000.jpg": b"x"},
        "holds two different images val/1000.jpg",
    ),
    "huge image": (
        lambda made: one_changed(made, "val/1000.jpg", lambda b: b + bytes(1 << 20)),
        "bytes, more than any of BSDS500",
    ),
    "nothing of it": (lambda _made: {"a/readme.txt": b"x"}, "holds no images/train, images/test"),
    "png": (lambda made: {name.replace(".jpg", ".png"): b for name, b in made.items()}, "holds no images/"),
}


@pytest.fixture
def refused(tmp_path):
    """Prepare from a bad source: the message, after a look that nothing was written."""

    def refused(source, **more):
        place = tmp_path / "place"
        place.mkdir()
        with pytest.raises(ValueError, match=r"^") as caught:
            datasets.prepare(
                wanted(**more), place / "clean", source=str(source), downloads=place / "downloads"
            )
        assert list(place.iterdir()) == []
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return refused


@pytest.mark.parametrize("kept", ["tar", "folder"])
@pytest.mark.parametrize("damage", DAMAGED)
def test_other_content_is_refused(damage, kept, jpegs, tmp_path, refused):
    change, text = DAMAGED[damage]
    source = (helpers.folder if kept == "folder" else helpers.tar)(tmp_path / "source", change(bare(jpegs)))
    message = refused(source)
    assert message.startswith(f"{source}: ")
    assert text in message


def test_same_image_twice_does_no_harm(jpegs, tmp_path):
    path = helpers.tar(tmp_path / "a", bare(jpegs) | github(jpegs))
    assert bsds500.read_files(path) == jpegs


def claim(name):
    """The header of a member of 64 GiB, and nothing behind it."""
    info = tarfile.TarInfo(name)
    info.size = 1 << 36
    return info.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 16)


HOSTILE = {
    "parent": ({"a/../../images/train/1.jpg": b"x"}, "points outside the archive's folder; not used"),
    "absolute": ({"/tmp/images/train/1.jpg": b"x"}, "points outside the archive's folder; not used"),
    "huge image": (claim("images/train/1.jpg"), "claims 68,719,476,736 bytes"),
    "huge other member": (claim("a/readme"), "claims 68,719,476,736 bytes"),
    "no tar": (b"hello\nworld", "damaged or cut short"),
    "html": (b"<!DOCTYPE html>" * 1000, "damaged or cut short"),
}


@pytest.mark.parametrize("attack", HOSTILE)
def test_hostile_archive_is_refused(attack, tmp_path, refused):
    content, text = HOSTILE[attack]
    path = tmp_path / "source"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        helpers.tar(path, content)
    assert text in refused(path)


def test_cut_archive_is_refused(jpegs, tmp_path, refused):
    whole = helpers.tar(tmp_path / "whole", bare(jpegs)).read_bytes()
    (tmp_path / "cut").write_bytes(whole[: len(whole) // 2])
    assert "damaged or cut short" in refused(tmp_path / "cut")


def test_link_in_place_of_an_image_is_no_image(jpegs, tmp_path, refused):
    path = tmp_path / "source"
    with tarfile.open(path, "w") as archive:
        for name, content in bare(jpegs).items():
            info = tarfile.TarInfo(name)
            if name.endswith("val/1003.jpg"):
                info.type, info.linkname = tarfile.SYMTYPE, "1002.jpg"
                archive.addfile(info)
                continue
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    assert "3 images in val, BSDS500 has 4" in refused(path)


def test_source_that_does_not_exist_is_named(tmp_path, refused):
    path = tmp_path / "nowhere"
    assert refused(path) == f"LAMBDANET_BSDS500 names {path}, which does not exist"


def test_more_images_than_there_are_are_refused(source, refused, tmp_path):
    assert refused(source, train=6) == "bsds500's train split has 5 images, 6 are asked for"
    (tmp_path / "place").rmdir()
    assert refused(source, test=5) == "bsds500's test split has 4 images, 5 are asked for"


@pytest.fixture
def mirrors(jpegs, tmp_path, monkeypatch):
    """Mirrors in place of the network: a wrong page, a broken archive, BSDS500; and what was fetched."""
    bodies = {
        "https://a/page": b"<!DOCTYPE html>",
        "https://b/other.tgz": helpers.tar(
            tmp_path / "other", without(bare(jpegs), "val/1000.jpg")
        ).read_bytes(),
        "https://c/master.tar.gz": helpers.tar(tmp_path / "good", github(jpegs)).read_bytes(),
    }
    fetched = []

    def fetch(url, output_file, _pooch, check_only=False):
        fetched.append(url)
        if url not in bodies:
            raise ValueError(f"404 for {url}")
        Path(output_file).write_bytes(bodies[url])

    monkeypatch.setattr("pooch.HTTPDownloader", lambda **_options: fetch)
    monkeypatch.setattr(bsds500, "TRIES", 1)
    return [Mirror(url, url.rsplit("/", 1)[-1]) for url in bodies], fetched


def test_download_takes_the_first_mirror_with_the_right_images(mirrors, jpegs, tmp_path, caplog):
    known, fetched = mirrors
    assert bsds500.download(tmp_path / "downloads", known) == jpegs
    assert fetched == [mirror.url for mirror in known]
    assert [path.name for path in (tmp_path / "downloads").iterdir()] == ["master.tar.gz"]
    warnings = [message for message in caplog.messages if "no luck" in message]
    assert "https://a/page" in warnings[0]
    assert "damaged" in warnings[0]
    assert "3 images in val" in warnings[1]


def test_kept_archive_is_not_fetched_again(mirrors, jpegs, tmp_path):
    known, fetched = mirrors
    for _ in range(2):
        assert bsds500.download(tmp_path / "downloads", known[2:]) == jpegs
    assert len(fetched) == 1


def test_damaged_kept_archive_is_fetched_again(mirrors, jpegs, tmp_path):
    known, fetched = mirrors
    helpers.folder(tmp_path, {"downloads/master.tar.gz": b"half of it"})
    assert bsds500.download(tmp_path / "downloads", known[2:]) == jpegs
    assert len(fetched) == 1


def test_download_names_every_mirrors_reason(mirrors, tmp_path):
    known = [*mirrors[0][:2], Mirror("https://d/gone", "gone")]
    with pytest.raises(
        ValueError, match=r"^BSDS500 could not be downloaded; set LAMBDANET_BSDS500"
    ) as caught:
        bsds500.download(tmp_path / "downloads", known)
    message = str(caught.value)
    assert "\n" not in message
    for part in (
        "https://a/page: ",
        "damaged",
        "https://b/other.tgz: ",
        "3 images in val",
        "404 for https://d",
    ):
        assert part in message
    assert helpers.contents(tmp_path / "downloads") == {}


def test_mirrors_are_https():
    assert all(mirror.url.startswith("https://") for mirror in bsds500.MIRRORS)
    assert len({mirror.name for mirror in bsds500.MIRRORS}) == len(bsds500.MIRRORS)


def test_archives_know_nothing_of_either_data_set():
    assert not {"cifar10", "bsds500"} & set(vars(archives))


def test_real_bsds500(shared_data):
    """Its digest is verified on reading; here, what is made of it."""
    source = str(shared_data / "bsds500-images.tar")
    config = Download(dataset="bsds500", train=3, test=100, patches=4)
    images, notes = bsds500.load(config, source, shared_data)
    assert images["train"].shape == (12, 40, 40, 3)
    assert images["test"].shape == (100, 321, 481, 3)
    assert len(set(notes["photographs"]["test"])) == 100
    assert images["train"].std((1, 2, 3)).mean() > 20
    assert 90 < images["test"].mean() < 130


def test_seed_2s_patches_are_85_600():
    wanted = config.build(Download, {"dataset": "bsds500", "train": 400, "test": 100})
    assert wanted.train_images == 85_600
