"""What Prefect's pages show besides states: how far a stage is, and tables. None of it can fail a run."""

import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from prefect.artifacts import create_markdown_artifact, create_progress_artifact, update_progress_artifact

from pipelines import stage


class Progress:
    """A progress artifact of a stage; made when the stage first says how far it is."""

    def __init__(self, name: str, say: Callable[[str], None]) -> None:
        self.name, self.say, self.artifact = name, say, None

    def line(self, text: str) -> None:
        """A stage has printed a line; it is said, too."""
        self.say(text)
        said = stage.progress(text)
        if not (found := re.search(r"(?:epoch|step) ([\d.,]+)(?:/| of )([\d,]+)", said)):
            return
        done, total = (float(one.replace(",", "")) for one in found.groups())
        with suppress(Exception):
            if self.artifact:
                update_progress_artifact(self.artifact, 100 * done / total, description=said)
            else:
                key = _key(self.name, "progress")
                self.artifact = create_progress_artifact(100 * done / total, key, f"{self.name}: {said}")


def tables(profile: str) -> None:
    """The profile's tables of results."""
    with suppress(Exception):
        for path in sorted(Path("results", profile).glob("table*.md")):
            create_markdown_artifact(path.read_text(), _key(profile, path.stem), f"{path.stem}, {profile}")


def _key(name: str, kind: str) -> str:
    """An artifact's key: lower case, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", f"{name} {kind}".lower()).strip("-")
