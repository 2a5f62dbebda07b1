import gzip
import hashlib
import http.server
import io
import os
import pickle
import shutil
import struct
import tarfile
import threading
import time
import zlib
from pathlib import Path

import helpers
import numpy as np
import pytest
from PIL import Image

from lambdanet.config import Download
from lambdanet.data import cifar10, datasets

COUNTS = {"train": 20, "test": 6}


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
    return made | {
        "cifar-10-batches-bin/batches.meta.txt": b"airplane\n",
        "cifar-10-batches-bin/readme.html": b"",
    }


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


def python_3_pickle(part, protocol, key=lambda name: name):
    labels = [int(label) for label in part[:, 0]]
    batch = {
        "num_cases_per_batch": len(part),
        "labels": labels,
        "data": part[:, 1:].copy(),
        "filenames": ["a.png"] * len(part),
    }
    return pickle.dumps({key(name): value for name, value in batch.items()}, protocol)


def python(records, pickled=python_2_pickle):
    made = {f"cifar-10-batches-py/{name}": pickled(part) for name, part in batches(records).items()}
    return made | {"cifar-10-batches-py/batches.meta": b"\x80\x02}.", "cifar-10-batches-py/readme.html": b""}


def png_of(pixels, mode="RGB"):
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, "PNG")
    return file.getvalue()


def png(records):
    made = {"cifar10/labels.txt": b""}
    for split, each in records.items():
        for number, record in enumerate(each):
            name = f"cifar10/{split}/{cifar10.CLASSES[record[0]]}/{number:04d}.png"
            made[name] = png_of(record[1:].reshape(3, 32, 32).transpose(1, 2, 0))
    return made


def images_of(records):
    """What every form must give: images in the order of their records as byte strings."""
    arrays = {}
    for split, each in records.items():
        ordered = np.stack(sorted(each, key=lambda record: record.tobytes()))
        arrays[split] = np.stack(
            [ordered[:, 1:].reshape(-1, 3, 1024)[:, c].reshape(-1, 32, 32) for c in range(3)], -1
        )
    return arrays


FORMS = {
    "binary": binary,
    "python 2": python,
    **{
        f"python 3, protocol {protocol}": lambda records, protocol=protocol: python(
            records, lambda part: python_3_pickle(part, protocol)
        )
        for protocol in range(2, 6)
    },
    "python 3, keys of bytes": lambda records: python(
        records, lambda part: python_3_pickle(part, 4, lambda name: name.encode())
    ),
    "png": png,
}


def assert_is_tiny(images, records):
    expected = images_of(records)
    for split in COUNTS:
        assert images[split].dtype == np.uint8
        np.testing.assert_array_equal(images[split], expected[split])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kept", ["tar.gz", "tar", "folder"])
def test_every_form_gives_the_same_arrays(form, kept, records, tmp_path):
    members = FORMS[form](records)
    source = tmp_path / f"source.{kept}"
    if kept == "folder":
        helpers.folder(source, members)
    else:
        helpers.tar(source, members, "w:gz" if kept == "tar.gz" else "w")
    images, origin = cifar10.load(str(source), tmp_path / "downloads")
    assert origin == "CIFAR-10"
    assert_is_tiny(images, records)
    assert not (tmp_path / "downloads").exists()


@pytest.mark.parametrize("mode", ["w:bz2", "w:xz"])
def test_other_compressions_are_read(mode, records, tmp_path):
    assert_is_tiny(
        cifar10.load(str(helpers.tar(tmp_path / "a", binary(records), mode)), tmp_path)[0], records
    )


def test_folder_may_be_the_innermost_one(records, tmp_path):
    for form, inner in ((python, "cifar-10-batches-py"), (binary, "cifar-10-batches-bin"), (png, "cifar10")):
        source = helpers.folder(tmp_path / inner, form(records)) / inner
        assert_is_tiny(cifar10.load(str(source), tmp_path)[0], records)


def test_members_may_stand_in_any_order(records, tmp_path):
    members = dict(reversed(png(records).items()))
    assert_is_tiny(cifar10.load(str(helpers.tar(tmp_path / "a", members)), tmp_path)[0], records)


def test_home_is_expanded(records, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    helpers.tar(tmp_path / "a.tar.gz", binary(records))
    assert_is_tiny(cifar10.load("~/a.tar.gz", tmp_path)[0], records)


def test_canonical_order_is_that_of_byte_strings():
    shuffled = np.random.default_rng(0).integers(0, 3, (50, 3073), dtype=np.uint8)
    ordered = cifar10.canonical(shuffled)
    assert [record.tobytes() for record in ordered] == sorted(record.tobytes() for record in shuffled)


class Bomb:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def test_pickle_is_not_executed_even_beside_good_data(records, tmp_path):
    marker = tmp_path / "marker"

    def pickled(part):
        batch = pickle.loads(python_3_pickle(part, 4))
        return pickle.dumps(batch | {"more": Bomb(marker)}, 4)

    assert_is_tiny(
        cifar10.load(str(helpers.tar(tmp_path / "a", python(records, pickled))), tmp_path)[0], records
    )
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


def first_png(change):
    return one_changed(png, "0000.png", change)


def bomb_png(_content):
    """60,000 x 60,000 pixels in its header."""

    def chunk(kind, content):
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


def relabelled(label):
    def change(content):
        batch = pickle.loads(content)
        return pickle.dumps(batch | {"labels": [label, *batch["labels"][1:]]}, 4)

    return change


def python_3(records):
    return python(records, lambda part: python_3_pickle(part, 4))


def fewer_labels(content):
    batch = pickle.loads(content)
    return pickle.dumps(batch | {"labels": batch["labels"][1:]}, 4)


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


# Damage inside members: (maker, a part of the message).
DAMAGED = {
    "one pixel": (one_changed(binary, "data_batch_3.bin", flipped(2000)), "(content digest differs)"),
    "one label": (one_changed(binary, "test_batch.bin", flipped(0)), "the test images are not CIFAR-10's"),
    "one image missing": (without_one, "19 train images, CIFAR-10 has 20"),
    "one image twice": (one_twice, "7 test images, CIFAR-10 has 6"),
    "a part of a record": (
        one_changed(binary, "test_batch.bin", lambda b: b[:-1]),
        "not a whole number of records",
    ),
    "empty binary batch": (one_changed(binary, "test_batch.bin", lambda b: b""), "0 test images"),
    "garbage for a pickle": (
        one_changed(python, "test_batch", lambda b: b"\xff" * 100),
        "not a readable pickle",
    ),
    "empty pickle": (one_changed(python, "test_batch", lambda b: b""), "a python batch"),
    "cut pickle": (one_changed(python, "test_batch", lambda b: b[:3000]), "a python batch"),
    "label 10": (one_changed(python_3, "test_batch", relabelled(10)), "does not hold pixels and labels"),
    "negative label": (
        one_changed(python_3, "test_batch", relabelled(-1)),
        "does not hold pixels and labels",
    ),
    "fewer labels": (one_changed(python_3, "test_batch", fewer_labels), "does not hold pixels and labels"),
    "pickle of something else": (
        one_changed(python, "test_batch", lambda b: pickle.dumps([1, 2])),
        "does not hold pixels and labels",
    ),
    "png of another size": (
        first_png(lambda b: png_of(np.zeros((33, 32, 3), np.uint8))),
        "a PNG is (32, 33) RGB",
    ),
    "grey png": (first_png(lambda b: png_of(np.zeros((32, 32, 3), np.uint8), "L")), "a PNG is (32, 32) L"),
    "png with alpha": (
        first_png(lambda b: png_of(np.zeros((32, 32, 3), np.uint8), "RGBA")),
        "a PNG is (32, 32) RGBA",
    ),
    "jpeg named png": (first_png(lambda b: b"\xff\xd8\xff\xe0garbage"), "a PNG cannot be read"),
    "empty png": (first_png(lambda b: b""), "a PNG cannot be read"),
    "cut png": (first_png(lambda b: b[:500]), "a PNG cannot be read"),
    "broken png": (first_png(flipped(60)), "a PNG cannot be read"),
    "png bomb": (first_png(bomb_png), "PNG"),
    "unknown class": (moved_class, "'bicycle' is not a class of CIFAR-10"),
    "neither form": (lambda records: {"a/readme.txt": b"hello"}, "holds neither CIFAR-10 batches nor"),
    "train only": (
        lambda records: {name: b for name, b in binary(records).items() if "test" not in name},
        "0 test images, CIFAR-10 has 6",
    ),
}


@pytest.fixture
def refused(tmp_path):
    """Prepare from a bad source: the message, after a look that nothing was written."""

    def refused(source):
        place = tmp_path / "place"
        place.mkdir()
        wanted = Download(dataset="cifar10", **COUNTS)
        with pytest.raises(ValueError, match=r"^") as caught:
            datasets.prepare(wanted, place / "clean", source=str(source), downloads=place / "downloads")
        assert list(place.iterdir()) == []
        message = str(caught.value)
        assert "\n" not in message
        assert str(source) in message
        return message

    return refused


@pytest.mark.parametrize("kept", ["tar", "folder"])
@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_content_is_refused(damage, kept, records, tmp_path, refused):
    make, text = DAMAGED[damage]
    source = (helpers.folder if kept == "folder" else helpers.tar)(tmp_path / "source", make(records))
    assert text in refused(source)


def with_member(records, change, content=b""):
    """A binary archive that ends with one more member."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, each in binary(records).items():
            info = tarfile.TarInfo(name)
            info.size = len(each)
            archive.addfile(info, io.BytesIO(each))
        info = tarfile.TarInfo("cifar-10-batches-bin/more")
        change(info)
        archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def attributes(**values):
    return lambda info: [setattr(info, key, value) for key, value in values.items()]


def claim(name):
    """The header of a member of 64 GiB, and nothing behind it."""

    def make(records):
        info = tarfile.TarInfo(name)
        info.size = 1 << 36
        return info.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 16)

    return make


OUTSIDE = "points outside the archive's folder; not used"
LINK = "is a link or a device; not used"
DAMAGE = "damaged or cut short"
HOSTILE = {
    "parent": (lambda records: with_member(records, attributes(name="../x")), OUTSIDE),
    "parent inside": (lambda records: with_member(records, attributes(name="a/../../x")), OUTSIDE),
    "absolute": (lambda records: with_member(records, attributes(name="/tmp/x")), OUTSIDE),
    "symlink": (
        lambda records: with_member(records, attributes(type=tarfile.SYMTYPE, linkname="/etc/passwd")),
        LINK,
    ),
    "hard link": (lambda records: with_member(records, attributes(type=tarfile.LNKTYPE, linkname="a")), LINK),
    "character device": (lambda records: with_member(records, attributes(type=tarfile.CHRTYPE)), LINK),
    "block device": (lambda records: with_member(records, attributes(type=tarfile.BLKTYPE)), LINK),
    "fifo": (lambda records: with_member(records, attributes(type=tarfile.FIFOTYPE)), LINK),
    "huge batch": (claim("a/data_batch_1.bin"), "claims 68,719,476,736 bytes"),
    "huge other member": (claim("a/readme"), "claims 68,719,476,736 bytes"),
    "cut in a member": (lambda records: with_member(records, attributes())[:30_000], DAMAGE),
    "cut in a header": (lambda records: with_member(records, attributes())[:700], ""),
    "cut gzip": (lambda records: gzip.compress(with_member(records, attributes()))[:40_000], DAMAGE),
    "one byte of gzip": (lambda records: gzip.compress(with_member(records, attributes()))[:1], DAMAGE),
    "broken gzip": (
        lambda records: gzip.compress(with_member(records, attributes()))[:30_000] + b"x" * 30_000,
        "",
    ),
    "no tar": (lambda records: b"hello\nworld", DAMAGE),
    "html": (lambda records: b"<!DOCTYPE html>" * 1000, DAMAGE),
    "empty": (lambda records: b"", ""),
}


@pytest.mark.parametrize("attack", HOSTILE)
def test_hostile_archive_is_refused(attack, records, tmp_path, refused):
    make, text = HOSTILE[attack]
    (tmp_path / "source").write_bytes(make(records))
    assert text in refused(tmp_path / "source")


def test_archive_may_end_with_another_harmless_file(records, tmp_path):
    (tmp_path / "a").write_bytes(with_member(records, lambda info: None))
    assert_is_tiny(cifar10.load(str(tmp_path / "a"), tmp_path)[0], records)


def test_malicious_pickle_is_refused_and_not_executed(records, tmp_path, refused):
    marker = tmp_path / "marker"
    for number, name in enumerate(("test_batch", "data_batch_1", "batches.meta")):
        bomb = one_changed(python, name, lambda _content: pickle.dumps(Bomb(marker)))
        source = helpers.tar(tmp_path / f"source{number}", bomb(records))
        if name == "batches.meta":  # not even looked at
            assert_is_tiny(cifar10.load(str(source), tmp_path)[0], records)
        else:
            assert "does not hold pixels and labels" in refused(source)
            (tmp_path / "place").rmdir()
        assert not marker.exists()


def test_source_that_does_not_exist_is_named(tmp_path, refused):
    message = refused(tmp_path / "nowhere")
    assert message == f"LAMBDANET_CIFAR10 names {tmp_path / 'nowhere'}, which does not exist"


def test_empty_folder_is_refused(tmp_path, refused):
    (tmp_path / "empty").mkdir()
    assert "holds neither" in refused(tmp_path / "empty")


class Mirror(http.server.BaseHTTPRequestHandler):
    body = b""

    def do_GET(self):
        how = self.path.split("/")[1]
        if how == "404":
            self.send_error(404)
            return
        body = {"wrong": b"something else", "truncated": self.body[: len(self.body) // 2]}.get(how, self.body)
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.body if how in ("truncated", "stall") else body)))
        self.end_headers()
        if how == "stall":
            self.wfile.write(body[:1000])
            self.wfile.flush()
            time.sleep(60)  # nobody waits for it
        else:
            self.wfile.write(body)

    def log_message(self, *_arguments):
        pass


@pytest.fixture
def mirror(records, tmp_path, monkeypatch):
    """A server on this machine: a function of how it behaves to a URL."""
    archive = helpers.tar(tmp_path / "archive", binary(records)).read_bytes()
    handler = type("Handler", (Mirror,), {"body": archive})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.block_on_close = False
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    name = "cifar-10-binary.tar.gz"
    monkeypatch.setattr(cifar10, "ARCHIVES", {name: f"md5:{hashlib.md5(archive).hexdigest()}"})
    monkeypatch.setattr(cifar10, "TIMEOUT_SECONDS", 5)
    monkeypatch.setattr(cifar10, "TRIES", 1)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield lambda how: f"http://127.0.0.1:{server.server_port}/{how}/{name}"
    server.shutdown()
    thread.join()
    server.server_close()


FAILURES = {
    "404": "404",
    "truncated": "IncompleteRead",
    "wrong": "hash",
    "stall": "timed out",
}


def test_download_gives_the_archive(mirror, records, tmp_path):
    path = cifar10.download(tmp_path / "downloads", [mirror("good")])
    assert path == tmp_path / "downloads/cifar-10-binary.tar.gz"
    assert helpers.contents(tmp_path / "downloads") == {path.name: (tmp_path / "archive").read_bytes()}
    assert_is_tiny(cifar10.load(str(path), tmp_path)[0], records)


@pytest.mark.parametrize("how", FAILURES)
def test_download_turns_to_the_next_mirror(how, mirror, tmp_path, caplog):
    path = cifar10.download(tmp_path / "downloads", [mirror(how), mirror("good")])
    assert path.read_bytes() == (tmp_path / "archive").read_bytes()
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    warnings = [message for message in caplog.messages if "no luck" in message]
    assert len(warnings) == 1
    assert warnings[0].startswith(f"no luck with {mirror(how)}: ")


def test_download_names_every_mirrors_reason(mirror, tmp_path):
    gone = "http://127.0.0.1:9/closed/cifar-10-binary.tar.gz"
    with pytest.raises(
        ValueError, match=r"^CIFAR-10 could not be downloaded; set LAMBDANET_CIFAR10"
    ) as caught:
        cifar10.download(tmp_path / "downloads", [*map(mirror, FAILURES), gone])
    message = str(caught.value)
    assert "\n" not in message
    assert "choose profile: sample" in message
    reasons = message.partition("Tried ")[2].split("; http")
    assert len(reasons) == 5
    for (how, text), reason in zip(FAILURES.items(), reasons, strict=False):
        assert f"/{how}/" in reason
        assert text in reason
    assert "refused" in reasons[4]
    assert helpers.contents(tmp_path / "downloads") == {}


def test_download_tries_again(mirror, tmp_path, monkeypatch):
    monkeypatch.setattr(cifar10, "TRIES", 2)
    monkeypatch.setattr("pooch.core.time.sleep", lambda _seconds: None)
    calls = []
    real = Mirror.do_GET

    def flaky(self):
        calls.append(self.path)
        self.path = "/404/" if len(calls) == 1 else self.path
        real(self)

    monkeypatch.setattr(Mirror, "do_GET", flaky)
    cifar10.download(tmp_path / "downloads", [mirror("good")])
    assert len(calls) == 2


def test_kept_archive_is_not_fetched_again(mirror, tmp_path):
    first = cifar10.download(tmp_path / "downloads", [mirror("good")])
    assert cifar10.download(tmp_path / "downloads", [mirror("404")]) == first


def test_damaged_kept_archive_is_fetched_again(mirror, tmp_path):
    path = cifar10.download(tmp_path / "downloads", [mirror("good")])
    path.write_bytes(path.read_bytes()[:-1])
    cifar10.download(tmp_path / "downloads", [mirror("good")])
    assert path.read_bytes() == (tmp_path / "archive").read_bytes()


def test_load_without_a_source_downloads(mirror, records, tmp_path, monkeypatch):
    download = cifar10.download
    monkeypatch.setattr(cifar10, "download", lambda where: download(where, [mirror("good")]))
    assert_is_tiny(cifar10.load(None, tmp_path / "downloads")[0], records)
    shutil.rmtree(tmp_path / "downloads")


def test_mirrors_are_of_known_archives():
    assert {Path(url).name for url in cifar10.MIRRORS} <= set(cifar10.ARCHIVES)
    assert all(url.startswith("https://") for url in cifar10.MIRRORS)


def test_real_cifar10(real_cifar10):
    """Its digests were verified on reading; here, that the classes stand in order."""
    assert {split: array.shape for split, array in real_cifar10.items()} == {
        "train": (50_000, 32, 32, 3),
        "test": (10_000, 32, 32, 3),
    }
    assert cifar10.COUNTS == {"train": 50_000, "test": 10_000}
    means = real_cifar10["train"].mean((0, 1, 2)) / 255
    np.testing.assert_allclose(means, [0.4914, 0.4822, 0.4465], atol=2e-4)
    np.testing.assert_allclose(
        real_cifar10["train"].std((0, 1, 2)) / 255, [0.2470, 0.2435, 0.2616], atol=2e-4
    )
    labelled = np.zeros((10_000, 3073), np.uint8)
    labelled[:, 0] = np.repeat(np.arange(10), 1000)
    labelled[:, 1:] = real_cifar10["test"].transpose(0, 3, 1, 2).reshape(10_000, -1)
    digest = "f1bbb931260cda782c84c1948c82d910e2c193cb1d56756293f445027090946b"
    assert hashlib.sha256(labelled).hexdigest() == digest
