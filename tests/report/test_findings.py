"""Which of the paper's claims hold, by scores that are made up, and which trainings are alike."""

import dataclasses

from report_helpers import CIFAR, TABLE_1, row
from scipy import stats

from lambdanet.report import settings
from lambdanet.report.findings import Part, findings

AS_GOOD, AS_GOOD_DNCNN = "LambdaNet as good as Auto-encoder", "LambdaNet as good as DnCNN"
SMALL = "LambdaNet u4-m7 as good as LambdaNet"
SIZE = "LambdaNet the best of its size"
# As the paper's recipe gave them: LambdaNet by seed, and u = 4, m = 7 once.
MEASURED = {
    "gaussian-01": ((26.7978, 26.6569, 26.8913), 27.0159),
    "gaussian-03": ((21.9590, 21.9245, 21.9478), 21.8832),
    "salt-and-pepper": ((30.90, 32.08, 30.97), 33.18),
}


def reached(model):
    return f"{model}: the paper's values"


def found(rows):
    return {one.title: one for one in findings(rows, comparable=True)}


def test_every_claim_has_a_row_also_of_what_was_not_run():
    claims = found([row("lambdanet", [26.8]), row("autoencoder"), row("dncnn"), row("lambdanet-u4-m7")])
    verdicts = {claim: one.verdict for claim, one in claims.items()}
    assert verdicts.pop(reached("LambdaNet")) == "inconclusive"
    names = [AS_GOOD, AS_GOOD_DNCNN, SMALL, f"{AS_GOOD}, SSIM", f"{AS_GOOD_DNCNN}, SSIM", SIZE]
    names += [reached(model) for model in ("LambdaNet u4-m7", "Auto-encoder", "DnCNN")]
    assert verdicts == dict.fromkeys(names, "not run")
    (part,) = claims[reached("LambdaNet")].parts
    assert part.reason == "trained once, and nothing of its family with several seeds"


def test_table_2_is_judged_on_networks_trained_as_the_paper_trains_them():
    rows = [row("lambdanet", [26.8, 26.9, 27.0]), row("autoencoder", [26.0, 26.1, 26.2])]
    assert found(rows)[AS_GOOD].verdict == "holds"  # though with 50 and 300 epochs, and weight decay or not
    rows[1] = row("autoencoder", [26.0, 26.1, 26.2], train={"weight_decay": 1e-5})
    one = found(rows)[AS_GOOD]
    assert one.verdict == "inconclusive"
    (part,) = one.parts
    assert part.of == "Gaussian 0.1"
    assert part.reason == "Auto-encoder not trained as the paper's: weight decay 1e-05 (the paper: 0)"


def test_verdicts_are_those_of_the_intervals_noise_by_noise():
    rows = [row("lambdanet", seeds, noise=noise) for noise, (seeds, _) in MEASURED.items()]
    rows += [row("lambdanet-u4-m7", [psnr], noise=noise) for noise, (_, psnr) in MEASURED.items()]
    one = found(rows)[SMALL]
    assert [part.of for part in one.parts] == ["Gaussian 0.1", "Gaussian 0.3", "Salt and pepper 0.05"]
    assert [part.verdict for part in one.parts] == ["inconclusive", "holds", "inconclusive"]
    assert (one.counts, one.verdict) == ({"inconclusive": 2, "holds": 1}, "inconclusive")
    assert one.parts[1].shown == "-0.06 dB (-0.15 to +0.03)"
    # salt and pepper: s of the family is 0.662 with 2 degrees of freedom
    half = stats.t.ppf(0.975, 2) * (stats.tvar(MEASURED["salt-and-pepper"][0]) * (1 + 1 / 3)) ** 0.5
    assert one.parts[2].shown == f"+1.86 dB ({1.8633 - half:+.2f} to {1.8633 + half:+.2f})"


def test_more_than_the_paper_has_is_no_miss():
    one = found([row("lambdanet-u4-m7", [27.2, 27.21, 27.22])])[reached("LambdaNet u4-m7")]
    assert one.parts == (Part("Gaussian 0.1", "holds", "+0.50 dB (+0.48 to +0.52)"),)
    (part,) = found([row("lambdanet-u4-m7", [26.2, 26.21, 26.22])])[reached("LambdaNet u4-m7")].parts
    assert (part.verdict, part.shown) == ("does not hold", "-0.50 dB (-0.52 to -0.48)")


def test_entries_of_the_paper_that_do_not_hold_decide_nothing():
    rows = [row("autoencoder", [26.2, 26.3]), row("autoencoder", [20.0, 20.1], noise="gaussian-02")]
    one = found(rows)[reached("Auto-encoder")]
    assert (one.verdict, len(one.parts)) == ("inconclusive", 1)
    assert one.note == "Entries of the paper that do not hold (†): Gaussian 0.2."
    dncnn = found([row("dncnn", [28.6, 28.61])])[reached("DnCNN")]
    assert dncnn.verdict == "inconclusive"
    assert dncnn.parts[0].reason.startswith("the paper's entry does not hold: 0.4 to 8 dB under")


def baseline(psnrs, **train):
    return row("size", psnrs, parameters=7_924, train=train, hyperparameters={"name": "dncnn"}, study="size")


def test_networks_are_compared_only_where_they_were_trained_alike():
    ours = row("lambdanet", [26.8, 26.81, 26.82])
    better = [27.4, 27.41, 27.42]
    assert found([ours, baseline(better)])[SIZE].verdict == "does not hold"
    assert found([ours, baseline([26.0, 26.01, 26.02])])[SIZE].verdict == "holds"
    assert found([ours, baseline(better, epochs=12, schedule="cosine")])[SIZE].verdict == "not run"
    # A LambdaNet of that size that was trained like the other one is the one to compare with.
    alike = row("base", [26.8, 26.81, 26.82], parameters=9_083, train={"epochs": 12, "schedule": "cosine"},
                hyperparameters={"name": "lambdanet"}, study="base")  # fmt: skip
    one = found([ours, alike, baseline(better, epochs=12, schedule="cosine")])[SIZE]
    assert one.verdict == "does not hold"
    assert one.parts[0].of == ("base (26.81 dB with 9,083 parameters) and size (27.41 dB with 7,924)")
    # The smallest that is large enough.
    small = row("small", [27.4, 27.41, 27.42], parameters=8_000, hyperparameters={"name": "lambdanet"})
    tiny = row("tiny", [20.0, 20.1], parameters=1_403, hyperparameters={"name": "lambdanet"})
    assert found([ours, small, tiny, baseline(better)])[SIZE].verdict == "holds"
    # What a search chose for each kind of network may differ within its study, and nothing else.
    tuned = {"study": "size", "tuned": ("batch_size", "learning_rate")}
    chosen = [dataclasses.replace(one, **tuned) for one in (ours, baseline(better, batch_size=32))]
    assert found(chosen)[SIZE].verdict == "does not hold"
    assert found([ours, chosen[1]])[SIZE].verdict == "not run"
    assert found([chosen[0], baseline(better, epochs=12)])[SIZE].verdict == "not run"
    larger = dataclasses.replace(baseline(better), runs=row("x", better, parameters=20_000).runs)
    assert found([ours, larger])[SIZE].verdict == "not run"


def recipe(changes=None, data=CIFAR, **hyperparameters):
    return settings.recipe(TABLE_1 | (changes or {}), data, {"name": "lambdanet"} | hyperparameters)


def test_a_noise_has_its_strength_and_its_shares_in_its_title():
    in_files = {"name": "blind-gaussian-in-files", "low": 0.004, "high": 0.2, "grey": 0.25, "halved": 0.5}
    assert settings.noise_title(in_files) == "Blind gaussian in files 0.004 to 0.2, grey 0.25, halved 0.5"
    assert settings.noise_title({"name": "salt-and-pepper", "amount": 0.05}) == "Salt and pepper 0.05"


def test_what_has_no_effect_is_no_difference():
    assert settings.differing(recipe(), recipe({"monitored": 100, "warmup": 0.3, "optimizer": "adam"})) == ""
    cosine = {"schedule": "cosine"}
    assert settings.differing(recipe(cosine | {"decay": 0.5}), recipe(cosine)) == ""


def test_an_initial_embedding_is_a_setting_of_lambdanet_alone():
    assert settings.differing(recipe(embedding_std=0.02), recipe()) == "initial embedding 0.02 and 1"
    dncnn = settings.recipe(TABLE_1, CIFAR, {"name": "dncnn", "depth": 17})
    assert settings.differing(recipe(embedding_std=0.02), dncnn) == ""
    assert settings.structure({"name": "lambdanet", "embedding_std": 0.02}) == {"name": "lambdanet"}


def test_only_what_the_paper_states_is_asked_of_its_networks():
    unlike, without = settings.unlike_the_paper, {"weight_decay": 0.0, "epochs": 300, "batch_size": 128}
    own = settings.recipe(TABLE_1 | without, CIFAR, {"name": "autoencoder"})
    assert unlike("autoencoder", own, 47_355) == unlike("lambdanet", recipe(), 9_083) == ""
    said = unlike("autoencoder", own | {"weight_decay": 1e-5}, 47_355)
    assert said == "weight decay 1e-05 (the paper: 0)"
    said = unlike("lambdanet", recipe({"batch_size": 128}), 3_959)
    assert said == "batch size 128 (the paper: 256), parameters 3,959 (the paper: 9,083)"
    residual = settings.recipe(TABLE_1 | without | {"epochs": 200}, CIFAR, {"name": "dncnn"})
    assert unlike("dncnn", residual | {"residual": True}, 558_336) == "residual yes (the paper: no)"
