"""Networks on images of their own, beside what the documents that they come from say."""

from pathlib import Path

import pandas as pd

from lambdanet.report import settings
from lambdanet.report.runs import Row

# What the documents give, on their own images.
DOCUMENTS = {
    "bsds500": {
        "title": "DnCNN that predicts the noise",
        "images": "bsds500",
        "text": "Its document trains on 85,600 colour patches of 40 x 40 from 400 images of BSDS500, with "
        "Adam, and gives 31.19 dB for an image of 20.53 dB. It names no noise level.",
        "psnr": {"dncnn-25": (31.193, None)},
    },
    "split": {
        "title": "A CNN with LeakyReLU and cross-entropy",
        "images": "cifar10-split",
        "text": "Its document gives 17.74 dB on test and 18.04 dB on training images of CIFAR-10, four "
        "fifths to one. It says nothing of its noise, widths or learning rate, and derives its PSNR from the "
        "cross-entropy, so that the numbers are not comparable.",
        "psnr": {"cnn-bce": (17.737, 18.039)},
    },
}


def table(rows: list[Row]) -> pd.DataFrame:
    """One row a network, averaged over the seeds, in the order of params.yaml.

    Args:
        rows: of `runs.collect`.

    Returns:
        set, model, parameters, epochs, train_size (images or patches trained on), images (tested on),
        noisy_psnr, psnr, gain (dB), ssim, train_psnr, document_psnr, document_train_psnr (both empty where
        the images are not the document's), seeds.
    """
    found = []
    for row in (row for row in rows if row.dataset):
        document = _document(row).get("psnr", {}).get(row.name, (None, None))
        shown = {"set": row.dataset, "model": row.name, "seeds": len(row.done), "epochs": row.epochs}
        shown |= {"document_psnr": document[0], "document_train_psnr": document[1]}
        shown |= {"train_size": row.data["images"]}
        if row.done:
            measured = ("psnr", "ssim", "noisy_psnr", "train_psnr")  # the last of some
            shown |= {key: row.mean(key) for key in measured if key in row.first.scores}
            shown |= {"parameters": row.parameters, "images": row.first.scores["images"]}
            shown["gain"] = shown["psnr"] - shown["noisy_psnr"]
        found.append(shown)
    columns = ["set", "model", "parameters", "epochs", "train_size", "images", "noisy_psnr", "psnr", "gain"]
    columns += ["ssim", "train_psnr", "document_psnr", "document_train_psnr", "seeds"]
    return pd.DataFrame(found, columns=columns)


def _document(row: Row) -> dict:
    """What is known of the document, if the row's images are the document's."""
    known = DOCUMENTS.get(row.dataset, {})
    return known if known.get("images") == row.data["dataset"] else {}


def about(name: str, rows: list[Row]) -> tuple[str, str]:
    """An experiment's title and text: its document's numbers where its images are used, and what is used."""
    own = [row for row in rows if row.dataset == name]
    title = DOCUMENTS.get(name, {}).get("title", f"The set {name}")
    text = _document(own[0]).get("text", "Its document's images are not used, so its numbers are not shown.")
    used = "; ".join(f"{row.name}: {_described(row)}" for row in own)
    return f"{title}, on {own[0].data['dataset']}", f"{text} Here, {used}."


def _described(row: Row) -> str:
    network = ", ".join(f"{settings.words(k)} {settings.shown(v)}" for k, v in row.hyperparameters.items())
    return f"{network.removeprefix('name ')}; {settings.described(row.recipe)}"


def levels(folders: dict[str, Path]) -> dict[str, pd.DataFrame]:
    """By network, what `examine` wrote of noise levels: sigma, noisy_psnr, psnr.

    Raises:
        ValueError: a file is missing or is none of those.
    """
    found = {}
    for model, folder in folders.items():
        try:
            rows = pd.read_csv(folder / "levels.csv")
        except (OSError, ValueError) as error:
            raise ValueError(f"{folder / 'levels.csv'} cannot be read ({error})") from None
        if missing := {"sigma", "noisy_psnr", "psnr"} - set(rows.columns):
            raise ValueError(f"{folder / 'levels.csv'} lacks the columns {', '.join(sorted(missing))}")
        found[model] = rows
    return found
