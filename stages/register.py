"""DVC stage `register`: a profile's runs and networks in MLflow."""

import entry

from lambdanet import config


def main(profile: str) -> None:
    loaded = config.load(profile)
    from lambdanet import publish  # after the words were checked: it takes seconds

    trained = publish.from_outputs(loaded)
    for line in publish.publish(trained, loaded.name, loaded.folders.results).lines():
        print(line)
    publish.write_receipt(loaded.folders.runs / "receipt.json", trained)


if __name__ == "__main__":
    entry.run(main, "PROFILE.yaml")
