"""Which denoisers there are, and the rule by which one gets an alias such as `champion`."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from lambdanet.config import RunKey

COMPACT = 10_000
PINNED, REJECTED = "pinned", "rejected"
RULE = (
    "Only scores on the same test images are compared: of the profile with the most training images, those "
    "on the images that it was published with last. `champion` is the best test PSNR of these, `compact` the "
    f"best with fewer than {COMPACT:,} parameters, and each architecture's name the best of that "
    "architecture. With several seeds the mean of a model's decides, and its best seed stands for it; at "
    "equal PSNR fewer parameters win, then the older version. A pinned version takes precedence; a rejected "
    "one has no alias."
)
NO_REGISTRY = (
    "there is no registry yet (mlflow.db); make it with `make repro` or, from the committed "
    "weights, `lambdanet models sync --profile paper`; or name weights: --weights weights/paper"
)
RESERVED = ("champion", "compact")


@dataclass(frozen=True, kw_only=True)
class Denoiser:
    """One trained network and what is known of it.

    Attributes:
        noise: what it removes, by its name in params.yaml.
        model: its architecture, by its name there.
        profile: the scale that it was trained at.
        seed: of its training.
        psnr: on the test images, dB.
        ssim: on the test images.
        parameters: trainable ones.
        train_images: how many it was trained on; ranks the profiles.
        clean_sha256: digest of the clean test images.
        noisy_sha256: digest of the noisy test images.
        weights_sha256: digest of the weights file.
        mean_psnr: over the seeds of its model, dB.
        version: its number among its noise's denoisers; higher is newer.
        created: date and time of that version, UTC, ISO 8601; empty where there is none.
        published: when its test images were last those of a grid that was published; empty: `created`.
        choice: the user's, `PINNED` or `REJECTED`; empty: none.
    """

    noise: str
    model: str
    profile: str
    seed: int
    psnr: float
    ssim: float
    parameters: int
    train_images: int
    clean_sha256: str
    noisy_sha256: str
    weights_sha256: str
    mean_psnr: float
    version: int = 0
    created: str = ""
    published: str = ""
    choice: str = ""

    @classmethod
    def of(cls, run_key: RunKey, scores: dict, train_images: int) -> "Denoiser":
        """What is known of a run that `evaluate` has scored."""
        keys = ("psnr", "ssim", "parameters", "clean_sha256", "noisy_sha256", "weights_sha256")
        return cls(
            noise=run_key.noise, model=run_key.model, profile=run_key.profile, seed=run_key.seed,
            train_images=train_images, mean_psnr=scores["psnr"], **{key: scores[key] for key in keys},
        )  # fmt: skip

    @property
    def tests(self) -> tuple:
        """What scores must share to be compared: training images and the digests of the test images."""
        return self.train_images, self.clean_sha256, self.noisy_sha256


def best_seeds(denoisers: Iterable[Denoiser]) -> dict[Denoiser, list[Denoiser]]:
    """The best seed of each noise and model, with all its seeds; each with the mean over them."""
    groups: dict[tuple[str, str], list[Denoiser]] = {}
    for one in denoisers:
        groups.setdefault((one.noise, one.model), []).append(one)
    found = {}
    for group in groups.values():
        mean = sum(one.psnr for one in group) / len(group)
        seeds = [replace(one, mean_psnr=mean) for one in group]
        found[max(seeds, key=lambda one: one.psnr)] = seeds
    return found


def aliases(denoisers: list[Denoiser]) -> dict[str, Denoiser]:
    """Apply `RULE` to the denoisers of one noise.

    Returns:
        Alias to denoiser; an alias that nothing qualifies for is missing.
    """
    allowed = [one for one in denoisers if one.choice != REJECTED]
    if not allowed:
        return {}
    decisive = newest(allowed)
    comparable = [one for one in allowed if one.choice == PINNED or one.tests == decisive.tests]
    comparable.sort(
        key=lambda one: (one.choice != PINNED, -one.mean_psnr, -one.psnr, one.parameters, one.version)
    )
    chosen = {"champion": comparable[0]}
    for one in comparable:
        if one.parameters < COMPACT:
            chosen.setdefault("compact", one)
        chosen.setdefault(one.model, one)
    return chosen


def newest(denoisers: list[Denoiser]) -> Denoiser:
    """The one whose profile and test images decide."""
    return max(denoisers, key=lambda one: (one.train_images, one.published or one.created, one.version))
