"""Which of the paper's claims hold, by scores that are made up."""

import pandas as pd

from lambdanet.config import Cell
from lambdanet.report import tables
from lambdanet.report.findings import findings

SIZES = {"lambdanet": 9083, "lambdanet-u4-m7": 3959, "autoencoder": 47355, "dncnn": 558336}


def table_of(**psnrs):
    """A table of LambdaNet and others: PSNR by model, and those by noise."""
    scores = {}
    for noise, values in psnrs.items():
        for model, psnr in values.items():
            measured = dict.fromkeys(tables.MEASURES, 20.0) | {"psnr": psnr, "parameters": SIZES[model]}
            digests = {"clean_sha256": "c", "noisy_sha256": noise}
            cell = Cell("paper", noise.replace("_", "-"), model, 0)
            scores[cell] = measured | digests | {"images": 8}
    noises = dict.fromkeys(cell.noise for cell in scores)
    return tables.table2([Cell("paper", noise, model, 0) for noise in noises for model in SIZES], scores)


def network(name, family, parameters, psnr):
    return {"name": name, "family": family, "parameters": parameters, "psnr": psnr}


def test_each_claim_has_its_verdict_and_numbers():
    table = table_of(
        gaussian_01={"lambdanet": 26.8, "lambdanet-u4-m7": 26.45, "autoencoder": 25.0, "dncnn": 26.9},
        gaussian_03={"lambdanet": 21.6, "autoencoder": 22.1, "dncnn": 22.0},
    )
    networks = [
        network("lambdanet", "lambdanet", 9083, 26.8),
        network("channels-d8", "lambdanet", 9000, 28.0),
        network("size-dncnn-6x14", "dncnn", 7924, 27.5),
        network("size-autoencoder-5", "autoencoder", 1000, 20.0),
        network("dncnn", "dncnn", 558336, 29.0),
    ]
    found = {one.claim: (one.verdict, one.evidence) for one in findings(table, networks, comparable=True)}
    assert found == {
        "Table 2: its PSNR is reached within 0.3 dB.": (
            "holds for 4 of 5 values",
            "Furthest: gaussian-01, autoencoder, 25.00 dB for 26.23. "
            "Its entries that do not hold (†) are left out.",
        ),
        "lambdanet, with 9,083 parameters, is as good as autoencoder, with 47,355 (at most 0.1 dB below).": (
            "holds for 1 of 2 noises",
            "gaussian-01 +1.80 dB, gaussian-03 -0.50 dB.",
        ),
        "lambdanet, with 9,083 parameters, is as good as dncnn, with 558,336 (at most 0.1 dB below).": (
            "holds for 1 of 2 noises",
            "gaussian-01 -0.10 dB, gaussian-03 -0.40 dB.",
        ),
        "lambdanet-u4-m7, with 3,959 parameters, is as good as lambdanet, with 9,083 "
        "(at most 0.3 dB below).": (
            "does not hold",
            "gaussian-01 -0.35 dB.",
        ),
        "No network of another kind with as few parameters is better (Gaussian noise 0.1).": (
            "does not hold",
            "The best of 2 tried is size-dncnn-6x14: 27.50 dB with 7,924 parameters; "
            "LambdaNet: 26.80 dB with 9,083.",
        ),
    }


def test_what_was_not_run_is_not_judged():
    table = table_of(gaussian_01={"lambdanet": 26.8})
    alone = [network("lambdanet", "lambdanet", 9083, 26.8), network("dncnn", "dncnn", 558336, 29.0)]
    (values,) = findings(table, alone, comparable=True)
    assert values.verdict == "holds"
    assert findings(table, alone, comparable=False) == []
    assert findings(table, [], comparable=False) == []
    small = [*alone, network("size-dncnn-6x14", "dncnn", 7924, 26.8)]
    assert [one.verdict for one in findings(table, small, comparable=False)] == ["holds"]


def test_entries_of_the_paper_that_do_not_hold_are_not_ours_to_reach():
    table = table_of(gaussian_02={"autoencoder": 20.0, "dncnn": 20.0})
    assert pd.notna(table["paper_psnr"]).any()
    assert findings(table, [], comparable=True) == []
