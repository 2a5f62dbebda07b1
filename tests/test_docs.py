"""README and docs: links lead somewhere, commands exist, and the words are those of technical English."""

import contextlib
import importlib.util
import io
import os
import re
import shlex
import shutil
import subprocess
import tokenize
import tomllib

import click
import pytest
import torch
from helpers import ROOT, read_yaml
from PIL import Image

from lambdanet import cli

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
CODE = sorted(file for name in ("lambdanet", "pipelines", "stages") for file in (ROOT / name).rglob("*.py"))
FILE = r"`((?:lambdanet|pipelines|stages|tests|deploy|benchmarks|schemas)/[\w./-]*\w/?)`"
# Blocks of commands, by their first line, that cannot be run in a test, and why.
NOT_RUN = {
    "make repro": "minutes; the tests run each part",
    "make setup": "gigabytes",
    "make up": "servers on fixed ports; tests/cluster has others",
    "git clone ssh://lab1": "another machine",
    "mlflow models serve": "a server",
    "sudo apt-get": "PostgreSQL",
    "export MLFLOW_TRACKING_URI": "a server",
    "dvc repro mine/dvc.yaml": "trainings on your photographs",
    "dvc.yaml  params.yaml": "no commands, the tree",
}
# Words of this project's past, for which the field has others.
AVOIDED = (
    r"cells?|rivals?|variations?|doors?|doorways?|handover|rooms?|leases?|panels?|brought (in)?to MLflow|"
    r"goes on (where|from)|going on|go on where|(ends|end) in the same bytes|abreast|warm(?!-?up)|elsewhere|"
    r"good for|(of|on) (its|their|our|one's) own|(a|the) person|persons|somebody|people type|by hand|"
    r"told of|larger decides|examin(e|es|ed|ing|ation)"
)


def text_of(page):
    return re.sub(r"<!--.*?-->", "", page.read_text(), flags=re.DOTALL)


def blocks_of(page):
    """A page's blocks of commands."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text_of(page), re.MULTILINE | re.DOTALL)
    return [block for kind, block in blocks if not kind]


def commands_of(page):
    """The words of each command in a page's blocks and code spans that is `lambdanet` or `make`."""
    spans = re.findall(r"`([^`\n]+)`", prose_of(page, spans=True))
    lines = [line for block in blocks_of(page) for line in block.splitlines()] + spans
    return [
        shlex.split(re.split("[<>]", line)[0], comments=True)
        for line in lines
        if re.match("(lambdanet|make) ", line)
    ]


def prose_of(page, *, spans=False):
    text = re.sub(r"^```.*?^```$", "", text_of(page), flags=re.MULTILINE | re.DOTALL)
    return text if spans else re.sub(r"`[^`\n]+`|\]\([^)]*\)", "", text)


def anchors(page):
    """GitHub's names of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", prose_of(page, spans=True), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_and_files_that_are_named_lead_to_a_file_and_a_heading(page):
    prose = prose_of(page, spans=True)
    for target in re.findall(r"\]\((?![a-z]+:)([^)\s]+)\)", prose):
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target
    assert [name for name in re.findall(FILE, prose) if not (ROOT / name).exists()] == []


def test_every_module_that_a_page_runs_exists():
    named = {name for page in PAGES for name in re.findall(r"python -m ([\w.]+)", page.read_text())}
    assert "benchmarks.blind" in named
    assert [name for name in named if not importlib.util.find_spec(name)] == []


def test_readme_is_short_begins_with_a_command_and_names_every_page():
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) <= 150
    assert readme.splitlines().index("```") < 30
    assert [page.name for page in ROOT.glob("docs/*.md") if f"](docs/{page.name})" not in readme] == []


def words_of(file):
    """A page's prose, or a module's comments, docstrings and messages without names and expressions."""
    if file in PAGES:
        return prose_of(file)
    tokens = tokenize.generate_tokens(io.StringIO(file.read_text()).readline)
    texts = [one.string for one in tokens if one.type in (tokenize.COMMENT, tokenize.STRING)]
    return re.sub(r"`[^`\n]+`|\{[^}\n]*\}", "", "\n".join(text for text in texts if " " in text))


@pytest.mark.parametrize("file", [*PAGES, *CODE], ids=lambda file: file.name)
def test_words_are_technical_english(file):
    found = re.finditer(rf"\b(?:{AVOIDED})\b", words_of(file), re.IGNORECASE)
    allowed = () if file in PAGES else ("panel", "panels")  # in code, those of a matrix
    assert [match[0] for match in found if match[0].lower() not in allowed] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_what_the_command_line_takes(page):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for program, *words in commands_of(page):
        if program == "make":
            assert words[0] in targets or "=" in words[0], words
            continue
        command, context = cli.main, None
        while isinstance(command, click.Group) and words and words[0] != "--help":
            context = click.Context(command, parent=context)
            name, *words = words
            command = command.get_command(context, name)
            assert command, f"{page.name}: there is no command {name}"
        if words:  # else the command alone is named; what a code span leaves out is no mistake
            with contextlib.suppress(click.MissingParameter, click.BadOptionUsage, click.exceptions.Exit):
                command.make_context(command.name, words, parent=context)


def runnable():
    found = [(page, block) for page in PAGES for block in blocks_of(page)]
    return [(page, block) for page, block in found if not block.startswith(tuple(NOT_RUN))]


@pytest.mark.slow
@pytest.mark.parametrize(("page", "block"), runnable(), ids=lambda value: getattr(value, "name", None))
def test_blocks_of_commands_run(tmp_path, page, block):
    """In a folder with the project's files, some photographs and, to denoise, the committed networks."""
    for path in ROOT.iterdir():
        if not path.name.startswith((".", "mlflow", "mlartifacts", "runs")):
            if path.is_file():
                shutil.copy(path, tmp_path)
            else:
                (tmp_path / path.name).symlink_to(path)
    (tmp_path / "photos").mkdir()
    for name in ("photo.png", "a.jpg", "b.tiff", "photos/c.png"):
        Image.new("RGB", (40, 30), (90, 120, 200)).save(tmp_path / name)
    script = f"set -eu\n{block}"
    if re.search("lambdanet (denoise|models)", block):
        script = f"lambdanet models sync --profile paper\n{script}"
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=3600,
        env=os.environ | {"PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_readmes_python_denoises(monkeypatch):
    _, _, block = (ROOT / "README.md").read_text().partition("\n```python\n")
    monkeypatch.chdir(ROOT)
    torch.manual_seed(0)
    clean = torch.full((2, 3, 32, 32), 0.5)
    names = {"noisy": clean + 0.1 * torch.randn(clean.shape)}
    exec(block.partition("```")[0], names)
    assert (names["clean"] - clean).square().mean() < (names["noisy"] - clean).square().mean() / 4


def test_citation_names_this_version_and_the_paper():
    citation = read_yaml(ROOT / "CITATION.cff")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert citation["version"] == project["version"]
    assert citation["references"][0]["title"] == "Image Denoising Using LambdaNetworks"
    assert citation["license"] in (ROOT / "LICENSE").read_text()
