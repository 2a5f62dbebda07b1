"""DVC stage `register`: a profile's runs and networks in MLflow."""

from pathlib import Path

import door

from lambdanet import building


def main() -> None:
    profile, models, scores, logs, results, receipt = door.arguments(
        "PROFILE MODELS SCORES LOGS RESULTS RECEIPT"
    )
    params = door.load_params()
    door.announce(f"register@{profile}", params, profile)
    building.prepare(params, profile)
    from lambdanet import publish  # takes seconds

    trained = publish.from_stages(params, profile, Path(models), Path(scores), Path(logs))
    for line in publish.publish(trained, profile, params.train_images, Path(results)).lines():
        print(line)
    publish.write_receipt(Path(receipt), trained)


if __name__ == "__main__":
    with door.errors_in_one_line():
        main()
