import contextlib
import json
from concurrent.futures import BrokenExecutor

import helpers
import numpy as np
import pytest
from skimage.io import imsave

from lambdanet import config, workers
from lambdanet.config import Cell
from lambdanet.report import figures, tables, write_report

HISTORY = "epoch,learning_rate,loss,monitored_psnr\n1,0.001,0.02,18.5\n2,0.0005,0.01,21.0\n"


def score(psnr, **changes):
    values = {
        "psnr": psnr, "ssim": 0.8, "psnr_per_image": psnr + 0.2, "noisy_psnr": 20.3, "noisy_ssim": 0.5,
        "noisy_psnr_per_image": 20.4, "parameters": 9083, "images": 200, "clean_sha256": "c",
        "noisy_sha256": "n", "weights_sha256": "w", "seed": 0, "noise": "gaussian-01",
    }  # fmt: skip
    return values | changes


def cells(*pairs, seeds=(0,)):
    return [Cell("sample", noise, model, seed) for noise, model in pairs for seed in seeds]


PAIRS = [("gaussian-01", "lambdanet"), ("gaussian-01", "dncnn"), ("speckle", "lambdanet-u4-m7")]


def test_table_sets_ours_beside_the_papers():
    grid = cells(*PAIRS)
    table = tables.table2(grid, {grid[0]: score(27.0), grid[1]: score(28.5)}).set_index(["noise", "model"])
    ours = table.loc[("gaussian-01", "lambdanet")]
    assert (ours["psnr"], ours["paper_psnr"], ours["paper_ssim"]) == (27.0, 26.88, 0.88)
    assert ours["psnr_difference"] == pytest.approx(0.12)
    assert ours["ssim_difference"] == pytest.approx(-0.08)
    assert table["best"].tolist() == [False, True, False]
    missing = table.loc[("speckle", "lambdanet-u4-m7")]
    assert missing["seeds"] == 0
    assert missing[["psnr", "parameters", "paper_psnr"]].isna().all()


def test_table_averages_over_seeds():
    grid = cells(PAIRS[0], seeds=(0, 1, 2))
    table = tables.table2(grid, {grid[0]: score(26.0), grid[2]: score(27.0)})
    assert table["psnr"].tolist() == [26.5]
    assert table["seeds"].tolist() == [2]


def test_table_refuses_scores_of_different_test_images():
    grid = cells(*PAIRS[:2])
    with pytest.raises(ValueError, match="gaussian-01 were scored on different test images"):
        tables.table2(grid, {grid[0]: score(26.0), grid[1]: score(27.0, noisy_sha256="other")})


def test_paper_has_sixteen_rows_and_names_those_that_do_not_hold():
    paper = tables.paper_table2()
    assert len(paper) == 16
    noted = paper[paper["paper_note"] != ""]
    assert sorted(zip(noted["noise"], noted["model"], strict=True)) == sorted(
        [("gaussian-02", "autoencoder")]
        + [(n, "dncnn") for n in ("gaussian-01", "gaussian-02", "gaussian-03", "speckle", "salt-and-pepper")]
    )


def test_markdown_marks_the_best_and_what_was_not_run():
    grid = cells(*PAIRS)
    table = tables.table2(grid, {grid[0]: score(27.0), grid[1]: score(28.5, parameters=558336)})
    lines = tables.as_markdown(table).splitlines()
    assert lines[2] == (
        "| gaussian-01 | lambdanet | 9,083 | 27.00 | 26.88 | +0.12 | 0.800 | 0.88 | -0.080 | 20.30 |"
    )
    assert lines[3].startswith("| gaussian-01 | dncnn | 558,336 | **28.50** | 26.70 † | +1.80 |")
    assert lines[4] == "| speckle | lambdanet-u4-m7 | | not run |  | | | | | |"
    assert {line.count("|") for line in lines[:5]} == {11}


def test_text_and_csv_say_the_same(tmp_path):
    grid = cells(*PAIRS)
    table = tables.table2(grid, {grid[0]: score(27.0)})
    (tmp_path / "t.csv").write_text(table.to_csv(index=False))
    text = tables.as_text(tables.read_table(tmp_path / "t.csv"))
    assert text == tables.as_text(table)
    assert text.splitlines()[1].split() == [
        "gaussian-01",
        "lambdanet",
        "9,083",
        "27.00",
        "26.88",
        "0.800",
        "0.88",
        "20.30",
    ]


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Scores, histories, panels and one log of three cells of which the last was not run."""
    rng = np.random.default_rng(0)
    grid = cells(*PAIRS)
    monkeypatch.chdir(tmp_path)
    table = {
        "noises": ["gaussian-01"],
        "lambdanets": ["lambdanet", "lambdanet-u4-m7"],
        "baselines": ["dncnn"],
    }
    models = helpers.PARAMS["models"] | {"lambdanet-u4-m7": helpers.LAMBDANET}
    train = dict.fromkeys(models, helpers.TRAIN | {"epochs": 2})
    del train["autoencoder"]
    helpers.write_config(
        tmp_path,
        helpers.PARAMS | {"table": table, "models": models},
        helpers.PROFILE | {"profile": "sample", "train": train, "ablations": {}},
    )
    loaded = config.load("profile.yaml")
    runs = [loaded.run(cell.noise, cell.model, cell.seed) for cell in grid[:2]]
    for number, run in enumerate(runs):
        for path in (run.scores, run.log, run.history, run.samples / "a"):
            path.parent.mkdir(parents=True, exist_ok=True)
        run.scores.write_text(json.dumps(score(27.0 + number, weights_sha256=f"w{number}")))
        run.history.write_text(HISTORY)
        for name in figures.CORNERS:
            for kind in ("clean", "noisy", "denoised"):
                picture = rng.integers(0, 256, (512, 512, 3), np.uint8)
                imsave(run.samples / f"{name}-{kind}.png", picture)
    record = {"device": "cpu <x>", "commit": "abc", "python": "3.11", "versions": {"torch": "2"}}
    records = [record | {"weights_sha256": "w0"}, record | {"weights_sha256": "other", "commit": "wrong"}]
    runs[0].log.write_text(json.dumps(records))
    return loaded, runs, tmp_path / "results"


def write(loaded, out):
    write_report(loaded, out.with_name("benchmarks.json"), out)


def test_report_holds_everything_and_is_the_same_by_several_processes(written, monkeypatch):
    known, _, out = written
    write(known, out)
    first = {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert {str(path) for path in first} == {
        "table2.csv", "table2.md", "report.html", "digests.json", "figures/convergence.png",
        "figures/psnr.png", "figures/pareto.png", "studies/pareto.csv", "figures/authors.png",
        "figures/panel-gaussian-01.png", "scores/gaussian-01-lambdanet-0.json",
        "scores/gaussian-01-dncnn-0.json", "histories/gaussian-01-lambdanet-0.csv",
        "histories/gaussian-01-dncnn-0.csv", "trainings.json",
    }  # fmt: skip
    monkeypatch.setattr(workers, "cores", lambda: 2)
    write(known, out)
    assert first == {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert (out / "histories/gaussian-01-dncnn-0.csv").read_text() == HISTORY
    numbers = json.loads((out / "scores/gaussian-01-dncnn-0.json").read_text())
    assert numbers["psnr"] == 28.0
    assert all(isinstance(value, int | float) for value in numbers.values())
    assert json.loads((out / "digests.json").read_text())["gaussian-01-dncnn-0"] == {
        "clean": "c", "noisy": "n", "weights": "w1",
    }  # fmt: skip
    kept = json.loads((out / "trainings.json").read_text())
    assert kept["gaussian-01-dncnn-0"] == {"scores": score(28.0, weights_sha256="w1"), "log": None}
    assert kept["gaussian-01-lambdanet-0"]["log"]["commit"] == "abc"


def test_figures_are_drawn_where_something_kills_the_processes(written, monkeypatch):
    known, _, out = written

    def broken():
        raise BrokenExecutor

    monkeypatch.setattr(workers, "several", lambda *_: contextlib.nullcontext(lambda *_: broken))
    write(known, out)
    assert {path.stem for path in (out / "figures").iterdir()} == {
        "convergence", "psnr", "pareto", "authors", "panel-gaussian-01"
    }  # fmt: skip


def test_page_says_how_each_cell_was_trained(written):
    known, _, out = written
    write(known, out)
    page = (out / "report.html").read_text()
    assert "code of commit <code>abc</code>" in page
    assert "wrong" not in page  # that record belongs to other weights
    assert "cpu &lt;x&gt;" in page
    assert "not recorded here" in page
    assert '<td class="best">28.00</td>' in page
    assert page.count("not run") == 1


def test_nothing_scored_leaves_the_old_results(written):
    known, (run, other), out = written
    write(known, out)
    before = (out / "table2.md").read_text()
    run.scores.unlink()
    other.scores.unlink()
    with pytest.raises(ValueError, match=r"holds no scores of profile sample; make them with"):
        write(known, out)
    assert (out / "table2.md").read_text() == before


@pytest.mark.parametrize("content", ["", "[1]", "{", '{"psnr": NaN'])
def test_unreadable_score_is_one_line(written, content):
    known, (run, _), out = written
    run.scores.write_text(content)
    with pytest.raises(ValueError, match=r"gaussian-01/lambdanet-0\.json (cannot be read|is no JSON object)"):
        write(known, out)
    assert not out.exists()


def test_history_without_its_columns_is_one_line(written):
    known, (run, _), out = written
    run.history.write_text("epoch,loss\n1,2\n")
    with pytest.raises(ValueError, match="lacks the columns learning_rate, monitored_psnr"):
        write(known, out)


def test_read_table_names_the_missing_file(tmp_path):
    with pytest.raises(ValueError, match=r"table2\.csv cannot be read .*dvc repro"):
        tables.read_table(tmp_path / "table2.csv")


def test_one_run_is_its_score_beside_the_paper_or_before_that_its_last_epoch(written):
    loaded, (run, _), _ = written
    untrained = loaded.run("gaussian-01", "lambdanet", 7)
    with pytest.raises(ValueError, match=r"history.csv cannot be read"):
        tables.run_row(untrained)
    scored = tables.run_row(run)
    assert (scored["PSNR (dB)"], scored["paper"], scored["SSIM"], scored["paper's SSIM"]) == (
        27.0, 26.88, 0.8, 0.88
    )  # fmt: skip
    run.scores.unlink()
    trained = tables.run_row(run)
    assert (trained["epochs"], trained["loss"], trained["PSNR of 4 test images (dB)"]) == (2, 0.01, 21.0)


def test_several_seeds_give_a_spread_and_say_what_it_tells_apart():
    grid = cells(("gaussian-01", "lambdanet"), ("gaussian-01", "dncnn"), ("gaussian-01", "cnn"), seeds=(0, 1))
    psnrs = [26.0, 26.2, 26.1, 26.2, 24.0, 24.1]
    table = tables.table2(grid, {cell: score(psnr) for cell, psnr in zip(grid, psnrs, strict=True)})
    assert list(table["psnr_std"].round(4)) == [0.1414, 0.0707, 0.0707]
    assert "| 26.10 ± 0.14 |" in tables.as_markdown(table)
    assert tables.seed_sentences(table) == [
        "gaussian-01: dncnn > lambdanet > cnn; not told apart: dncnn and lambdanet."
    ]
    # The second and third model trained once: judged by the first one's spread, 0.14.
    some = {cell: score(psnr) for cell, psnr in zip(grid, psnrs, strict=True) if cell.seed == 1}
    some |= {cell: score(psnr) for cell, psnr in zip(grid, psnrs, strict=True) if cell.model == "lambdanet"}
    table = tables.table2(grid, some)
    (said,) = tables.seed_sentences(table)
    assert said == (
        "gaussian-01: dncnn > lambdanet > cnn; not told apart: dncnn and lambdanet; "
        "trained once, so judged by the others' spread: dncnn, cnn."
    )
    assert "deviation of 2 trainings, or one training where there is no ±" in tables.as_markdown(table)
    one = tables.table2(grid[:1], {grid[0]: score(26.0)})
    assert "psnr_std" not in one
    assert tables.seed_sentences(one) == []
