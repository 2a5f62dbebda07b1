"""Which trainings may be compared: networks only if they were trained alike. And names for readers.

Plain data in, words out: a recipe is a dict of how a network was trained and on what.
"""

_NAMES = {
    "lambdanet": "LambdaNet", "lambdanet-u4-m7": "LambdaNet u4-m7", "autoencoder": "Auto-encoder",
    "dncnn": "DnCNN", "cnn": "CNN with LeakyReLU", "skip-autoencoder": "Auto-encoder with skips",
    "lambda-resnet": "LambdaResNet", "unet": "U-Net", "dncnn-cosine": "DnCNN, cosine schedule",
}  # fmt: skip

# What the paper and its authors' instructions state of Table 2's trainings. Where they are silent (the batch
# size and the decay of the compared models), nothing stands here and nothing is asked.
_PAPERS = {
    "dataset": "cifar10", "images": 50_000, "loss": "mse", "optimizer": "adam", "learning_rate": 0.001,
    "schedule": "exponential",
}  # fmt: skip
_LAMBDANETS = _PAPERS | {
    "epochs": 50, "batch_size": 256, "decay": 0.99, "weight_decay": 1e-5, "embedding_std": 1.0,
}  # fmt: skip
AS_THE_PAPER = {
    "lambdanet": _LAMBDANETS | {"parameters": 9_083},
    "lambdanet-u4-m7": _LAMBDANETS | {"parameters": 3_959},
    "autoencoder": _PAPERS | {"epochs": 300, "weight_decay": 0.0, "parameters": 47_355},
    "dncnn": _PAPERS | {"epochs": 200, "weight_decay": 0.0, "residual": False, "parameters": 558_336},
}
PAPERS_PARAMETERS = {model: stated["parameters"] for model, stated in AS_THE_PAPER.items()}

_ORDER = (
    "noise", "dataset", "images", "epochs", "optimizer", "schedule", "batch_size", "learning_rate", "decay",
    "warmup", "weight_decay", "loss", "fresh_noise", "embedding_std",
)  # fmt: skip
_WITHOUT_EFFECT = {"exponential": {"monitored", "warmup"}, "cosine": {"monitored", "decay"}}
INITIAL = "embedding_std"  # a hyperparameter that shapes no network: it is how its training starts


def recipe(training: dict, data: dict, hyperparameters: dict) -> dict:
    """How a network was trained, without what has no effect.

    Args:
        training: the resolved settings.
        data: what it was trained on: dataset, images, noise.
        hyperparameters: the network's.
    """
    used = {"optimizer": "adam", "fresh_noise": True} | training | data
    if hyperparameters.get("name") == "lambdanet":
        used[INITIAL] = hyperparameters.get(INITIAL, 1.0)
    dropped = _WITHOUT_EFFECT.get(training.get("schedule"), {"monitored"})
    return {key: value for key, value in used.items() if key not in dropped}


def structure(hyperparameters: dict) -> dict:
    """The hyperparameters that make a network what it is."""
    return {key: value for key, value in hyperparameters.items() if key != INITIAL}


def differing(one: dict, other: dict) -> str:
    """Where two recipes differ: "epochs 12 and 50, schedule cosine and exponential"; empty if nowhere.

    A setting that only one of them has follows from another (a decay from its schedule) or from the kind of
    network (the initial embedding), and is not compared.
    """
    return _listed(one, other, "{} {} and {}")


def changed(before: dict, now: dict) -> str:
    """How a training differs from today's settings: "trained with weight decay 1e-05 (now 0)"."""
    found = _listed(before, now, "{} {} (now {})")
    return f"trained with {found}" if found else ""


def instead(used: dict, planned: dict, model: str) -> str:
    """How a network stands in for a model of the table: "in place of DnCNN: epochs 4 (the table: 200)"."""
    return f"in place of {model_title(model)}: {_listed(used, planned, '{} {} (the table: {})')}"


def unlike_the_paper(model: str, used: dict, parameters: int) -> str:
    """Where a training differs from what the paper states: "weight decay 1e-05 (the paper: 0)"."""
    return _listed(used | {"parameters": parameters}, AS_THE_PAPER[model], "{} {} (the paper: {})")


def _listed(one: dict, other: dict, form: str) -> str:
    keys = sorted((key for key in one.keys() & other.keys() if one[key] != other[key]), key=_place)
    return ", ".join(form.format(words(key), shown(one[key]), shown(other[key])) for key in keys)


def described(used: dict) -> str:
    """A recipe in words."""
    return ", ".join(f"{words(key)} {shown(used[key])}" for key in sorted(used, key=_place))


def model_title(name: str) -> str:
    """A model's name for readers; what is not known keeps its own."""
    return _NAMES.get(name, name)


def noise_title(noise: dict) -> str:
    """A noise for readers: "Gaussian 0.1", "Blind gaussian 0.004 to 0.216"; shares follow by name."""
    values = [(key, f"{value:.3g}") for key, value in noise.items() if key != "name"]
    strength = " to ".join(value for _, value in values[:2])
    shares = "".join(f", {key} {value}" for key, value in values[2:])
    return f"{noise['name'].replace('-', ' ').capitalize()} {strength}{shares}"


def words(key: str) -> str:
    """A setting's name as the page writes it."""
    return {INITIAL: "initial embedding"}.get(key, key.replace("_", " "))


def shown(value: object) -> str:
    """A setting's value as the page writes it."""
    if isinstance(value, dict):
        return " ".join(
            [str(value.get("name", "")), *(f"{k} {shown(v)}" for k, v in value.items() if k != "name")]
        )
    if isinstance(value, bool):
        return "yes" if value else "no"
    return (
        f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)
    )


def _place(key: str) -> tuple[int, str]:
    return (_ORDER.index(key) if key in _ORDER else len(_ORDER)), key
