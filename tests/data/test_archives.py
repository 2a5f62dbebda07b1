import gzip
import http.server
import re
import socket
import tarfile

import helpers
import pytest

from lambdanet.data import archives

FILES = {"set/a.bin": b"a" * 3000, "set/deep/b.bin": b"b", "set/readme.txt": b"not wanted"}
WANTED = {name: content for name, content in FILES.items() if name.endswith(".bin")}


def contents(path):
    return dict(archives.contents(path, lambda name: name.endswith(".bin")))


def read(path):
    if contents(path) != WANTED:
        raise ValueError("holds something else")
    return path


def load(source, downloads, mirrors=()):
    return archives.load("SET", source, downloads, variable="LAMBDANET_SET", mirrors=mirrors, read=read)


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_wanted_files_of_a_tar(tmp_path, mode):
    links = {"set/c.bin": "/etc/passwd", "set/d.bin": "a.bin"}
    assert contents(helpers.tar(tmp_path / "a", FILES, mode, links)) == WANTED


def test_wanted_files_of_a_folder_have_its_name_in_front(tmp_path, monkeypatch):
    folder = helpers.folder(tmp_path, FILES) / "set"
    assert contents(folder) == WANTED
    monkeypatch.chdir(folder)
    assert contents(folder.relative_to(folder)) == WANTED


HUGE = tarfile.TarInfo("a.bin")  # and nothing behind this header of a file of 64 GiB
HUGE.size = 1 << 36
DAMAGE = {
    "huge": lambda whole: HUGE.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 16),
    "cut in a file": lambda whole: whole[:2000],
    "broken gzip": lambda whole: gzip.compress(whole)[:100] + b"x" * 30_000,
    "html": lambda whole: b"<!DOCTYPE html>" * 1000,
    "empty": lambda whole: b"",
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_archive_is_one_line(tmp_path, damage):
    (tmp_path / "a.tar").write_bytes(damage(helpers.tar(tmp_path / "whole", FILES, "w").read_bytes()))
    said = helpers.refusal(load, str(tmp_path / "a.tar"), tmp_path)
    assert re.match(rf"{tmp_path}/a\.tar: .*(damaged or cut|claims 68,719,476,736 bytes|else)", said)


def test_source_is_read_where_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    helpers.tar(tmp_path / "a.tar", FILES)
    assert load("~/a.tar", tmp_path / "downloads") == tmp_path / "a.tar"
    assert not (tmp_path / "downloads").exists()
    said = helpers.refusal(load, "~/b.tar", tmp_path / "downloads")
    assert said == f"LAMBDANET_SET names {tmp_path}/b.tar, which does not exist"


class Mirror(http.server.BaseHTTPRequestHandler):
    body = b""
    asked = ()

    def do_GET(self):
        self.asked.append(self.path)
        how = self.path.split("/")[1]
        if how == "404":
            self.send_error(404)
            return
        body = b"something else" if how == "wrong" else self.body
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if how == "truncated" else body)


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A server on this machine: a function of how it behaves to a URL; `asked` lists its requests."""
    archive = helpers.tar(tmp_path / "a", FILES).read_bytes()
    handler = type("Handler", (Mirror,), {"body": archive, "asked": []})
    monkeypatch.setattr(archives, "TRIES", 1)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with helpers.serving(http.server.ThreadingHTTPServer, handler) as port:

        def url(how):
            return f"http://127.0.0.1:{port}/{how}/set.tar.gz"

        url.asked = handler.asked
        yield url


def test_the_first_mirror_with_the_right_archive_is_taken_and_it_is_kept(mirror, tmp_path, caplog):
    mirrors = [*map(mirror, ("404", "wrong")), mirror("good")]
    path = load(None, tmp_path / "downloads", mirrors)
    assert helpers.contents(tmp_path / "downloads") == {"set.tar.gz": (tmp_path / "a").read_bytes()}
    said = [line.partition(": ")[0] for line in caplog.messages]
    assert said == [f"no luck with {mirror(how)}" for how in ("404", "wrong")]
    assert load(None, tmp_path / "downloads", mirrors) == path
    path.write_bytes(path.read_bytes()[:-50])  # damaged: it is fetched again
    assert load(None, tmp_path / "downloads", [mirror("good")]) == path
    assert len(mirror.asked) == 4  # each mirror once, and the good one again


def test_every_mirrors_reason_is_named(mirror, tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "TIMEOUT_SECONDS", 2)
    failures = {"404": "404", "truncated": "IncompleteRead", "wrong": "damaged"}
    gone = "http://127.0.0.1:9/closed/set.tar.gz"
    with socket.create_server(("127.0.0.1", 0)) as server:
        silent = f"http://127.0.0.1:{server.getsockname()[1]}/silent/set.tar.gz"
        message = helpers.refusal(load, None, tmp_path / "downloads", [*map(mirror, failures), silent, gone])
    assert message.startswith("SET could not be downloaded; set LAMBDANET_SET ")
    assert "run the profile sample" in message
    reasons = message.partition("Tried ")[2].split("; http")
    failures |= {"silent": "timed out", "closed": "refused"}
    for (how, text), reason in zip(failures.items(), reasons, strict=True):
        assert f"/{how}/" in reason
        assert text in reason
    assert helpers.contents(tmp_path / "downloads") == {}
