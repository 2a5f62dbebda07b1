"""Networks on sets of their own images, beside what the documents that they come from say."""

from pathlib import Path

import pandas as pd

from lambdanet.config import Cell, Config

# PSNR (dB) on test and on training images that the documents give.
DOCUMENTS = {"dncnn-25": (31.193, None), "cnn-bce": (17.737, 18.039)}
ABOUT = {
    "bsds500": (
        "DnCNN on BSDS500, predicting the noise",
        "Its document trains on 85,600 colour patches of 40 x 40 from 400 images, with Adam, and gives "
        "31.19 dB for an image of 20.53 dB. Chosen here, where it is silent: noise of sigma 25 of 255, "
        "clipped, drawn anew for each patch and epoch; 17 layers of 64 channels at full size; the 400 "
        "images are BSDS500's train and test, the 100 its val, portrait ones turned. The blind network is "
        "trained on a sigma of each patch's own, from 1 to 55.",
    ),
    "split": (
        "A CNN with LeakyReLU and cross-entropy, on four fifths of CIFAR-10",
        "Its document gives 17.74 dB on test and 18.04 dB on training images. It says nothing of its noise,"
        " widths or learning rate, and derives its PSNR from the cross-entropy, so that the numbers are not"
        " comparable. Chosen here: Gaussian noise 0.1 as in the table, 32 channels, slope 0.2, Adam at a "
        "constant 0.001.",
    ),
}


def table(config: Config, scores: dict[Cell, dict]) -> pd.DataFrame:
    """One row a network, averaged over the seeds, in the order of params.yaml.

    Args:
        config: of the profile whose scores these are.
        scores: of those that were run.

    Returns:
        set, model, parameters, epochs, train_size (images or patches trained on), images (tested on),
        noisy_psnr, psnr, gain (dB), ssim, train_psnr, document_psnr, document_train_psnr, seeds.
    """
    rows = []
    documents = [run.cell.model for run in config.ablation_runs if config.is_document(run)]
    for name in dict.fromkeys(documents):
        found = [(cell, score) for cell, score in scores.items() if cell.model == name]
        of_set = config.profile.ablations[name].study
        document = DOCUMENTS.get(name, (None, None))
        row = {"set": of_set, "model": name, "seeds": len(found)}
        row |= {"document_psnr": document[0], "document_train_psnr": document[1]}
        row |= {"epochs": config.training(name).epochs}
        row |= {"train_size": config.download(name).train_images}
        if found:
            for key in ("psnr", "ssim", "noisy_psnr", "train_psnr"):
                values = [score[key] for _, score in found if key in score]
                row[key] = sum(values) / len(values) if values else None
            row |= {"parameters": found[0][1]["parameters"], "images": found[0][1]["images"]}
            row["gain"] = row["psnr"] - row["noisy_psnr"]
        rows.append(row)
    columns = ["set", "model", "parameters", "epochs", "train_size", "images", "noisy_psnr", "psnr", "gain"]
    columns += ["ssim", "train_psnr", "document_psnr", "document_train_psnr", "seeds"]
    return pd.DataFrame(rows, columns=columns)


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
