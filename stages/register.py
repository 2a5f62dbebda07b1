"""DVC stage `register`: a profile's runs and networks in MLflow."""

import sys

import entry

from lambdanet import config


def main(profile: str) -> None:
    loaded = config.load(profile)
    import torch  # after the words were checked: it takes seconds

    from lambdanet.tracking import mlflow_runs, sync

    torch.set_num_threads(1)  # programs are compared on small images, beside `plot`

    trained, receipt = sync.from_outputs(loaded), loaded.folders.runs / "receipt.json"
    try:
        for line in sync.publish(trained).lines():
            print(line)
    except mlflow_runs.UnreachableError as error:  # what was reproduced is as good without it
        sync.write_receipt(receipt, [], str(error))
        again = f"dvc repro --force --single-item {loaded.address('register')}"
        print(f"warning: not registered: {error}; later run `{again}`", file=sys.stderr)
    else:
        sync.write_receipt(receipt, trained)


if __name__ == "__main__":
    entry.run(main, "PROFILE.yaml")
