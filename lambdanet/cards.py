"""Model cards: what a trained network is, in Markdown, for MLflow's registry and for `weights/`.

Not a dependency in DVC: it says in words what scores and descriptions hold.
"""

from collections.abc import Iterable

LIMITS = (
    "trained on small colour images with computed noise of this kind and strength, not on the noise of a "
    "camera; on other images or noise it blurs or leaves noise, and nothing is promised of its scores there"
)
LICENCE = "MIT, as the code; the training images have their own terms, see docs/data.md"


def card(description: dict, scores: dict, *, train_images: int, dataset: str = "", commit: str = "") -> str:
    """The card of one network.

    Args:
        description: as in model.json.
        scores: what `evaluate` wrote.
        train_images: how many images or patches it was trained on.
        dataset: the data set's name in profile.yaml, if it is known.
        commit: that trained it, if it is known.
    """
    run, how = description["cell"], description["training"]
    noise = ", ".join(f"{key} {value}" for key, value in description["noise"].items() if key != "name")
    data = f"{train_images:,} images" + (f" of {dataset}" if dataset else "")
    return (
        f"{run['model']} for {run['noise']}, {scores['parameters']:,} parameters; profile "
        f"`{run['profile']}`, seed {run['seed']}.\n\n"
        f"- **Data**: {data}, with the noise {description['noise']['name']} ({noise})\n"
        f"- **Training**: {how['epochs']} epochs, batches of {how['batch_size']}, learning rate "
        f"{how['learning_rate']}, loss {how['loss']}; {f'commit {commit}' if commit else 'commit unknown'}\n"
        f"- **Scores**: PSNR {scores['psnr']:.2f} dB, SSIM {scores['ssim']:.3f} on {scores['images']:,} test "
        f"images (noisy: {scores['noisy_psnr']:.2f} dB)\n"
        f"- **Limits**: {LIMITS}\n"
        f"- **Licence**: {LICENCE}\n"
    )


def table(profile: str, rows: Iterable[dict]) -> str:
    """A README for a folder of weights: a row for each file.

    Args:
        profile: whose weights they are.
        rows: each with its `file`, and what `card` takes by the names of its arguments.
    """
    lines = [
        f"# Weights of the profile `{profile}`",
        "",
        "Each file is a network that `lambdanet denoise --weights FILE` and `lambdanet.models.load_weights` "
        "read; its header says how it was trained. PSNR (dB) and SSIM are of the test images.",
        "",
        "| file | noise | parameters | data | epochs | PSNR | SSIM | test images | trained by commit |",
        "| --- | --- | ---: | --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for row in rows:
        scores, noise = row["scores"], row["description"]["cell"]["noise"]
        commit = row["commit"] or "unknown"
        lines.append(
            f"| {row['file']} | {noise} | {scores['parameters']:,} | {row['dataset']}, "
            f"{row['train_images']:,} images | {row['description']['training']['epochs']} | "
            f"{scores['psnr']:.2f} | {scores['ssim']:.3f} | {scores['images']:,} | {commit} |"
        )
    return "\n".join([*lines, "", f"Limits: {LIMITS}.", "", f"Licence: {LICENCE}.", ""])
