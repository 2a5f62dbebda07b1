"""Compiled kernels on disk: used by the next process, and only where they are what was asked for; fences."""

import helpers
import pytest
from llvmlite import ir

from lambdanet.backends.cpu import codegen, compile_cache

COMPILING = """
import sys
import torch
from lambdanet.models import create_model
from lambdanet.backends.cpu import codegen
from lambdanet.backends.cpu import lambdanet as fused
if "loaded" in sys.argv:
    def refuse(*_):
        raise AssertionError("it was compiled again")
    codegen._machine_code = refuse
torch.manual_seed(0)
model = create_model("lambdanet", u=1, m=3, k=4, heads=2, d=4)
images = torch.linspace(0, 1, 4 * 3 * 6 * 8).view(4, 3, 6, 8)
output = fused.train(model, images)
output.square().mean().backward()
values = [output.flatten(), *(p.grad.flatten() for p in model.parameters())]
print(torch.cat(values).detach().numpy().tobytes().hex())
"""


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "lambdanet/kernels"


def computed(*words):
    return helpers.python("-c", COMPILING, *words, check=True).stdout.splitlines()[-1]


def test_next_process_takes_the_compiled_kernels_and_gets_the_same_bytes(cache):
    first = computed()
    (file,) = cache.glob("*")
    assert file.suffix == ".o"
    assert cache.stat().st_mode & 0o077 == 0
    file.write_bytes(file.read_bytes()[:-100])  # cut off: compiled again, and mended
    assert computed() == computed("loaded") == first


def test_without_a_place_to_write_it_is_compiled(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    compile_cache.keep("request", b"code")
    assert compile_cache.find("request") is None


def test_only_the_same_request_of_the_same_code_finds_it(cache, monkeypatch):
    compile_cache.keep("request", b"code")
    assert compile_cache.find("request") == b"code"
    assert compile_cache.find("another request") is None
    monkeypatch.setattr(compile_cache, "_made_of", lambda: "another processor")
    assert compile_cache.find("request") is None


def test_oldest_files_go(cache, monkeypatch):
    monkeypatch.setattr(compile_cache, "MOST_FILES", 3)
    for number in range(5):
        compile_cache.keep(str(number), b"code")
    kept = [compile_cache.find(str(number)) is not None for number in range(5)]
    assert kept == [False, False, True, True, True]
    assert len(list(cache.iterdir())) == 3


@pytest.mark.parametrize("lanes", [8, 16])
def test_lines_that_are_streamed_are_waited_for(lanes):
    """Of 64 bytes; a thread that reads them must find them written. What kernels compute, others test."""
    module = ir.Module()
    kernel = codegen.Kernel(module, "test", ["x", "y"], lanes)
    with kernel.loop(64) as i:
        kernel.stream(kernel.load("x", (i, kernel.lanes)), kernel.at("y", (i, kernel.lanes)))
    kernel.finish()
    text = str(module)
    assert ("!nontemporal" in text) == ("fence seq_cst" in text) == (lanes == 16)
