"""DVC stage `plot`: a profile's tables, figures and report."""

from pathlib import Path

import door

from lambdanet.params import look_up


def main() -> None:
    profile, *paths = door.arguments("PROFILE SCORES MODELS PANELS LOGS BENCHMARKS OUT")
    params = door.load_params()
    look_up(params.trainings, profile, "profile")
    door.announce(f"plot@{profile}", params, profile)
    from lambdanet.report import write_report

    write_report(params, profile, *map(Path, paths))


if __name__ == "__main__":
    with door.errors_in_one_line():
        main()
