"""The studies: what each of them trained, scored and found, as tables and as sentences."""

from importlib import resources

import pandas as pd
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from lambdanet.config import Cell, Config
from lambdanet.models import create_model, paths

STUDY_NOISE = "gaussian-01"  # of the networks that are compared by size
BASE = "base"  # the study, and its variation, of the model that the others change
SIDE = 32  # of the images that the multiply-adds are counted for
# PSNR of the authors' released weights by the encoder's output channels, 25 epochs; 500 test images.
RELEASED_CHANNELS = {16: 26.83, 32: 26.89, 64: 27.08, 128: 27.20, 256: 27.18, 512: 27.19}
READ_OFF_FIGURE_8 = {4: 25.6, 8: 26.8}
# Batches that the authors' logged losses are sums over: 32,000 images, four fifths of four fifths of the
# training images, is the split at which their LambdaNets end where ours do, on all five noises.
AUTHORS_BATCHES = 125


def table(config: Config, scores: dict[Cell, dict]) -> pd.DataFrame:
    """One row a variation, averaged over the seeds, in the order of params.yaml.

    Args:
        config: of the profile whose scores these are.
        scores: of the ablations that were run.

    Returns:
        study, variation, model, axis (value of the study's hyperparameter), group, parameters, epochs,
        psnr (dB, pooled), psnr_std (over the seeds; empty for one), ssim, noisy_psnr, images, seeds,
        difference (dB, to the base's, where there is one), reference (dB, the released weights').
    """
    base = [s["psnr"] for cell, s in scores.items() if config.profile.ablations[cell.model].study == BASE]
    rows = []
    for name, variation in config.profile.ablations.items():
        study = config.params.studies[variation.study]
        if study.document:
            continue
        hyperparameters = config.model(name)
        row = {"study": variation.study, "variation": name, "model": variation.model}
        row |= {"axis": hyperparameters.get(study.axis), "group": hyperparameters.get(study.group)}
        row |= {"epochs": config.training(name).epochs}
        found = [score for cell, score in scores.items() if cell.model == name]
        row["seeds"] = len(found)
        if found:
            psnr = pd.Series([score["psnr"] for score in found])
            row |= {"parameters": found[0]["parameters"], "images": found[0]["images"]}
            row |= {"psnr": psnr.mean(), "psnr_std": psnr.std()}
            row |= {key: sum(s[key] for s in found) / len(found) for key in ("ssim", "noisy_psnr")}
            if base:
                row["difference"] = row["psnr"] - sum(base) / len(base)
        if variation.study == "channels":
            row["reference"] = (RELEASED_CHANNELS | READ_OFF_FIGURE_8).get(row["axis"])
        rows.append(row)
    columns = ["study", "variation", "model", "axis", "group", "parameters", "epochs", "psnr", "psnr_std"]
    columns += ["ssim", "noisy_psnr", "images", "seeds", "difference", "reference"]
    return pd.DataFrame(rows, columns=columns)


def of_study(whole: pd.DataFrame, name: str, config: Config) -> pd.DataFrame:
    """A study's rows of `table`, with the base first, at its place on the study's axis."""
    study = config.params.studies[name]
    rows = whole[whole["study"] == name]
    base = whole[whole["study"] == BASE]
    if name == BASE or not len(base) or not len(rows):
        return rows
    hyperparameters = config.model(base.iloc[0]["variation"])
    base = base.assign(axis=hyperparameters.get(study.axis), group=hyperparameters.get(study.group))
    if name == "channels":
        base = base.assign(reference=RELEASED_CHANNELS.get(hyperparameters["d"]))
    both = pd.concat([base, rows], ignore_index=True)
    return both.sort_values(["group", "axis"], kind="stable") if study.axis else both


def sentences(rows: pd.DataFrame) -> list[str]:
    """What came out of a study, in two sentences; none before there is something to compare.

    Args:
        rows: of `of_study`.
    """
    done = rows[rows["seeds"] > 0]
    if len(done) < 2:
        return []
    best, worst = done.loc[done["psnr"].idxmax()], done.loc[done["psnr"].idxmin()]
    first = (
        f"The best is {best['variation']} with {best['psnr']:.2f} dB and {int(best['parameters']):,} "
        f"parameters, the worst {worst['variation']} with {worst['psnr']:.2f} dB."
    )
    near = done[done["psnr"] >= best["psnr"] - 0.1]
    smallest = near.loc[near["parameters"].idxmin()]
    base = done[done["study"] == BASE]
    if len(base) and best["study"] != BASE:
        gain = best["psnr"] - base.iloc[0]["psnr"]
        second = f"That is {gain:.2f} dB above the base"
    elif len(base):
        runner_up = done[done["study"] != BASE]["psnr"].max()
        second = f"So the base stands, {best['psnr'] - runner_up:.2f} dB above the next"
    else:
        second = f"They lie {best['psnr'] - worst['psnr']:.2f} dB apart"
    if smallest["variation"] != best["variation"]:
        second += (
            f"; {smallest['variation']} comes within 0.1 dB of the best with "
            f"{int(smallest['parameters']):,} parameters"
        )
    found = [first, second + "."]
    if done["reference"].notna().any():
        deviation = (done["psnr"] - done["reference"]).dropna()
        where = deviation.abs().idxmax()
        found.append(
            f"The largest deviation from the released weights' values is {deviation[where]:+.2f} dB, "
            f"at {done.loc[where, 'variation']} (those for d = 4 and 8 were read off the paper's figure)."
        )
    if seeds := spread(done):
        found.append(seeds)
    return found


def spread(done: pd.DataFrame) -> str:
    """Whether a study's differences are larger than its seeds' spread."""
    if done["seeds"].min() < 2:
        return ""
    largest = done["psnr_std"].max()
    total = done["psnr"].max() - done["psnr"].min()
    verdict = "larger" if total > 2 * largest else "not larger"
    return (
        f"The seeds' standard deviation is at most {largest:.3f} dB: "
        f"the largest difference is {verdict} than twice that."
    )


def multiply_adds(config: dict) -> int:
    """Multiply-adds of a network for one image of 32 x 32, as its paper writes it.

    Counted by torch in convolutions and matrix products; half of its floating-point operations.
    """
    model = create_model(**config).eval()
    with torch.no_grad(), paths.forced(paths.REFERENCE), _Counter() as counter:
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


def pareto(
    config: Config, grid: dict[Cell, dict], studies: dict[Cell, dict], seconds: dict[str, float]
) -> pd.DataFrame:
    """Every network on the studies' noise by its size: which are worth their parameters.

    Args:
        config: of the profile whose scores these are.
        grid: scores of the table's cells.
        studies: scores of the studies' cells.
        seconds: an image takes, by network; may lack any.

    Returns:
        name, family, parameters, multiply_adds, psnr, ssim, microseconds (an image, where measured), seeds,
        front (no network with as few parameters is better), by size; empty without any.
    """
    cells = {cell: s for cell, s in grid.items() if cell.noise == STUDY_NOISE} | studies
    rows = []
    for name in dict.fromkeys(cell.model for cell in cells):
        found = [cell for cell in cells if cell.model == name]
        hyperparameters = config.model(name)
        rows.append(
            {
                "name": name,
                "family": hyperparameters["name"],
                "parameters": cells[found[0]]["parameters"],
                "multiply_adds": multiply_adds(hyperparameters),
                "psnr": sum(cells[c]["psnr"] for c in found) / len(found),
                "ssim": sum(cells[c]["ssim"] for c in found) / len(found),
                "microseconds": 1e6 * seconds[name] if name in seconds else None,
                "seeds": len(found),
            }
        )
    if not rows:
        return pd.DataFrame()
    ordered = pd.DataFrame(rows).sort_values(["parameters", "psnr"], ascending=[True, False])
    best_before = ordered["psnr"].cummax().shift(fill_value=float("-inf"))
    return ordered.assign(front=ordered["psnr"] > best_before).reset_index(drop=True)


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
