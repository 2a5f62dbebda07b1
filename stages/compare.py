"""DVC stage `compare`: score what the studies trained on the test images."""

from pathlib import Path

import door


def main() -> None:
    profile, trained, clean, noisy, out = door.arguments("PROFILE TRAINED CLEAN NOISY OUT")
    params = door.load_params()
    door.announce(f"compare@{profile}", params, profile)
    from lambdanet import experiment

    experiment.compare_cells(
        params.study_cells(profile), *map(Path, (trained, clean, noisy, out)), device=door.device_name()
    )


if __name__ == "__main__":
    with door.errors_in_one_line():
        main()
