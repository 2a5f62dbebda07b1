import copy
import dataclasses
import json
import re
from pathlib import Path

import helpers
import numpy as np
import pytest
from report_helpers import HISTORY, MEASURES, row
from skimage.io import imsave

from lambdanet import config, files, yaml12
from lambdanet.report import figures, runs, tables, write_report

PIXEL = helpers.encoded(np.zeros((1, 1, 3), np.uint8), "PNG")
PAIRS = [("gaussian-01", "lambdanet"), ("gaussian-01", "dncnn"), ("speckle", "lambdanet-u4-m7")]
TABLE = {"noises": ["gaussian-01"], "lambdanets": ["lambdanet", "lambdanet-u4-m7"], "baselines": ["dncnn"]}


def score(psnr, **changes):
    key = {"profile": "tiny", "noise": "gaussian-01", "model": "lambdanet", "seed": 0}
    return MEASURES | key | {"psnr": psnr, "parameters": 9083, "noisy_sha256": "n"} | changes


def made(first=(27.0,), second=(28.5,), third=(), **changes):
    """The table of three rows, of which the last was not run."""
    psnrs = zip(PAIRS, (first, second, third), strict=True)
    rows = [row(model, values, noise=noise) for (noise, model), values in psnrs]
    return tables.table2(rows, **({"comparable": True} | changes))


def test_other_images_have_nothing_beside_them():
    table = made(comparable=False)
    assert table[["paper_psnr", "paper_ssim", "paper_parameters", "psnr_difference"]].isna().all(axis=None)
    text = tables.as_markdown(table, {})
    assert text.splitlines()[0] == "| noise | model | parameters | PSNR (dB) | SSIM | noisy input |"
    assert text.splitlines()[2] == "| gaussian-01 | LambdaNet | 9,083 | 27.00 | 0.800 | 20.30 |"
    assert "paper" not in text
    assert "paper" not in tables.as_text(table)


def test_table_averages_over_seeds_and_readers_see_intervals_hours_and_devices_where_there_are_any():
    logged = row("lambdanet", [26.0, None, 27.0], log={"hours": 1.5, "device": "cpu"})
    table = tables.table2([logged, row("dncnn")], comparable=True)
    half = 12.706205 * 0.5**0.5 / 2**0.5  # t(0.975, 1) s / sqrt(2)
    means = table[["psnr", "seeds", "psnr_low", "psnr_high"]].iloc[0].tolist()
    assert means == pytest.approx([26.5, 2, 26.5 - half, 26.5 + half])
    assert made()["psnr_low"].isna().all()
    shown = tables.for_readers(table, {})
    assert shown["hours"].tolist() == ["3.0", ""]  # of both seeds
    assert (shown["device"].tolist(), shown["interval"].tolist()) == (["cpu", ""], ["20.15 to 32.85", ""])
    assert shown["PSNR (dB)"].tolist() == ["26.50 ± 0.71", "not run"]
    assert not {"interval", "hours", "device"} & set(tables.for_readers(made(second=()), {}))
    assert r"LambdaNet & 9,083 & 26.50 ± 0.71 & 20.15 to 32.85 &" in tables.as_latex(shown)


def test_settings_of_another_day_are_noted_and_give_way_to_todays():
    old = row("autoencoder", [25.3], outdated="trained with weight decay 1e-05 (now 0)")
    table = tables.table2([old], comparable=True)
    lines = tables.as_markdown(table, {}).splitlines()
    assert "| **25.30** ‡ |" in lines[2]
    assert lines[-1] == "‡ Auto-encoder: trained with weight decay 1e-05 (now 0)."
    new = row("autoencoder", [25.9])
    both = dataclasses.replace(new, runs=(*old.runs, *new.runs))
    table = tables.table2([both], comparable=True)
    assert (table["psnr"].tolist(), table["seeds"].tolist(), table["note"].tolist()) == ([25.9], [1], [""])


def test_what_was_run_instead_of_a_model_stands_behind_it_and_says_how():
    quick = {"study": "dncnn", "train": {"epochs": 4}, "hyperparameters": {"name": "dncnn", "residual": True}}
    other = row("dncnn-other", [24.0], noise="speckle", **quick)
    rows = [row("lambdanet", [27.0]), row("dncnn"), row("dncnn-cosine", [28.5], **quick), other]
    lines = tables.as_markdown(tables.table2(runs.of_table(rows), comparable=True), {}).splitlines()
    assert [line.split(" | ")[1] for line in lines[2:5]] == ["LambdaNet", "DnCNN", "DnCNN, cosine schedule"]
    assert lines[4].split(" | ")[3:5] == ["**28.50** ‡", ""]
    how = "in place of DnCNN: epochs 4 (the table: 200), weight decay 1e-05 (the table: 0)"
    assert lines[-1] == f"‡ DnCNN, cosine schedule: {how}."
    trained = [row("dncnn", [27.0]), *rows[2:]]
    assert runs.of_table(trained) == trained[:1]


def test_table_refuses_scores_of_different_test_images():
    other = row("dncnn", [27.0])
    other.runs[0].scores["noisy_sha256"] = "other"
    with pytest.raises(ValueError, match="gaussian-01 were scored on different test images"):
        tables.table2([row("lambdanet", [26.0]), other], comparable=True)


def test_markdown_marks_the_highest_and_what_was_not_run():
    lines = tables.as_markdown(made(), {"speckle": "Speckle 0.1"}).splitlines()
    values = "27.00 | 26.88 | +0.12 | 0.800 | 0.88 | -0.080 | 20.30"
    assert lines[2] == f"| gaussian-01 | LambdaNet | 9,083 | {values} |"
    assert lines[3].startswith("| gaussian-01 | DnCNN | 558,336 | **28.50** | 26.70 † | +1.80 |")
    assert lines[4] == "| Speckle 0.1 | LambdaNet u4-m7 |  | not run |  |  |  |  |  |  |"
    assert "; one training each. PSNR of" in lines[-2]
    assert lines[-1] == f"† An entry of the paper that does not hold: {tables.DNCNN_DOUBT}."
    assert {line.count("|") for line in lines[:5]} == {11}
    several = tables.as_markdown(made(first=(26.0, 26.2)), {})
    assert "| 26.10 ± 0.14 |" in several
    assert "; ± is the standard deviation over up to 2 trainings, a number without it is of one." in several


def project(ablations=()):
    """The project's own sample, with `TABLE` and these ablations, in the current folder."""
    raw = yaml12.read(helpers.ROOT / config.PARAMS) | {"table": TABLE}
    chosen = yaml12.read(helpers.ROOT / "sample/profile.yaml") | {"root": ".", "file": "profile.yaml"}
    chosen["train"] = {name: chosen["train"][name] for name in [*TABLE["lambdanets"], *TABLE["baselines"]]}
    helpers.write_config(Path(), raw, chosen)
    loaded = config.load("profile.yaml")
    kept = {name: dataclasses.replace(loaded.profile.ablations[name], seeds=(0,)) for name in ablations}
    profile = copy.copy(loaded.profile)
    object.__setattr__(profile, "ablations", kept)  # a profile in a file has at least one
    return dataclasses.replace(loaded, profile=profile)


def write_run(run, content):
    files.write_json(run.scores, content)
    files.write_text(run.history, HISTORY)


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Scores, histories, samples and one log of three runs of which one was not run."""
    rng = np.random.default_rng(0)
    monkeypatch.chdir(tmp_path)
    loaded = project()
    runs = [loaded.run("gaussian-01", model, 0) for _, model in PAIRS[:2]]
    for number, run in enumerate(runs):
        write_run(run, score(27.0 + number, weights_sha256=f"w{number}"))
        run.samples.mkdir(parents=True)
        for name in figures.CORNERS:
            for kind in ("clean", "noisy", "denoised"):
                picture = rng.integers(0, 256, (512, 512, 3), np.uint8)
                imsave(run.samples / f"{name}-{kind}.png", picture)
    record = {"device": "cpu <x>", "commit": "abc", "python": "3.11", "versions": {"torch": "2"}}
    records = [record | {"weights_sha256": "w0"}, record | {"weights_sha256": "other", "commit": "wrong"}]
    files.write_json(runs[0].log, records)
    return loaded, runs, tmp_path / "results"


@pytest.fixture
def without_figures(monkeypatch):
    """Reports whose figures are one pixel each, where nothing is asked of them."""
    monkeypatch.setattr(figures, "_save", lambda path, _: files.write_bytes(path, PIXEL))


def test_report_holds_everything_and_is_the_same_when_it_is_written_again(written):
    known, _, out = written
    write_report(known, out)
    first = helpers.contents(out)
    assert set(first) == {
        "table2.csv", "table2.md", "table2.tex", "report.html", "trainings.json", "studies/pareto.csv",
        "studies/pareto.tex", "figures/convergence.png", "figures/psnr.png", "figures/pareto.png",
        "figures/dumbbell.png", "figures/strip.png", "figures/panel-gaussian-01.png",
        "scores/gaussian-01-lambdanet-0.json", "histories/gaussian-01-lambdanet-0.csv",
        "scores/gaussian-01-dncnn-0.json", "histories/gaussian-01-dncnn-0.csv",
    }  # fmt: skip
    write_report(known, out)
    assert helpers.contents(out) == first
    pictures = [content for name, content in first.items() if name.endswith(".png")]
    assert not [content for content in pictures if b"Software" in content or b"tIME" in content]
    assert first["histories/gaussian-01-dncnn-0.csv"] == HISTORY.encode()
    numbers = json.loads(first["scores/gaussian-01-dncnn-0.json"])
    assert numbers["psnr"] == 28.0
    assert all(isinstance(value, int | float) for value in numbers.values())
    kept = json.loads(first["trainings.json"])
    scores = score(28.0, weights_sha256="w1")
    assert kept["gaussian-01-dncnn-0"] == {"scores": scores, "log": None, "description": None}
    assert kept["gaussian-01-lambdanet-0"]["log"]["commit"] == "abc"


@pytest.mark.usefixtures("without_figures")
def test_page_says_how_each_run_was_trained(written):
    known, _, out = written
    write_report(known, out)
    page = (out / "report.html").read_text()
    assert "code of commit <code>abc</code>" in page
    assert "wrong" not in page  # that record belongs to other weights
    assert "cpu &lt;x&gt;" in page
    assert "not recorded here" in page
    assert '<td class="best">28.00</td>' in page
    assert "Not run: LambdaNet u4-m7 on every noise." in " ".join(page.split())
    assert "<summary>1 rows not run</summary>" in page
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', page)) < set(ids)


@pytest.mark.usefixtures("without_figures")
def test_nothing_scored_leaves_the_old_results(written):
    known, written_runs, out = written
    write_report(known, out)
    before = (out / "table2.md").read_text()
    for run in written_runs:
        run.scores.unlink()
    assert "holds no scores of profile sample; make them with" in helpers.refusal(write_report, known, out)
    assert (out / "table2.md").read_text() == before


@pytest.mark.parametrize("content", ["", "[1]", "{", '{"psnr": NaN'])
def test_unreadable_score_is_one_line(written, content):
    known, (run, _), out = written
    run.scores.write_text(content)
    with pytest.raises(ValueError, match=r"gaussian-01/lambdanet-0\.json (cannot be read|is no JSON object)"):
        write_report(known, out)
    assert not out.exists()


@pytest.mark.usefixtures("without_figures")
def test_a_page_names_no_data_and_settings_that_were_not_used(written):
    *_, out = written
    known = project(yaml12.read(helpers.ROOT / "sample/profile.yaml")["ablations"])
    for number, run in enumerate(known.ablation_runs):
        of_training = {"train_psnr": 26.5} if run.levels else {}
        write_run(run, score(26 + number / 10) | of_training)
    write_report(known, out)
    page = (out / "report.html").read_text()
    # Its sentences and titles, without its tables, its commands and its figures.
    found = re.findall(r"<(p|h[1-3])\b[^>]*>(.*?)</\1>", page, flags=re.DOTALL)
    said = " ".join(" ".join(re.sub(r"<[^>]+>", "", one) for _, one in found).split())
    unused = ["BSDS500", "CIFAR", "31.19", "17.74", "exponential", "decay 0.99", "batch size 256", "50,000"]
    unused += ["500 of the test images", "constant 0.001", "authors", "weight decay 1e-05", "Table 2 of"]
    assert [word for word in unused if word.lower() in said.lower()] == []
    assert "These are not the paper's images, so nothing here speaks for or against the paper." in said
    assert "PSNR of 100 of the test images" in page
    assert "model dncnn, residual yes, depth 4, width 16, " in said
    assert "Its document&#39;s images are not used, so its numbers are not shown." in said
    heads = " ".join(re.findall(r"<th\b[^>]*>(.*?)</th>", page))
    assert not {"paper", "document"} & set(heads.split())


@pytest.mark.usefixtures("without_figures")
def test_what_was_recorded_with_a_training_is_what_the_page_says_of_it(written):
    known, (_, run), out = written
    used = dataclasses.asdict(run.settings) | {"weight_decay": 0.5}
    files.write_json(run.description, {"model": run.model, "training": used})
    write_report(known, out)
    note = "DnCNN: trained with weight decay 0.5 (now 0)"
    assert note in (out / "report.html").read_text()
    assert note in (out / "table2.md").read_text()
    run.description.unlink()  # the report itself keeps it, with the digest of the weights
    write_report(known, out)
    assert note in (out / "table2.md").read_text()
    files.write_json(run.scores, json.loads(run.scores.read_text()) | {"weights_sha256": "others"})
    write_report(known, out)
    assert note not in (out / "table2.md").read_text()
