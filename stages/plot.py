"""DVC stage `plot`: a profile's tables, figures and report."""

import entry

from lambdanet import config


def main(profile: str) -> None:
    loaded = config.load(profile)
    from lambdanet.report import write_report  # after the words were checked: it takes seconds

    write_report(loaded, loaded.folders.results)


if __name__ == "__main__":
    entry.run(main, "PROFILE.yaml")
