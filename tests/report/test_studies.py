"""What the studies' tables, sentences and figures say of scores that are made up."""

import dataclasses

import helpers
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from lambdanet import config
from lambdanet.report import figures, studies


@pytest.fixture(scope="module")
def known():
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(helpers.ROOT)
        return config.load("profile.yaml")


def scores(known, **psnrs):
    """Scores by cell of `paper`: PSNR by variation, a list for several seeds."""
    found = {}
    for name, values in psnrs.items():
        for seed, psnr in enumerate(values if isinstance(values, list) else [values]):
            cell = config.Cell("paper", "gaussian-01", name.replace("_", "-"), seed)
            size = {"base": 9083, "channels-d4": 8900, "channels-d128": 17903}.get(cell.model, 1000)
            found[cell] = {"psnr": psnr, "ssim": 0.8, "noisy_psnr": 20.0, "parameters": size, "images": 8}
    return found


def rows_of(known, study, **psnrs):
    whole = studies.table(known, scores(known, **psnrs))
    return studies.of_study(whole, study, known)


def test_rows_of_a_study_have_the_base_at_its_place(known):
    rows = rows_of(known, "channels", base=26.8, channels_d4=25.0, channels_d128=27.5)
    done = rows[rows["seeds"] > 0]
    assert list(rows["axis"]) == [4, 8, 16, 32, 64, 128, 256, 512]
    assert list(done["variation"]) == ["channels-d4", "base", "channels-d128"]
    assert list(done["reference"]) == [25.6, 26.83, 27.20]
    assert list(done["difference"].round(9)) == [-1.8, 0, 0.7]
    assert set(rows["epochs"]) == {25}


def test_sentences_say_what_came_out(known):
    said = studies.sentences(rows_of(known, "channels", base=26.8, channels_d4=25.0, channels_d128=27.5))
    assert said == [
        "The best is channels-d128 with 27.50 dB and 17,903 parameters, the worst channels-d4 with 25.00 dB.",
        "That is 0.70 dB above the base.",
        "The largest deviation from the released weights' values is -0.60 dB, at channels-d4 "
        "(those for d = 4 and 8 were read off the paper's figure).",
    ]
    said = studies.sentences(rows_of(known, "loss", base=26.8, loss_bce=26.75))
    assert said == [
        "The best is base with 26.80 dB and 9,083 parameters, the worst loss-bce with 26.75 dB.",
        "So the base stands, 0.05 dB above the next; loss-bce comes within 0.1 dB of the best with "
        "1,000 parameters.",
    ]
    assert studies.sentences(rows_of(known, "loss", base=26.8)) == []


def test_seeds_give_a_mean_and_a_spread(known):
    rows = rows_of(known, "loss", base=[26.0, 26.2], loss_bce=[27.0, 27.4])
    assert list(rows["psnr"].round(9)) == [26.1, 27.2]
    assert list(rows["psnr_std"].round(4)) == [0.1414, 0.2828]
    assert studies.sentences(rows)[-1] == (
        "The seeds' standard deviation is at most 0.283 dB: the largest difference is larger than twice that."
    )
    near = rows_of(known, "loss", base=[26.0, 26.2], loss_bce=[26.1, 26.5])
    assert studies.sentences(near)[-1].endswith("the largest difference is not larger than twice that.")


def test_multiply_adds_are_those_of_the_layers():
    pixels = 32 * 32
    assert studies.multiply_adds({"name": "dncnn", "depth": 3, "width": 8}) == pixels * 9 * (
        3 * 8 + 8 * 8 + 8 * 3
    )
    # queries, keys, values; position lambdas; content lambda; both applied by 4 heads; decoder; skip
    layer = 3 * (64 + 16 + 4) + 16 * 4 * 23**2 + 16 * 4 + 2 * 4 * 16 * 4 + 16 * 8 + 8 * 3 + 16 * 3
    assert studies.multiply_adds({"name": "lambdanet"}) == pixels * layer


def test_front_is_what_nothing_smaller_beats(known):
    grid = {
        config.Cell("paper", "gaussian-01", "dncnn", 0): {"psnr": 28.6, "ssim": 0.9, "parameters": 558_336},
        config.Cell("paper", "speckle", "dncnn", 0): {"psnr": 99.0, "ssim": 0.9, "parameters": 558_336},
    }
    found = scores(known, base=26.8, channels_d4=25.0, loss_bce=26.0)
    table = studies.pareto(known, grid, found, {"dncnn": 2e-3})
    assert list(table["name"]) == ["loss-bce", "channels-d4", "base", "dncnn"]
    assert list(table["front"]) == [True, False, True, True]
    assert table.iloc[3]["microseconds"] == 2000
    assert table["microseconds"].isna().sum() == 3
    assert list(table["family"]) == ["lambdanet", "lambdanet", "lambdanet", "dncnn"]


def test_authors_losses_are_means_of_the_longest_runs():
    logged = studies.authors_convergence()
    lengths = logged.groupby(["model", "noise"])["epoch"].agg(["min", "max", "size"])
    assert set(map(tuple, lengths.loc["lambdanet"].to_numpy())) == {(1, 50, 50)}
    assert set(map(tuple, lengths.loc["autoencoder"].to_numpy())) == {(1, 300, 300)}
    assert ("autoencoder", "gaussian-03") not in lengths.index
    last = logged[(logged["model"] == "lambdanet") & (logged["noise"] == "gaussian-01")].iloc[-1]
    assert last["loss"] == pytest.approx(0.259708 / 125)


def picture(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("name", ["channels", "window", "loss"])
def test_study_figures_change_with_the_scores(known, tmp_path, name):
    cells = {"channels": "channels_d4", "window": "window_u1_m7", "loss": "loss_bce"}
    drawn = []
    for psnr in (25.0, 26.0):
        rows = rows_of(known, name, base=26.8, **{cells[name]: psnr})
        figures.write_study(tmp_path / "figure.png", known.params.studies[name], rows)
        drawn.append(picture(tmp_path / "figure.png"))
    assert drawn[0].shape[1] == 520
    assert drawn[0].shape != drawn[1].shape or (drawn[0] != drawn[1]).any()


def test_figure_9_is_of_cells_that_the_authors_logged(tmp_path):
    history = pd.DataFrame({"epoch": [1, 2], "loss": [0.02, 0.01]})
    authors, path = studies.authors_convergence(), tmp_path / "figure.png"
    known_cell = config.Cell("paper", "gaussian-01", "lambdanet", 0)
    other = dataclasses.replace(known_cell, noise="gaussian-03", model="autoencoder")
    assert not figures.write_against_authors(path, {other: history}, authors)
    assert not path.exists()
    assert figures.write_against_authors(path, {known_cell: history, other: history}, authors)
    assert picture(path).std() > 1
