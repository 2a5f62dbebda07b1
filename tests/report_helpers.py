"""What the paper trains, and rows of a report, made up."""

from lambdanet.report.runs import Row, Run

CIFAR = {"dataset": "cifar10", "images": 50_000, "noise": {"name": "gaussian", "sigma": 0.1}}
NOISES = {f"gaussian-0{tenths}": {"name": "gaussian", "sigma": tenths / 10} for tenths in (1, 2, 3)} | {
    "speckle": {"name": "speckle", "variance": 0.1},
    "salt-and-pepper": {"name": "salt-and-pepper", "amount": 0.05},
}
TABLE_1 = {
    "epochs": 50, "batch_size": 256, "learning_rate": 0.001, "schedule": "exponential", "decay": 0.99,
    "warmup": 0.1, "weight_decay": 1e-5, "loss": "mse", "fresh_noise": True, "monitored": 500,
}  # fmt: skip
SIZES = {"lambdanet": 9_083, "lambdanet-u4-m7": 3_959, "autoencoder": 47_355, "dncnn": 558_336}
AS_THE_PAPER = {
    "autoencoder": {"epochs": 300, "weight_decay": 0.0},
    "dncnn": {"epochs": 200, "weight_decay": 0.0},
}
HISTORY = "epoch,learning_rate,loss,monitored_psnr\n1,0.001,0.02,18.5\n2,0.0005,0.01,21.0\n"
MEASURES = {
    "ssim": 0.8, "psnr_per_image": 26.0, "noisy_psnr": 20.3, "noisy_ssim": 0.5, "noisy_psnr_per_image": 20.4,
    "images": 10_000, "clean_sha256": "c", "weights_sha256": "w",
}  # fmt: skip


def row(name, psnrs=(), *, noise="gaussian-01", parameters=None, train=None, outdated="", **changes):
    """A row with a run for each PSNR, trained as the paper trains its model, or as `train` has it."""
    family = {"lambdanet-u4-m7": "lambdanet"}.get(name, name)
    hyperparameters = {"name": family} | changes.pop("hyperparameters", {})
    training = TABLE_1 | AS_THE_PAPER.get(name, {}) | (train or {})
    log = changes.pop("log", {})
    scores = MEASURES | {"parameters": parameters or SIZES.get(name, 1000), "noisy_sha256": noise}
    runs = [
        Run(
            seed=seed, training=training, hyperparameters=hyperparameters, outdated=outdated, log=log,
            scores=None if psnr is None else scores | {"psnr": psnr, "seed": seed},
        )
        for seed, psnr in enumerate(psnrs or [None])
    ]  # fmt: skip
    data = {"data": CIFAR | {"noise": NOISES[noise]}}
    return Row(name=name, noise=noise, runs=tuple(runs), **data | changes)
