"""What the studies' tables and sentences say of scores that are made up, and of those committed."""

import dataclasses

import helpers
import numpy as np
import pandas as pd
import pytest
from report_helpers import row
from scipy import stats

from lambdanet import config
from lambdanet.report import figures, runs, studies

SHORT = {"epochs": 25}
SEEDS = [26.7, 26.9, 26.8]  # s = 0.1


def entry(name, psnrs=(), *, parameters=9_083, train=None, study="", **hyperparameters):
    of = {"hyperparameters": {"name": "lambdanet", "d": 16} | hyperparameters, "study": study}
    return row(name, psnrs, parameters=parameters, train=SHORT | (train or {}), **of)


BASE = entry("base", [26.8], study="base")
SPREAD = row("lambdanet", SEEDS)
FOUR, WIDE = entry("d4", [25.0], d=4), entry("d128", [27.5], d=128, parameters=17_903)


def channels(*entries):
    return runs.Study(name="channels", title="d", axis="d", base=BASE, rows=list(entries))


def test_rows_of_a_study_have_the_base_at_its_place():
    question = channels(FOUR, WIDE, entry("d8", d=8))
    table = studies.table(question, [SPREAD, BASE, FOUR, WIDE])
    assert (list(table["axis"]), list(table["changes"])) == ([4, 8, 16, 128], ["d 4", "d 8", "d 16", "d 128"])
    done = table[table["seeds"] > 0]
    assert list(done["variation"]) == ["d4", "base", "d128"]
    assert list(done["reference"]) == [25.6, 26.83, 27.20]
    assert list(done["difference"].round(9)) == [-1.8, 0, 0.7]
    half = stats.t.ppf(0.975, 2) * 0.1 * 2**0.5
    assert list(done["low"].dropna().round(9)) == [round(-1.8 - half, 9), round(0.7 - half, 9)]
    other = dataclasses.replace(FOUR, data=FOUR.data | {"dataset": "photos"})
    assert studies.table(channels(other), [BASE])["reference"].isna().all()


def test_sentences_say_what_came_out_and_whether_it_is_more_than_chance():
    said = studies.sentences(channels(FOUR, WIDE), [SPREAD, BASE, FOUR, WIDE])
    assert said == [
        "The highest is d128 with 27.50 dB and 17,903 parameters, the lowest d4 with 25.00 dB.",
        "d128 is 0.70 dB above the base (+0.09 to +1.31 dB); that it is better: holds.",
        "All entries: model lambdanet, optimizer adam, fresh noise yes, epochs 25, batch size 256, learning "
        "rate 0.001, schedule exponential, decay 0.99, weight decay 1e-05, loss mse, dataset cifar10, images "
        "50,000, noise gaussian sigma 0.1, initial embedding 1.",
        "Document: PSNR of the authors' released weights on 500 test images; for d = 4 and 8, read off the "
        "paper's figure.",
    ]
    assert studies.sentences(channels(entry("d4", d=4)), [BASE]) == []


def test_settings_of_one_network_are_compared_and_networks_only_where_trained_alike():
    bce = entry("bce", [27.9, 27.91], train={"loss": "bce"})
    question = runs.Study(name="loss", title="loss", base=entry("base", [26.8, 26.81]), rows=[bce])
    assert "that it is better: holds." in studies.sentences(question, [])[1]
    other = entry("d32", [27.9, 27.91], d=32, train={"loss": "bce"})
    said = studies.sentences(dataclasses.replace(question, rows=[other]), [])[1]
    assert said.endswith("inconclusive (trained differently: loss bce and mse).")


def autoencoder(name, psnrs, **train):
    return row(name, psnrs, study="autoencoder", train=train, hyperparameters={"name": "autoencoder"})


def test_a_study_of_another_network_has_no_lambdanet_for_its_base(monkeypatch):
    monkeypatch.chdir(helpers.ROOT)
    known = config.load(config.find("paper"))
    rows = runs.collect(known, {}, {}, {})
    bases = {one.name: one.base and one.base.name for one in runs.studies(known, rows)}
    assert {name for name, base in bases.items() if base is None} >= {
        "size", "dncnn", "autoencoder", "autoencoder-settings", "lambda-resnet", "skip-autoencoder",
        "bsds500", "photographs", "split",
    }  # fmt: skip
    assert set(bases.values()) == {"base", None}
    assert {name for name, base in bases.items() if base == "base"} >= {"channels", "window", "keys"}
    one = autoencoder("slow", [24.73], learning_rate=0.001)
    two = autoencoder("fast", [25.91], learning_rate=0.003)
    question = runs.Study(name="autoencoder", title="", rows=[one, two])
    said = studies.sentences(question, [BASE, SPREAD, one, two])
    assert said[1] == (
        "fast is 1.18 dB above the next, slow; that it is better: inconclusive "
        "(trained once, and nothing of its family with several seeds)."
    )
    assert list(studies.table(question, [one, two])["difference"].dropna()) == []
    said = studies.sentences(dataclasses.replace(question, rows=[one]), [])[0]
    assert said == (
        "Only slow with 24.73 dB and 1,000 parameters was run, so there is nothing to compare it with."
    )


def test_only_those_trained_alike_form_a_front():
    rows = [
        entry("small", [26.0], parameters=1_000),
        entry("worse", [25.0], parameters=8_900),
        entry("large", [26.8], parameters=9_083),
        entry("other", [28.0], parameters=500, train={"learning_rate": 0.01}),
        entry("cosine", [29.0], parameters=9_083, train={"schedule": "cosine"}),
        entry("cosine-embedding", [28.0], parameters=400, train={"schedule": "cosine"}, embedding_std=0.02),
        row("dncnn", [28.6], train=SHORT, hyperparameters={"depth": 3, "width": 8}),
        row("dncnn", [99.0], noise="speckle"),
        entry("not-run"),
    ]
    table = studies.pareto(rows).set_index("name")
    assert " ".join(table.index) == "cosine-embedding other small worse cosine large dncnn"
    assert set(table.index[table["front"]]) == {"small", "large"}
    assert set(table.index[table["recipe"] == 1]) == {"small", "worse", "large"}
    assert table["recipe"].max() == 5  # DnCNN is trained without weight decay
    tuned = {"study": "size", "tuned": ("learning_rate",)}
    searched = studies.pareto([dataclasses.replace(one, **tuned) for one in rows[2:4]])
    assert list(searched["recipe"]) == [1, 1]
    # The front is that of the networks with searched recipes, where there are any.
    both = {"study": "size", "tuned": ("learning_rate", "embedding_std")}
    others = entry("short", [26.5], parameters=9_000, train=SHORT)
    mixed = [*rows[:3], *(dataclasses.replace(one, **both) for one in (*rows[4:6], others))]
    assert set(studies.pareto(mixed).query("front")["name"]) == {"cosine-embedding", "cosine"}
    assert searched["trained"][0].endswith(", learning rate by a search for each kind of network")
    alone = studies.pareto(rows[3:6])
    assert not alone["front"].any()
    assert studies.pareto([entry("not-run")]).empty


def test_a_documents_numbers_stand_beside_its_own_images_only():
    def split(dataset):
        data = {"dataset": dataset, "images": 40_000, "noise": {"name": "gaussian", "sigma": 0.1}}
        of = {"study": "split", "document": True, "data": data, "hyperparameters": {"name": "cnn"}}
        return runs.Study(name="split", title="A CNN", rows=[row("cnn-bce", [26.0], **of)])

    theirs, other = split("cifar10-split"), split("photos")
    assert studies.table(theirs, [])["reference"].tolist() == [17.737]
    assert studies.sentences(theirs, [])[-1].startswith("Its document gives 17.74 dB on test")
    assert studies.table(other, [])["reference"].isna().all()
    said = "Its document's images are not used, so its numbers are not shown."
    assert studies.sentences(other, [])[-1] == said
    assert studies.pareto(theirs.rows).empty  # other images


def logged_of(noise):
    """The authors' losses of their auto-encoder."""
    return studies.authors_convergence().query("model == 'autoencoder' and noise == @noise")


def history(factor, epochs=3):
    """The authors' losses of their auto-encoder, times a factor."""
    logged = logged_of("gaussian-01")
    return pd.DataFrame({"epoch": range(1, epochs + 1), "loss": logged["loss"].to_numpy()[:epochs] * factor})


def test_nearest_to_the_authors_log_is_by_the_mean_difference_of_log_losses(tmp_path):
    logs = {"far": (0.3, 0.32), "near": (-0.1, 0.12)}
    tried = {name: [history(np.exp(log)) for log in of_seeds] for name, of_seeds in logs.items()}
    table, said = studies.following(tried, logged_of("gaussian-01"))
    assert (list(table["variation"]), list(table["distance"].round(9))) == (["near", "far"], [0.11, 0.31])
    low, high = stats.ttest_ind([0.3, 0.32], [0.1, 0.12], equal_var=False).confidence_interval(0.95)
    assert said == [
        "Nearest to the authors' log is near: the natural logarithm of its loss differs from that of theirs "
        "by 0.110, on average over 3 epochs and 2 seeds.",
        f"The next, far, is 0.200 ({low:+.3f} to {high:+.3f}) further away; that it is: holds.",
    ]
    once = {name: of_seeds[:1] for name, of_seeds in tried.items()}
    assert studies.following(once, logged_of("gaussian-01"))[1][1].endswith("that it is: inconclusive.")
    none, silent = studies.following(tried, logged_of("gaussian-03"))
    assert (none.empty, silent) == (True, [])
    figures.write_following(tmp_path / "figure.png", tried, logged_of("gaussian-01"))
    assert helpers.pixels_of(tmp_path / "figure.png").std() > 1


def test_how_trainings_end_is_compared_with_those_of_as_many_epochs():
    falling = np.geomspace(0.01, 0.005, 300)
    uneven = falling * np.exp(np.where(np.arange(300) % 2, 0.002, 0))
    histories = {}
    trained = [("gaussian-01", 0, falling), ("gaussian-01", 1, uneven), ("speckle", 0, falling[:40])]
    for noise, seed, loss in trained:
        key = config.RunKey("paper", noise, "autoencoder", seed)
        histories[key] = pd.DataFrame({"epoch": range(len(loss)), "loss": loss})
    table = studies.convergence(histories, studies.authors_convergence())
    (row,) = table.to_dict("records")
    assert (row["noise"], row["model"], row["epochs"], row["seeds"]) == ("gaussian-01", "autoencoder", 300, 2)
    assert row["loss"] == pytest.approx(0.005 * (1 + np.exp(0.002)) / 2)
    changes = np.tile([0.002, -0.002], 30)
    assert row["fluctuation"] == pytest.approx(changes.std(ddof=1) / 2)  # of the two seeds' mean
    logged = logged_of("gaussian-01")["loss"].to_numpy()
    assert row["authors_loss"] == logged[-1]
    assert row["authors_fluctuation"] == pytest.approx(np.diff(np.log(logged))[-60:].std(ddof=1))
