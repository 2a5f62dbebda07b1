"""How often `lambdanet denoise` finds the right noise: on the test images, as 8-bit files hold them.

    python -m benchmarks.blind [--profile paper] [--alias champion] [--images 1000]

Needs the profile's clean images (`dvc repro download@cifar10`) and the committed weights and results.
Prints, for each noise that is put on, how often each was found.
"""

from pathlib import Path

import click
import numpy as np
import torch

from benchmarks import pictures
from lambdanet import config
from lambdanet.data.images import to_tensor
from lambdanet.data.noise import create_noise
from lambdanet.inference import blind, denoise_files
from lambdanet.models import load_weights

SEED = 17  # another than the one that `blind` uses itself


@click.command()
@click.option("--profile", default="paper", show_default=True)
@click.option("--alias", default="champion", show_default=True)
@click.option("--images", default=1000, show_default=True, type=click.IntRange(1))
def main(profile: str, alias: str, images: int) -> None:
    """Measure and print; see the module's docstring."""
    loaded = config.load(config.find(profile))
    stored = pictures.stored(loaded.data(loaded.profile.dataset), "test")
    picked = np.linspace(0, len(stored) - 1, min(images, len(stored))).round().astype(int)
    clean = to_tensor(stored[picked])
    with denoise_files.denoisers(Path("weights", profile), alias, None) as choices:
        models = [load_weights(weights) for weights in choices.values()]
    noises = {d["cell"]["noise"]: create_noise(**d["noise"]) for _, d in models}
    names, right = list(noises), 0
    print(f"{len(clean)} images of {profile}, alias {alias}; rows: put on, columns: found")
    print(" " * 16 + "".join(f"{name:>16}" for name in names))
    for number, (name, noise) in enumerate(noises.items()):
        generator = torch.Generator().manual_seed(SEED + number)
        noisy = (255 * noise(clean, generator).clamp(0, 1)).round() / 255
        misfits = [
            torch.cat([blind.misfit(part, model, own) for part in noisy.split(100)])
            for (model, _), own in zip(models, noises.values(), strict=True)
        ]
        found = torch.stack(misfits).argmin(0)
        counts = [(found == other).sum().item() for other in range(len(names))]
        right += counts[number]
        print(f"{name:16}" + "".join(f"{count:16}" for count in counts), flush=True)
    print(f"right: {100 * right / (len(clean) * len(names)):.1f} %")


if __name__ == "__main__":
    main()
