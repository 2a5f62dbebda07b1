import hashlib
import pickle
import struct

import helpers
import numpy as np
import pytest

from lambdanet.config import Download
from lambdanet.data import archives, cifar10

COUNTS = {"train": 20, "test": 6}
WANTED = Download(dataset="cifar10", **COUNTS)


@pytest.fixture(scope="module")
def records():
    """A CIFAR-10 of 26 images: records of 3,073 bytes, in no order."""
    rng = np.random.default_rng(0)
    made = {}
    for split, count in COUNTS.items():
        made[split] = rng.integers(0, 256, (count, 3073), dtype=np.uint8)
        made[split][:, 0] = rng.permutation(np.arange(count) % 10)
    return made


@pytest.fixture(autouse=True)
def tiny(records, monkeypatch, request):
    """Make the library take the tiny CIFAR-10 for the real one."""
    if "real_cifar10" in request.fixturenames:
        request.getfixturevalue("real_cifar10")
        return
    content = {split: b"".join(sorted(record.tobytes() for record in records[split])) for split in COUNTS}
    digests = {split: hashlib.sha256(each).hexdigest() for split, each in content.items()}
    monkeypatch.setattr(cifar10, "COUNTS", COUNTS)
    monkeypatch.setattr(cifar10, "DIGESTS", digests)


def batches(records):
    """Five training batches and the test batch, by name."""
    parts = {f"data_batch_{i + 1}": records["train"][4 * i : 4 * i + 4] for i in range(5)}
    return parts | {"test_batch": records["test"]}


def binary(records):
    made = {f"cifar-10-batches-bin/{name}.bin": part.tobytes() for name, part in batches(records).items()}
    others = ("batches.meta.txt", "readme.html")
    return made | {f"cifar-10-batches-bin/{name}": b"airplane\n" for name in others}


def python_2_pickle(part):
    """As Python 2's cPickle wrote the official batches: protocol 2, the pixels as one BINSTRING."""

    def short(text):
        return b"U" + bytes([len(text)]) + text

    pixels = part[:, 1:].tobytes()
    count = b"M" + struct.pack("<H", len(part))
    return (
        b"\x80\x02}q\x01("
        + short(b"batch_label") + b"q\x02" + short(b"training batch 1 of 5") + b"q\x03"
        + short(b"labels") + b"q\x04]q\x05(" + b"".join(b"K" + bytes([label]) for label in part[:, 0]) + b"e"
        + short(b"data") + b"q\x06cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08"
        + b"K\x00\x85" + short(b"b") + b"\x87Rq\t(K\x01" + count + b"M\x00\x0c\x86"
        + b"cnumpy\ndtype\nq\n" + short(b"u1") + b"K\x00K\x01\x87Rq\x0b(K\x03" + short(b"|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T" + struct.pack("<I", len(pixels)) + pixels
        + b"tb" + short(b"filenames") + b"q\x0c]q\r(" + len(part) * short(b"a.png") + b"eu."
    )  # fmt: skip


def python_3_pickle(part, key=str):
    batch = {"num_cases_per_batch": len(part), "filenames": ["a.png"] * len(part)}
    batch |= {"labels": part[:, 0].tolist(), "data": part[:, 1:].copy()}
    return pickle.dumps({key(name): value for name, value in batch.items()}, 4)


def python(records, pickled=python_2_pickle):
    made = {f"cifar-10-batches-py/{name}": pickled(part) for name, part in batches(records).items()}
    return made | {"cifar-10-batches-py/batches.meta": b"\x80\x02}.", "cifar-10-batches-py/readme.html": b""}


def png(records):
    made = {"cifar10/labels.txt": b""}
    for split, each in records.items():
        for number, record in enumerate(each):
            name = f"cifar10/{split}/{cifar10.CLASSES[record[0]]}/{number:04d}.png"
            made[name] = helpers.encoded(record[1:].reshape(3, 32, 32).transpose(1, 2, 0), "PNG")
    return made


def python_3(records, key=str):
    return python(records, lambda part: python_3_pickle(part, key))


FORMS = {
    "binary": binary,
    "python 2": python,
    "python 3": python_3,
    "python 3, keys of bytes": lambda records: python_3(records, str.encode),
    "png": png,
}


def assert_is_tiny(source, records):
    """What every form must give: images in the order of their records as byte strings."""
    images, origin = cifar10.load(str(source), source.parent)
    assert origin == "CIFAR-10"
    for split, each in records.items():
        ordered = np.stack(sorted(each, key=lambda record: record.tobytes()))
        expected = ordered[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        np.testing.assert_array_equal(images[split], expected, strict=True)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_arrays_also_from_the_innermost_folder(form, records, tmp_path):
    members = dict(reversed(FORMS[form](records).items()))
    assert_is_tiny(helpers.tar(tmp_path / "source", members), records)
    (inner,) = helpers.folder(tmp_path / "unpacked", members).iterdir()
    assert_is_tiny(inner, records)


def test_pickle_is_not_executed(records, tmp_path, refused):
    """Neither beside good data, nor in its place, nor where it is not even looked at."""
    marker = tmp_path / "marker"

    def pickled(part):
        return pickle.dumps(pickle.loads(python_3_pickle(part)) | {"more": helpers.Bomb(marker)}, 4)

    beside = python(records, pickled) | {"batches.meta": pickle.dumps(helpers.Bomb(marker))}
    assert_is_tiny(helpers.tar(tmp_path / "a", beside), records)
    bomb = one_changed(python, "test_batch", lambda _content: pickle.dumps(helpers.Bomb(marker)))
    source = helpers.tar(tmp_path / "b", bomb(records))
    assert "does not hold pixels and labels" in refused(WANTED, source)
    assert not marker.exists()


def one_changed(form, name, change):
    """A maker of members of which the one whose name ends with `name` is changed."""

    def make(records):
        members = form(records)
        full = next(each for each in members if each.endswith(name))
        return members | {full: change(members[full])}

    return make


def flipped(position):
    def flip(content):
        return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]

    return flip


def labelled(change):
    def changed(content):
        batch = pickle.loads(content)
        return pickle.dumps(batch | {"labels": change(batch["labels"])}, 4)

    return one_changed(python_3, "test_batch", changed)


def moved_class(records):
    members = png(records)
    name = next(each for each in members if "/airplane/" in each)
    return {each.replace("airplane", "bicycle") if each == name else each: members[each] for each in members}


def without_one(records):
    members = png(records)
    del members[max(members)]
    return members


def one_twice(records):
    members = png(records)
    return members | {"cifar10/test/cat/more.png": members[max(members)]}


LOW = helpers.encoded(np.zeros((33, 32, 3), np.uint8), "PNG")
DAMAGED = {  # maker, a part of the message
    "one pixel": (one_changed(binary, "data_batch_3.bin", flipped(2000)), "(content digest differs)"),
    "one label": (one_changed(binary, "test_batch.bin", flipped(0)), "the test images are not CIFAR-10's"),
    "one image missing": (without_one, "19 train images, CIFAR-10 has 20"),
    "one image twice": (one_twice, "7 test images, CIFAR-10 has 6"),
    "part of a record": (one_changed(binary, "test_batch.bin", lambda b: b[:-1]), "whole number of records"),
    "garbage pickle": (one_changed(python, "test_batch", lambda b: b"\xff" * 100), "not a readable pickle"),
    "cut pickle": (one_changed(python, "test_batch", lambda b: b[:3000]), "a python batch"),
    "label 10": (labelled(lambda labels: [10, *labels[1:]]), "pixels and labels"),
    "negative label": (labelled(lambda labels: [-1, *labels[1:]]), "pixels and labels"),
    "fewer labels": (labelled(lambda labels: labels[1:]), "pixels and labels"),
    "png of another size": (one_changed(png, "0000.png", lambda b: LOW), "(32, 33) RGB"),
    "jpeg named png": (one_changed(png, "0000.png", lambda b: b"\xff\xd8\xff\xe0"), "a PNG cannot be read"),
    "unknown class": (moved_class, "'bicycle' is not a class of CIFAR-10"),
    "neither form": (lambda records: {"a/readme.txt": b"hello"}, "holds neither CIFAR-10 batches nor"),
}


@pytest.mark.parametrize(("make", "text"), DAMAGED.values(), ids=DAMAGED)
def test_damaged_content_is_refused(make, text, records, tmp_path, refused):
    source = helpers.tar(tmp_path / "source", make(records))
    message = refused(WANTED, source)
    assert str(source) in message
    assert text in message


def test_mirrors_are_used_without_a_source(monkeypatch, tmp_path, refused):
    assert "LAMBDANET_CIFAR10 names " in refused(WANTED, tmp_path / "nowhere")
    monkeypatch.setattr(archives, "TRIES", 1)
    monkeypatch.setattr(cifar10, "MIRRORS", ["http://127.0.0.1:9/a.tar"])
    with pytest.raises(ValueError, match=r"^CIFAR-10 could not be downloaded; set LAMBDANET_CIFAR10 "):
        cifar10.load(None, tmp_path / "downloads")


def test_real_cifar10(real_cifar10):
    """Its digests were verified on reading; here, that the classes stand in order."""
    assert real_cifar10["train"].shape == (50_000, 32, 32, 3)
    labelled = np.zeros((10_000, 3073), np.uint8)
    labelled[:, 0] = np.repeat(np.arange(10), 1000)
    labelled[:, 1:] = real_cifar10["test"].transpose(0, 3, 1, 2).reshape(10_000, -1)
    digest = "f1bbb931260cda782c84c1948c82d910e2c193cb1d56756293f445027090946b"
    assert hashlib.sha256(labelled).hexdigest() == digest
