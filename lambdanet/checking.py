"""Whether params.yaml and the profiles can be run: every key, noise and model, and the images' folders."""

import contextlib
from collections.abc import Iterator

from lambdanet import config
from lambdanet.config import PARAMS, Config


def check(names: list[str] | None = None) -> list[str]:
    """Check the profiles of the project in the current folder; all of them by default.

    Returns:
        A line for each valid profile.

    Raises:
        ValueError: one is not valid; what is wrong, and where.
    """
    found = config.profiles()
    if not found:
        raise ValueError(f"{config.PROFILE} is missing; run this in the project's folder")
    files = [config.find(name) for name in names] if names else found.values()
    loaded = {file: config.load(file) for file in files}
    for file, one in loaded.items():
        _check_images(one, str(file))
    _make_all(loaded.values())
    return [
        f"{file} is valid: {len(one.table_runs)} runs of Table 2, {len(one.ablation_runs)} of ablations"
        for file, one in loaded.items()
    ]


def _make_all(loaded: Iterator[Config]) -> None:
    """Create every noise and network, whose values only their functions check."""
    from lambdanet.data.noise import create_noise
    from lambdanet.models import check_hyperparameters

    for one in loaded:
        for name, parameters in one.params.noises.items():
            with _within(PARAMS, f"noises.{name}"):
                create_noise(**parameters)
        file, made = one.profile.file, set()
        places = {name: f"train.{name}" for name in one.models}
        places |= {name: f"ablations.{name}" for name in one.profile.ablations}
        for name, where in places.items():
            hyperparameters = one.model(name)
            if (key := repr(hyperparameters)) not in made:
                with _within(file, where):
                    check_hyperparameters(**hyperparameters)
                made.add(key)


def _check_images(one: Config, file: str) -> None:
    from lambdanet.data import folder
    from lambdanet.data.datasets import DATASETS

    for name, download in one.profile.datasets.items():
        if download.dataset not in DATASETS:
            with _within(file, f"datasets.{name}"):
                folder.locate(download.dataset)


@contextlib.contextmanager
def _within(file: str, where: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{file}: {where}: {error}") from None
