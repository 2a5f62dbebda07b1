"""Which settings make two trainings unlike, in words."""

from report_helpers import CIFAR, TABLE_1

from lambdanet.report import settings


def recipe(changes=None, data=CIFAR, **hyperparameters):
    return settings.recipe(TABLE_1 | (changes or {}), data, {"name": "lambdanet"} | hyperparameters)


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
    without = {"weight_decay": 0.0, "epochs": 300, "batch_size": 128}
    own = settings.recipe(TABLE_1 | without, CIFAR, {"name": "autoencoder"})
    assert settings.unlike_the_paper("autoencoder", own, 47_355) == ""
    assert settings.unlike_the_paper("autoencoder", own | {"weight_decay": 1e-5}, 47_355) == (
        "weight decay 1e-05 (the paper: 0)"
    )
    assert settings.unlike_the_paper("lambdanet", recipe(), 9_083) == ""
    assert settings.unlike_the_paper("lambdanet", recipe({"batch_size": 128}), 3_959) == (
        "batch size 128 (the paper: 256), parameters 3,959 (the paper: 9,083)"
    )
    residual = settings.recipe(TABLE_1 | without | {"epochs": 200}, CIFAR, {"name": "dncnn"})
    assert settings.unlike_the_paper("dncnn", residual | {"residual": True}, 558_336) == (
        "residual yes (the paper: no)"
    )
