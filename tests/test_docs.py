"""README and docs: links lead somewhere, commands exist, and the words are those of technical English."""

import re
import shlex
import tomllib
from pathlib import Path

import click
import pytest
import torch
import yaml
from helpers import ROOT

from lambdanet import cli
from pipelines import __main__, cluster

PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(
    ROOT.glob("docs/*.md")
)
COMMANDS = {  # click groups whose words are looked up
    ("lambdanet",): cli.main,
    ("python", "-m", "pipelines"): __main__.main,
    ("python", "-m", "pipelines.cluster"): cluster.main,
}

# Words of this project's past that a reader would have to translate back, and what says the same.
AVOIDED = {
    r"cells?": "run",
    r"rivals?": "baseline",
    r"variations?": "ablation",
    r"doors?|doorways?|handover": "entry point, entry script",
    r"rooms?|leases?": "workspace, buffer",
    r"panels?": "sample images",
    r"brought (in)?to MLflow": "logged to MLflow",
    r"told of": "logged to",
    r"goes on (where|from)|going on|go on where": "resumes from its checkpoint",
    r"(ends|end) in the same bytes": "is byte-identical",
    r"abreast": "parallel",
    r"warm(?!-?up)": "preloaded",
    r"elsewhere": "offline, on another machine",
    r"good for": "name the use",
    r"(of|on) (its|their|our|one's) own": "name the thing",
    r"(a|the) person|persons|somebody|people type": "the user",
    r"by hand": "manually, from the command line",
    r"larger decides": "takes precedence",
    r"examin(e|es|ed|ing|ation)": "evaluate by noise level",
}


def text_of(page):
    return re.sub(r"<!--.*?-->", "", page.read_text(), flags=re.DOTALL)


def code_of(page):
    """The lines of a page's blocks of commands, and its code spans."""
    text = text_of(page)
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    spans = re.findall(r"`([^`\n]+)`", prose_of(page, spans=True))
    return [line for kind, block in blocks if not kind for line in block.splitlines()] + spans


def prose_of(page, *, spans=False):
    text = re.sub(r"^```.*?^```$", "", text_of(page), flags=re.MULTILINE | re.DOTALL)
    return text if spans else re.sub(r"`[^`\n]+`|\]\([^)]*\)", "", text)


def anchors(page):
    """GitHub's names of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", prose_of(page, spans=True), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_leads_to_a_file_and_a_heading(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose_of(page, spans=True)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


def test_every_page_is_in_the_readme():
    readme = (ROOT / "README.md").read_text()
    assert [page.name for page in ROOT.glob("docs/*.md") if f"](docs/{page.name})" not in readme] == []


def test_readme_is_short_and_begins_with_a_command():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 150
    assert lines.index("```") < 30


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_words_are_technical_english(page):
    prose = prose_of(page)
    found = {word: re.search(rf"\b(?:{word})\b", prose, re.IGNORECASE) for word in AVOIDED}
    assert {match[0]: AVOIDED[word] for word, match in found.items() if match} == {}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_their_options_exist(page):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for line in code_of(page):
        words = shlex.split(line, comments=True) if re.match(r"(lambdanet|python|make) ", line) else []
        if words[:1] == ["make"]:
            assert set(words[1:2]) <= targets or "=" in words[1], line
        for prefix, group in COMMANDS.items():
            rest = words[len(prefix) :]
            if tuple(words[: len(prefix)]) != prefix or not rest:
                continue
            command = group.commands[rest[0]]
            if isinstance(command, click.Group) and rest[1:2] and rest[1] in command.commands:
                command = command.commands[rest[1]]
            known = {option for one in command.params for option in (*one.opts, *one.secondary_opts)}
            given = {word for word in rest if re.match(r"--?[a-z]", word)}
            assert given <= known | {"--help"}, line


def test_readmes_python_denoises(monkeypatch):
    (code,) = re.findall(
        r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )
    monkeypatch.chdir(ROOT)
    torch.manual_seed(0)
    clean = torch.full((2, 3, 32, 32), 0.5)
    names = {"noisy": clean + 0.1 * torch.randn(clean.shape)}
    exec(code, names)
    assert (names["clean"] - clean).square().mean() < (names["noisy"] - clean).square().mean() / 4


def test_citation_names_this_version_and_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert citation["version"] == project["version"]
    assert citation["references"][0]["title"] == "Image Denoising Using LambdaNetworks"
    assert citation["license"] in Path(ROOT, "LICENSE").read_text()
