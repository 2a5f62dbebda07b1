"""The studies: what each of them trained, scored and found, as tables and as sentences."""

from importlib import resources

import numpy as np
import pandas as pd
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from lambdanet import backends
from lambdanet.models import create_model
from lambdanet.report import settings
from lambdanet.report.runs import STUDY_NOISE, Question, Row, sample, unequal
from lambdanet.report.statistics import (
    NO_SPREAD,
    UNSURE,
    Sample,
    at_least,
    difference_interval,
    mean_interval,
)

FOLLOWING = "autoencoder-settings"  # the study whose losses are compared with the authors' log
SIDE = 32  # of the images that the multiply-adds are counted for
# PSNR of the authors' released weights by the encoder's output channels, 25 epochs; 500 test images.
RELEASED_CHANNELS = {16: 26.83, 32: 26.89, 64: 27.08, 128: 27.20, 256: 27.18, 512: 27.19}
READ_OFF_FIGURE_8 = {4: 25.6, 8: 26.8}
# Batches that the authors' logged losses are sums over: 32,000 images, four fifths of four fifths of the
# training images, is the split at which their LambdaNets end where ours do, on all five noises.
AUTHORS_BATCHES = 125


def table(question: Question, rows: list[Row], *, comparable: bool) -> pd.DataFrame:
    """One row an entry of a study, averaged over the seeds, in the order of params.yaml or of its axis.

    Args:
        question: the study; its base, where it has one, is among the rows.
        rows: of `runs.collect`, which the spread of a single training is taken from.
        comparable: whether the images are the paper's, and so are its values.

    Returns:
        study, variation, model, axis (value of the study's hyperparameter), group, changes (settings in
        which the entries differ), parameters, epochs, psnr (dB, pooled), psnr_std (over the seeds; empty
        for one), ssim, noisy_psnr, images, seeds, difference (dB, to the base's, where there is one), low
        and high (its interval), reference (dB, the released weights'), note (settings that are not those of
        params.yaml).
    """
    base = question.base if question.base and question.base.done else None
    entries = [*([base] if base else []), *question.rows]
    varied = _varied(entries)
    found = []
    for row in entries:
        shown = {"study": row.study, "variation": row.name, "model": row.family, "epochs": row.epochs}
        shown |= {key: row.hyperparameters.get(of) for key, of in _axes(question).items()}
        shown |= {"seeds": len(row.done), "changes": _changes(row, varied), "note": row.outdated}
        if row.done:
            shown |= {"parameters": row.parameters, "images": row.first.scores["images"]}
            shown |= {key: row.mean(key) for key in ("psnr", "ssim", "noisy_psnr")}
            shown["psnr_std"] = pd.Series(row.psnrs).std()
            if base:
                interval = difference_interval(sample(row, rows), sample(base, rows))
                shown |= {"difference": interval.value}
                shown |= {"low": interval.low, "high": interval.high} if row is not base else {}
        if question.name == "channels" and comparable:
            shown["reference"] = (RELEASED_CHANNELS | READ_OFF_FIGURE_8).get(row.hyperparameters["d"])
        found.append(shown)
    columns = ["study", "variation", "model", "axis", "group", "changes", "parameters", "epochs", "psnr"]
    columns += ["psnr_std", "ssim", "noisy_psnr", "images", "seeds", "difference", "low", "high"]
    both = pd.DataFrame(found, columns=[*columns, "reference", "note"])
    return both.sort_values(["group", "axis"], kind="stable") if question.axis else both


def _axes(question: Question) -> dict[str, str]:
    axes = {"axis": question.axis, "group": question.group}
    return {key: of for key, of in axes.items() if of}


def _settings(row: Row) -> dict:
    """All that makes a row what it is: its network and its training."""
    network = {"model" if key == "name" else key: value for key, value in row.hyperparameters.items()}
    return network | row.recipe


def _varied(rows: list[Row]) -> list[str]:
    """The settings in which some rows differ."""
    every = [_settings(row) for row in rows]
    keys = dict.fromkeys(key for one in every for key in one)
    return [key for key in keys if len({str(one.get(key)) for one in every}) > 1]


def _changes(row: Row, varied: list[str]) -> str:
    own = _settings(row)
    return ", ".join(f"{settings.words(key)} {settings.shown(own[key])}" for key in varied if key in own)


def sentences(question: Question, rows: list[Row], *, comparable: bool) -> list[str]:
    """What came out of a study; none before one of its entries was run.

    Args:
        question: the study.
        rows: of `runs.collect`.
        comparable: whether the images are the paper's.
    """
    entries = [row for row in question.rows if row.done]
    base = question.base if question.base and question.base.done else None
    done = [*([base] if base else []), *entries]
    if not entries:
        return []
    if len(done) == 1:
        return [f"Only {_with_numbers(done[0])} was run, so there is nothing to compare it with."]
    ordered = sorted(done, key=_psnr, reverse=True)
    best, second, worst = ordered[0], ordered[1], ordered[-1]
    if _psnr(best) - _psnr(worst) < 0.005:
        return [f"All have {_psnr(best):.2f} dB."]
    said = [f"The highest is {_with_numbers(best)}, the lowest {worst.name} with {_psnr(worst):.2f} dB."]
    said.append(_compared(best, second if base in (None, best) else base, base, rows))
    near = [row for row in done if _psnr(row) >= _psnr(best) - 0.1]
    smallest = min(near, key=lambda row: row.parameters)
    if smallest.parameters < best.parameters:
        said.append(
            f"{smallest.name} comes within 0.1 dB of the highest with {smallest.parameters:,} parameters."
        )
    if question.name == "channels" and comparable:
        said += _beside_released(done)
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


def _beside_released(done: list[Row]) -> list[str]:
    known = RELEASED_CHANNELS | READ_OFF_FIGURE_8
    off = {
        row.name: _psnr(row) - known[row.hyperparameters["d"]]
        for row in done
        if row.hyperparameters["d"] in known
    }
    if not off:
        return []
    where = max(off, key=lambda name: abs(off[name]))
    return [
        f"The largest deviation from the released weights' values is {off[where]:+.2f} dB, at {where} "
        "(those for d = 4 and 8 were read off the paper's figure)."
    ]


def multiply_adds(config: dict) -> int:
    """Multiply-adds of a network for one image of 32 x 32, as its paper writes it.

    Counted by torch in convolutions and matrix products; half of its floating-point operations.
    """
    model = create_model(**config).eval()
    with torch.no_grad(), backends.forced(backends.REFERENCE), _Counter() as counter:
        model(torch.zeros(1, 3, SIDE, SIDE))
    return counter.operations // 2


class _Counter(TorchDispatchMode):
    """The sum of what torch says that its operations cost, as its FlopCounterMode has it."""

    operations = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # to be skipped, torch's compiler is loaded, for two seconds

    def __torch_dispatch__(
        self, func: torch._ops.OpOverload, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        result = func(*args, **(kwargs or {}))
        if count := flop_registry.get(func._overloadpacket):
            self.operations += count(*args, **(kwargs or {}), out_val=result)
        return result


def inference_seconds(benchmarks: dict) -> dict[str, float]:
    """Seconds an image by network, from results/benchmarks.json; empty where it lacks them."""
    rows = [row for table in benchmarks.get("tables", {}).get("sizes", []) for row in table["rows"]]
    return {row["network"]: row["us an image"] / 1e6 for row in rows}


def pareto(rows: list[Row], seconds: dict[str, float]) -> pd.DataFrame:
    """Every network on the studies' noise by its size; fronts among those that were trained alike.

    Args:
        rows: of `runs.collect`.
        seconds: an image takes, by network; may lack any.

    Returns:
        name, family, parameters, multiply_adds, psnr, ssim, microseconds (an image, where measured), seeds,
        recipe (a letter; the same for those that were trained alike), trained (it in words), front (no
        network of this recipe with as few parameters has a higher PSNR, and there are some of other sizes),
        by size; empty without any.
    """
    done = [row for row in rows if row.noise == STUDY_NOISE and not row.dataset and row.done]
    if not done:
        return pd.DataFrame()
    found = pd.DataFrame([_network(row, seconds) for row in done])
    groups = list(dict.fromkeys(found["trained"]))
    groups.sort(key=lambda group: -(found["trained"] == group).sum())
    found["recipe"] = found["trained"].map({group: _letter(at) for at, group in enumerate(groups)})
    ordered = found.sort_values(["parameters", "psnr"], ascending=[True, False]).reset_index(drop=True)
    sizes = ordered.groupby("recipe")["parameters"].transform("nunique")
    before = ordered.groupby("recipe")["psnr"].transform(lambda psnr: psnr.cummax().shift())
    return ordered.assign(front=(sizes > 1) & ~(ordered["psnr"] <= before))


def _network(row: Row, seconds: dict[str, float]) -> dict:
    return {
        "name": row.name,
        "family": row.family,
        "parameters": row.parameters,
        "multiply_adds": multiply_adds(row.hyperparameters),
        "psnr": row.mean("psnr"),
        "ssim": row.mean("ssim"),
        "microseconds": 1e6 * seconds[row.name] if row.name in seconds else None,
        "seeds": len(row.done),
        "trained": _recipe_in_words(row),
    }


def _recipe_in_words(row: Row) -> str:
    """How a network was trained; LambdaNet's usual initial embedding is no difference to other networks."""
    usual = {settings.INITIAL: 1.0}.items()
    return settings.described({key: value for key, value in row.recipe.items() if (key, value) not in usual})


def _letter(number: int) -> str:
    """A, B, ... Z, AA, AB, ..."""
    return (_letter(number // 26 - 1) if number >= 26 else "") + chr(ord("A") + number % 26)


def following(
    histories: dict[str, list[pd.DataFrame]], model: str, noise: str
) -> tuple[pd.DataFrame, list[str]]:
    """Which trainings' losses follow the authors' log: by the mean absolute difference of log loss.

    Args:
        histories: by entry, one for each seed: epoch, loss.
        model: of the authors' log.
        noise: likewise.

    Returns:
        By entry, in order: variation, distance (mean over the seeds), low and high (its interval; empty
        without a spread), epochs (that both have), seeds; and what it says, in sentences. Both are empty
        where the authors have no such log.
    """
    authors = authors_convergence()
    logged = authors[(authors["model"] == model) & (authors["noise"] == noise)].set_index("epoch")["loss"]
    off: dict[str, list[pd.Series]] = {}
    for name, of_seeds in histories.items():
        for history in of_seeds:
            one = np.log(history.set_index("epoch")["loss"] / logged).dropna().abs()
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
