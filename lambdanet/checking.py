"""Whether params.yaml and the profiles can be run: every key, noise and model, and the images' folders."""

from lambdanet import config
from lambdanet.config import PARAMS, Config, within


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
    loaded = {file: config.load(file) for file in map(config.find, names or found)}
    for one in loaded.values():
        _create_all(one)
    return [
        f"{file} is valid: {len(one.table_runs)} runs of Table 2, {len(one.ablation_runs)} of ablations"
        for file, one in loaded.items()
    ]


def _create_all(one: Config) -> None:
    """Look for the folders, and create every noise and network, whose values only their functions check."""
    from lambdanet.data import datasets, folder
    from lambdanet.data.noise import create_noise
    from lambdanet.models import check_hyperparameters

    for name, download in one.profile.datasets.items():
        if download.dataset not in datasets.DATASETS:
            with within(one.profile.file), within(f"datasets.{name}"):
                folder.locate(download.dataset)
    for name, parameters in one.params.noises.items():
        with within(PARAMS), within(f"noises.{name}"):
            create_noise(**parameters)
    places = {name: f"train.{name}" for name in one.models}
    places |= {name: f"ablations.{name}" for name in one.profile.ablations}
    for name, where in places.items():
        with within(one.profile.file), within(where):
            check_hyperparameters(**one.model(name))
