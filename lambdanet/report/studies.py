"""The studies: what each of them trained, scored and found, as tables and as sentences."""

from dataclasses import dataclass, field
from importlib import resources

import numpy as np
import pandas as pd

from lambdanet.config import RunKey
from lambdanet.report import settings
from lambdanet.report.runs import STUDY_NOISE, Row, Study, sample, unequal
from lambdanet.report.statistics import (
    NO_SPREAD,
    UNSURE,
    Sample,
    at_least,
    difference_interval,
    mean_interval,
)

FOLLOWING = "autoencoder-settings"  # the study that asks which settings follow the authors' log
# Batches that the authors' logged losses are sums over: 32,000 images, four fifths of four fifths of the
# training images, is the split at which their LambdaNets end where ours do, on all five noises.
AUTHORS_BATCHES = 125


@dataclass(frozen=True)
class _Document:
    """What the document that a study comes from gives, on its images.

    Attributes:
        dataset: its images.
        text: what a reader must know of it.
        psnr: by entry, or by the value of the study's axis.
    """

    dataset: str
    text: str
    psnr: dict = field(default_factory=dict)


_DOCUMENTS = {
    "channels": _Document(
        "cifar10",
        "Document: PSNR of the authors' released weights on 500 test images; for d = 4 and 8, read off the "
        "paper's figure.",
        {4: 25.6, 8: 26.8, 16: 26.83, 32: 26.89, 64: 27.08, 128: 27.20, 256: 27.18, 512: 27.19},
    ),
    "bsds500": _Document(
        "bsds500",
        "Its document trains on 85,600 colour patches of 40 x 40 from 400 images of BSDS500, with Adam, and "
        "gives 31.19 dB for an image of 20.53 dB. It names no noise level.",
        {"dncnn-25": 31.193},
    ),
    "split": _Document(
        "cifar10-split",
        "Its document gives 17.74 dB on test and 18.04 dB on training images of CIFAR-10, four fifths to "
        "one. It says nothing of its noise, widths or learning rate, and derives its PSNR from the "
        "cross-entropy, so that the numbers are not comparable.",
        {"cnn-bce": 17.737},
    ),
}


def _document(study: Study) -> _Document | None:
    """The document, if the study's images are the document's."""
    known = _DOCUMENTS.get(study.name)
    return known if known and known.dataset == study.rows[0].data["dataset"] else None


def table(study: Study, rows: list[Row]) -> pd.DataFrame:
    """One row an entry of a study, averaged over the seeds, in the order of params.yaml or of its axis.

    Args:
        study: its base, where it has one, is among the rows.
        rows: of `runs.collect`, which the spread of a single training is taken from.

    Returns:
        study, `variation`, model, axis (value of the study's hyperparameter), group, changes (settings in
        which the entries differ), parameters, epochs, psnr (dB, pooled), psnr_std (over the seeds; empty
        for one), ssim, noisy_psnr, images, seeds, difference (dB, to the base's, where there is one), low
        and high (its interval), train_psnr (on training images), reference (dB, the document's), hours,
        device, note (settings that are not those of params.yaml).
    """
    base = study.base if study.base and study.base.done else None
    entries = [*([base] if base else []), *study.rows]
    varied = _varied(entries)
    reference = (_document(study) or _Document("", "")).psnr
    found = []
    for row in entries:
        shown = {"study": row.study, "variation": row.name, "model": row.family, "epochs": row.epochs}
        shown |= {"axis": row.hyperparameters.get(study.axis), "group": row.hyperparameters.get(study.group)}
        shown |= {"seeds": len(row.done), "changes": _in_words(row, varied), "note": row.outdated}
        shown |= {"hours": row.hours, "device": row.device}
        shown["reference"] = reference.get(row.name, reference.get(shown["axis"]))
        if row.done:
            scores = row.first.scores
            shown |= {"parameters": row.parameters, "images": scores["images"]}
            shown |= {
                key: row.mean(key) for key in ("psnr", "ssim", "noisy_psnr", "train_psnr") if key in scores
            }
            shown["psnr_std"] = pd.Series(row.values("psnr")).std()
            if base:
                interval = difference_interval(sample(row, rows), sample(base, rows))
                shown |= {"difference": interval.value}
                shown |= {"low": interval.low, "high": interval.high} if row is not base else {}
        found.append(shown)
    columns = ["study", "variation", "model", "axis", "group", "changes", "parameters", "epochs", "psnr"]
    columns += ["psnr_std", "ssim", "noisy_psnr", "images", "seeds", "difference", "low", "high"]
    whole = pd.DataFrame(found, columns=[*columns, "train_psnr", "reference", "hours", "device", "note"])
    return whole.sort_values(["group", "axis"], kind="stable") if study.axis else whole


def _settings(row: Row) -> dict:
    """All that makes a row what it is: its network and its training."""
    network = {"model" if key == "name" else key: value for key, value in row.hyperparameters.items()}
    return network | row.recipe


def _varied(rows: list[Row]) -> list[str]:
    """The settings in which some rows differ."""
    every = [_settings(row) for row in rows]
    keys = dict.fromkeys(key for one in every for key in one)
    return [key for key in keys if len({str(one.get(key)) for one in every}) > 1]


def _in_words(row: Row, keys: list[str]) -> str:
    own = _settings(row)
    return ", ".join(f"{settings.words(key)} {settings.shown(own[key])}" for key in keys if key in own)


def sentences(study: Study, rows: list[Row]) -> list[str]:
    """What came out of a study, what its entries share and what its document gives; none before one was run.

    Args:
        study: which.
        rows: of `runs.collect`.
    """
    if not any(row.done for row in study.rows):
        return []
    shared = [key for key in _settings(study.rows[0]) if key not in _varied(study.done)]
    said = [*_outcome(study, rows), f"All entries: {_in_words(study.done[0], shared)}."]
    if study.rows[0].document and not _document(study):
        return [*said, "Its document's images are not used, so its numbers are not shown."]
    return [*said, _document(study).text] if _document(study) else said


def _outcome(study: Study, rows: list[Row]) -> list[str]:
    done, base = study.done, study.base if study.base and study.base.done else None
    if len(done) == 1:
        return [f"Only {_with_numbers(done[0])} was run, so there is nothing to compare it with."]
    ordered = sorted(done, key=_psnr, reverse=True)
    best, second, worst = ordered[0], ordered[1], ordered[-1]
    if _psnr(best) - _psnr(worst) < 0.005:
        return [f"All have {_psnr(best):.2f} dB."]
    said = [f"The highest is {_with_numbers(best)}, the lowest {worst.name} with {_psnr(worst):.2f} dB."]
    said.append(_compared(best, second if base in (None, best) else base, base, rows))
    smallest = min((row for row in done if _psnr(row) >= _psnr(best) - 0.1), key=lambda row: row.parameters)
    if smallest.parameters < best.parameters:
        said.append(
            f"{smallest.name} comes within 0.1 dB of the highest with {smallest.parameters:,} parameters."
        )
    return said


def _psnr(row: Row) -> float:
    return row.mean("psnr")


def _with_numbers(row: Row) -> str:
    return f"{row.name} with {_psnr(row):.2f} dB and {row.parameters:,} parameters"


def _compared(best: Row, other: Row, base: Row | None, rows: list[Row]) -> str:
    """How far the highest is above the base, or above the next, and whether that is more than chance."""
    interval = difference_interval(sample(best, rows), sample(other, rows))
    title = "the base" if other is base else f"the next, {other.name}"
    name = "The base" if best is base else best.name
    if interval.value < 0.005:
        return f"{name} and {'the base' if other is base else other.name} have the same PSNR."
    same = settings.structure(best.hyperparameters) == settings.structure(other.hyperparameters)
    if reason := "" if same else unequal(best, other):
        verdict = f"{UNSURE} ({reason})"
    elif not interval.known:
        verdict = f"{UNSURE} ({NO_SPREAD})"
    else:
        verdict = at_least(interval, 0.0)
    ends = f" ({interval.low:+.2f} to {interval.high:+.2f} dB)" if interval.known else ""
    return f"{name} is {interval.value:.2f} dB above {title}{ends}; that it is better: {verdict}."


def pareto(rows: list[Row]) -> pd.DataFrame:
    """Every network on the studies' noise by its size; fronts among those that were trained alike.

    Where a search chose recipes, only the networks that most of these were trained like have a front.

    Args:
        rows: of `runs.collect`.

    Returns:
        name, family, parameters, psnr, ssim, seeds, recipe (a number; the same for those that were trained
        alike), trained (it in words), front (no network of this recipe with as few parameters has a higher
        PSNR, and there are some of other sizes), by size; empty without any.
    """
    done = [row for row in rows if row.noise == STUDY_NOISE and not row.document and row.done]
    if not done:
        return pd.DataFrame()
    found = pd.DataFrame([_network(row) for row in done])
    groups = found["trained"].value_counts(sort=True).index
    found["recipe"] = found["trained"].map({group: at + 1 for at, group in enumerate(groups)})
    searched = found.loc[[bool(row.tuned) for row in done], "recipe"].value_counts()
    found["front"] = found["recipe"] == searched.idxmax() if len(searched) else True
    ordered = found.sort_values(["parameters", "psnr"], ascending=[True, False]).reset_index(drop=True)
    sizes = ordered.groupby("recipe")["parameters"].transform("nunique")
    before = ordered.groupby("recipe")["psnr"].transform(lambda psnr: psnr.cummax().shift())
    # The smallest of a recipe has none before it: NaN, so it is on the front.
    return ordered.assign(front=ordered["front"] & (sizes > 1) & ~(ordered["psnr"] <= before))


def _network(row: Row) -> dict:
    return {
        "name": row.name,
        "family": row.family,
        "parameters": row.parameters,
        "psnr": row.mean("psnr"),
        "ssim": row.mean("ssim"),
        "seeds": len(row.done),
        "trained": _recipe_in_words(row),
    }


def _recipe_in_words(row: Row) -> str:
    """How a network was trained; LambdaNet's usual initial embedding is no difference to other networks."""
    usual = {settings.INITIAL: 1.0}.items()
    used = {k: v for k, v in row.recipe.items() if (k, v) not in usual and k not in row.tuned}
    chosen = " and ".join(settings.words(key) for key in row.tuned)
    return settings.described(used) + (f", {chosen} by a search for each kind of network" if chosen else "")


def authors_convergence() -> pd.DataFrame:
    """The authors' logged training losses: noise, model, epoch (from 1), loss a value (MSE).

    They logged sums over an epoch's batches; `AUTHORS_BATCHES` says which division makes means of them.
    """
    with resources.files("lambdanet.report").joinpath("paper_convergence.csv").open() as file:
        logged = pd.read_csv(file)
    names = logged["run"].str.extract(r"^(?P<model>[A-Za-z]+)_(?P<noise>.+)_(?P<epochs>\d+)$")
    noises = {f"gaussian_0.{i}": f"gaussian-0{i}" for i in (1, 2, 3)} | {
        "s_p": "salt-and-pepper", "speckle": "speckle",
    }  # fmt: skip
    models = {"Lambda": "lambdanet", "Autoencoder": "autoencoder", "DnCNN": "dncnn"}
    usual = {"lambdanet": 50, "autoencoder": 300, "dncnn": 200}
    result = pd.DataFrame(
        {
            "noise": names["noise"].map(noises),
            "model": names["model"].map(models),
            "epoch": logged["epoch"] + 1,
            "loss": logged["summed_batch_mse"] / AUTHORS_BATCHES,
        }
    )
    return result[names["epochs"].astype(int) == result["model"].map(usual)].reset_index(drop=True)


def convergence(histories: dict[RunKey, pd.DataFrame], authors: pd.DataFrame) -> pd.DataFrame:
    """How trainings end beside the authors', where both had as many epochs.

    Args:
        histories: by run: epoch, loss.
        authors: of `authors_convergence`.

    Returns:
        By noise and model, means over the seeds: epochs, seeds; loss and authors_loss, of the last epoch;
        fluctuation and authors_fluctuation: the standard deviation of the change of the log loss from one
        epoch to the next, in the last fifth of the epochs. It falls with the learning rate.
    """
    rows = []
    for (noise, model), logged in authors.groupby(["noise", "model"], sort=False):
        of_both = [one["loss"] for key, one in histories.items() if (key.noise, key.model) == (noise, model)]
        if same := [loss for loss in of_both if len(loss) == len(logged)]:
            row = {"noise": noise, "model": model, "epochs": len(logged), "seeds": len(same)}
            for prefix, losses in {"": same, "authors_": [logged["loss"]]}.items():
                changes = [np.log(loss).diff().iloc[-len(loss) // 5 :] for loss in losses]
                row[f"{prefix}loss"] = np.mean([loss.iloc[-1] for loss in losses])
                row[f"{prefix}fluctuation"] = np.mean([change.std() for change in changes])
            rows.append(row)
    return pd.DataFrame(rows)


def following(
    histories: dict[str, list[pd.DataFrame]], logged: pd.DataFrame
) -> tuple[pd.DataFrame, list[str]]:
    """Which trainings' losses follow the authors' log: by the mean absolute difference of log loss.

    Args:
        histories: by entry, one for each seed: epoch, loss.
        logged: of `authors_convergence`, one model on one noise; may be empty.

    Returns:
        By entry, in order: `variation`, distance (mean over the seeds), low and high (its interval; empty
        without a spread), epochs (that both have), seeds; and what it says, in sentences. Both are empty
        where the authors have no such log.
    """
    theirs = logged.set_index("epoch")["loss"]
    off: dict[str, list[pd.Series]] = {}
    for name, of_seeds in histories.items():
        for history in of_seeds:
            one = np.log(history.set_index("epoch")["loss"] / theirs).dropna().abs()
            if len(one):
                off.setdefault(name, []).append(one)
    if not off:
        return pd.DataFrame(), []
    means = {name: tuple(float(one.mean()) for one in of_seeds) for name, of_seeds in off.items()}
    several = tuple(values for values in means.values() if len(values) > 1)
    samples = {name: Sample(values, several) for name, values in means.items()}
    rows = [
        {"variation": name, "distance": (interval := mean_interval(one)).value, "low": interval.low}
        | {"high": interval.high, "epochs": max(map(len, off[name])), "seeds": len(off[name])}
        for name, one in samples.items()
    ]
    ordered = pd.DataFrame(rows).sort_values("distance", kind="stable").reset_index(drop=True)
    return ordered, _said_of_following(ordered, samples)


def _said_of_following(ordered: pd.DataFrame, samples: dict[str, Sample]) -> list[str]:
    first, *rest = ordered.to_dict("records")
    said = (
        f"Nearest to the authors' log is {first['variation']}: the natural logarithm of its loss differs "
        f"from that of theirs by {first['distance']:.3f}, on average over {first['epochs']} epochs and "
        f"{first['seeds']} {'seeds' if first['seeds'] > 1 else 'seed'}."
    )
    if not rest:
        return [said]
    interval = difference_interval(samples[rest[0]["variation"]], samples[first["variation"]])
    ends = f" ({interval.low:+.3f} to {interval.high:+.3f})" if interval.known else ""
    return [
        said,
        f"The next, {rest[0]['variation']}, is {interval.value:.3f}{ends} further away; that it is: "
        f"{at_least(interval, 0.0)}.",
    ]
