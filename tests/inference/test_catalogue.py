from dataclasses import replace

import pytest

from lambdanet.inference.catalogue import REJECTED, Denoiser, aliases, best_seeds

BASE = Denoiser(
    noise="speckle", model="dncnn", profile="quick", seed=0, psnr=24.0, mean_psnr=24.0, ssim=0.8,
    parameters=500_000, train_images=40_000, clean_sha256="c", noisy_sha256="n", weights_sha256="w",
)  # fmt: skip


def denoiser(version, **changes):
    changes.setdefault("mean_psnr", changes.get("psnr", BASE.psnr))
    return replace(BASE, version=version, **changes)


def versions(*denoisers):
    """Alias to version, whatever the order that they come in."""
    found = {alias: one.version for alias, one in aliases(list(denoisers)).items()}
    assert found == {alias: one.version for alias, one in aliases(list(denoisers[::-1])).items()}
    return found


def test_best_psnr_wins_each_alias():
    assert versions(
        denoiser(1, psnr=24.0),
        denoiser(2, psnr=24.5, seed=1),
        denoiser(3, psnr=23.0, model="lambdanet", parameters=9_083, ssim=0.9),
        denoiser(4, psnr=23.5, model="lambdanet-u4-m7", parameters=3_959),
        denoiser(5, psnr=22.0, model="lambdanet", parameters=9_083, seed=1),
    ) == {"champion": 2, "compact": 4, "dncnn": 2, "lambdanet": 3, "lambdanet-u4-m7": 4}


def test_what_is_rejected_has_no_alias():
    assert versions(denoiser(1, choice=REJECTED)) == {}


def test_compact_has_fewer_than_10_000_parameters():
    assert "compact" not in aliases([denoiser(1, parameters=10_000)])
    assert versions(denoiser(1, psnr=30.0, parameters=10_000), denoiser(2, parameters=9_999))["compact"] == 2


def test_at_equal_psnr_fewer_parameters_win_then_the_older():
    first, second = denoiser(1), denoiser(2, model="autoencoder", parameters=47_355)
    assert versions(first, second)["champion"] == 2
    assert versions(first, denoiser(2))["champion"] == 1
    assert versions(denoiser(1, psnr=23.0), denoiser(2), denoiser(3))["champion"] == 2


def test_profile_with_the_most_training_images_decides():
    """A lower PSNR, an older version: scores of the smaller profile are on other images."""
    paper = denoiser(1, profile="paper", psnr=20.0, train_images=50_000, clean_sha256="p")
    quick = denoiser(2, psnr=30.0)
    small = denoiser(3, psnr=31.0, model="lambdanet", parameters=9_083)
    assert versions(paper, quick, small) == {"champion": 1, "dncnn": 1}
    assert versions(quick, small) == {"champion": 3, "compact": 3, "dncnn": 2, "lambdanet": 3}


@pytest.mark.parametrize("changed", [{"clean_sha256": "new"}, {"noisy_sha256": "new"}])
def test_only_scores_on_the_newest_test_images_are_compared(changed):
    """Of the largest profile, and both the clean and the noisy ones."""
    old = denoiser(1, psnr=30.0), denoiser(2, psnr=29.0, model="lambdanet", parameters=9_083)
    assert versions(*old, denoiser(3, psnr=20.0, **changed)) == {"champion": 3, "dncnn": 3}
    # Trained again on the images of before: they are the newest again.
    assert versions(*old, denoiser(3, psnr=20.0, **changed), denoiser(4, psnr=25.0))["champion"] == 1
    # Newer ones of a smaller profile do not count.
    smaller = denoiser(5, psnr=40.0, train_images=100, profile="sample", **changed)
    assert versions(*old, smaller) == {"champion": 1, "compact": 2, "dncnn": 1, "lambdanet": 2}


def test_mean_over_the_seeds_decides_and_the_best_seed_stands_for_it():
    seeds = [
        denoiser(0, model="dncnn", seed=0, psnr=28.0),
        denoiser(0, model="dncnn", seed=1, psnr=26.0),  # 27.0
        denoiser(0, model="lambdanet", seed=0, psnr=27.4),
        denoiser(0, model="lambdanet", seed=1, psnr=27.2),  # 27.3
        denoiser(0, model="dncnn", noise="gaussian-01", psnr=21.0),
    ]
    found = best_seeds(seeds)
    means = [27.0, (27.4 + 27.2) / 2, 21.0]
    assert [*found] == [replace(seeds[i], mean_psnr=mean) for i, mean in zip((0, 2, 4), means, strict=True)]
    assert [{one.mean_psnr for one in group} for group in found.values()] == [{mean} for mean in means]
    of_noise = [one for one in found if one.noise == "speckle"]
    assert aliases(of_noise)["champion"].model == "lambdanet"
