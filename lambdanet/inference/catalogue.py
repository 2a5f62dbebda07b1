"""Which denoisers there are, and which of them a name stands for."""

from dataclasses import dataclass

from lambdanet.config import RunKey

COMPACT = 10_000
RULE = (
    "Only scores on the same test images are compared: of the profile with the most training images, those "
    "on the images that it was published with last. `champion` is the best test PSNR of these, `compact` the "
    f"best with fewer than {COMPACT:,} parameters, and each architecture's name the best of that "
    "architecture. With several seeds the mean of a model's decides, and its best seed stands for it; at "
    "equal PSNR fewer parameters win, then the older version."
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
        version: its number among its noise's denoisers; higher is newer.
        created: date and time of that version, UTC, ISO 8601; empty where there is none.
        published: when its test images were last those of a grid that was published; empty: `created`.
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
    version: int
    created: str = ""
    published: str = ""

    @classmethod
    def of(cls, run_key: RunKey, scores: dict, train_images: int, version: int) -> "Denoiser":
        """What is known of a run that `evaluate` has scored."""
        keys = ("psnr", "ssim", "parameters", "clean_sha256", "noisy_sha256", "weights_sha256")
        return cls(
            noise=run_key.noise, model=run_key.model, profile=run_key.profile, seed=run_key.seed,
            train_images=train_images, version=version, **{key: scores[key] for key in keys},
        )  # fmt: skip


def aliases(denoisers: list[Denoiser]) -> dict[str, Denoiser]:
    """Apply `RULE` to the denoisers of one noise.

    Returns:
        Alias to denoiser; an alias that nothing qualifies for is missing.
    """
    if not denoisers:
        return {}
    decisive = newest(denoisers)
    comparable = [one for one in denoisers if tests(one) == tests(decisive)]

    def best(candidates: list[Denoiser]) -> Denoiser:
        groups: dict[tuple[str, str], list[Denoiser]] = {}
        for one in candidates:
            groups.setdefault((one.model, one.profile), []).append(one)
        first = min(
            groups.values(), key=lambda one: (-mean_psnr(one), _first(one).parameters, _first(one).version)
        )
        return _first(first)

    chosen = {"champion": best(comparable)}
    if compact := [one for one in comparable if one.parameters < COMPACT]:
        chosen["compact"] = best(compact)
    for model in dict.fromkeys(one.model for one in comparable):
        chosen[model] = best([one for one in comparable if one.model == model])
    return chosen


def mean_psnr(denoisers: list[Denoiser]) -> float:
    """Over the seeds of one model, each with the best of its trainings, dB."""
    of_seed: dict[int, float] = {}
    for one in denoisers:
        of_seed[one.seed] = max(one.psnr, of_seed.get(one.seed, one.psnr))
    return sum(of_seed.values()) / len(of_seed)


def _first(denoisers: list[Denoiser]) -> Denoiser:
    return min(denoisers, key=lambda one: (-one.psnr, one.parameters, one.version))


def newest(denoisers: list[Denoiser]) -> Denoiser:
    """The one whose profile and test images decide."""
    return max(denoisers, key=lambda one: (one.train_images, one.published or one.created, one.version))


def tests(denoiser: Denoiser) -> tuple:
    """What scores must share to be compared: training images and the digests of the test images."""
    return denoiser.train_images, denoiser.clean_sha256, denoiser.noisy_sha256
