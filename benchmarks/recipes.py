"""Which batch size and peak learning rate a family of networks of about 9,083 parameters learns best with.

    python -m benchmarks.recipes [--quick] [--out FOLDER] [FAMILY ...]

Needs `dvc repro corrupt@split`: CIFAR-10's training images, four fifths to learn from, one to compare on. No
test image is seen. A trial that FOLDER has is not trained again; one that was interrupted goes on. Without a
FAMILY all are tried, and written to results/recipes.csv too.
"""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import click
import torch

from benchmarks import pictures
from benchmarks.tables import Table, text
from lambdanet import config, files
from lambdanet.evaluation import evaluator
from lambdanet.run_log import commit
from lambdanet.training import checkpoint
from lambdanet.training.loop import Pairs, train

FAMILIES = {  # the ablation that each network is taken from, and what is tried of the network itself
    "lambdanet": ("size-lambdanet", [{"embedding_std": 0.02}, {"embedding_std": 1.0}]),
    "dncnn": ("size-dncnn-6x14-biases", [{}]),
    "autoencoder": ("size-autoencoder-5", [{}]),
}
BATCHES, RATES, EPOCHS = (32, 128), (0.0025, 0.005, 0.01, 0.02, 0.04), 4
SPLIT = "split"  # the pair of the profile `paper`
CSV = Path("results/recipes.csv")  # of all families; committed


@click.command(help=__doc__.splitlines()[0])
@click.argument("families", nargs=-1, type=click.Choice(list(FAMILIES)))
@click.option("--quick", is_flag=True, help="Few images, to try it out.")
@click.option(
    "--out", default="runs/recipes", show_default=True, type=click.Path(path_type=Path, file_okay=False)
)
def main(families: tuple[str, ...], quick: bool, out: Path) -> None:
    """Train every trial, one after the other, and print a family's when it is done."""
    torch.set_num_threads(1)
    known = config.load("profile.yaml")
    pair = known.profile.pairs[SPLIT]
    pairs = {}
    for part, count in {"train": 2000, "test": 500}.items():
        clean = pictures.stored(known.data(pair.dataset), part)
        noisy = pictures.stored(known.data(pair.dataset, pair.noise), part)
        pairs[part] = Pairs(clean[:count], noisy[:count]) if quick else Pairs(clean, noisy)
    out = out / "quick" if quick else out  # of few images: no trial that another call may take
    tables = {}
    for family in families or FAMILIES:
        entry, variants = FAMILIES[family]
        run = known.ablation(entry, 0)
        tables[family] = rows = []
        for batch, variant, rate in itertools.product(BATCHES, variants, RATES):
            file = out / "-".join([family, *map(str, variant.values()), f"{batch}-{rate:g}.json"])
            settings = replace(run.settings, epochs=EPOCHS, batch_size=batch, learning_rate=rate)
            rows.append(trial(file, run.model | variant, run.noise, settings, pairs))
        count = len(pairs["test"].clean)
        about = f"PSNR on {count} held-out images after {EPOCHS} epochs; seed 0, one thread."
        print(text(Table(f"Recipes: {family}", about, rows, digits=4)), flush=True)
    if not families and not quick:
        files.write_csv(CSV, [{"family": family} | row for family, rows in tables.items() for row in rows])


def trial(file: Path, model: dict, noise: dict, settings: config.Training, pairs: dict[str, Pairs]) -> dict:
    """Train and score one network, or read what an earlier call wrote."""
    if not file.exists():
        device, checkpoints, held_out = torch.device("cpu"), file.with_suffix(""), pairs["test"]
        row = {
            "embedding_std": model.get("embedding_std"), "batch_size": settings.batch_size,
            "learning_rate": settings.learning_rate, "psnr": None, "commit": commit(), "note": None,
        }  # fmt: skip
        try:
            network, _ = train(
                model, noise, settings, pairs["train"], held_out,
                seed=0, device=device, checkpoints=checkpoints, label=file.stem,
            )  # fmt: skip
            scores = evaluator.pooled_psnr(network, held_out.clean, held_out.noisy, device=device)
            row["psnr"] = scores["psnr"]
        except ValueError as error:  # a loss that is not finite
            row["note"] = str(error)
        files.write_json(file, row)
        checkpoint.discard(checkpoints)
    return json.loads(file.read_text())


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.recipes")
