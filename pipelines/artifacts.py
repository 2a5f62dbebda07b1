"""What Prefect's pages show besides states: how far a stage is, tables, links. None of it can fail a run."""

import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    update_progress_artifact,
)

from pipelines import stage

UPDATE_SECONDS = 5


@contextmanager
def every(seconds: float, call: Callable[[], object]) -> Iterator[None]:
    """Call a function again and again in a thread for the time of the block; its errors are dropped."""
    left = threading.Event()

    def work() -> None:
        while not left.wait(seconds):
            with suppress(Exception):
                call()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        left.set()
        thread.join(5)


class Progress:
    """A progress artifact of a stage; made when the stage first says how far it is."""

    def __init__(self, name: str) -> None:
        self.name, self.artifact, self.updated = name, None, 0.0

    def line(self, text: str) -> None:
        """A stage has printed a line."""
        said = stage.progress(text)
        found = re.search(r"(?:epoch|step) ([\d.,]+)(?:/| of )([\d,]+)", said)
        done, total = (float(one.replace(",", "")) for one in found.groups()) if found else (0.0, 1.0)
        percent = min(100.0, 100 * done / total) if total else 0.0
        if not said or (time.monotonic() - self.updated < UPDATE_SECONDS and percent < 100):
            return
        self.updated = time.monotonic()
        about = f"{self.name}: {said}"
        with suppress(Exception):
            if self.artifact:
                update_progress_artifact(self.artifact, percent, description=about)
            else:
                self.artifact = create_progress_artifact(percent, key(self.name, "progress"), about)


def results(profile: str) -> None:
    """The profile's tables of results, and a link to MLflow."""
    with suppress(Exception):
        for path in sorted(Path("results", profile).glob("table*.md")):
            create_markdown_artifact(path.read_text(), key(profile, path.stem), f"{path.stem}, {profile}")
    mlflow_link(profile)


def mlflow_link(name: str) -> None:
    """A link to MLflow's pages, where a server is named."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if uri.startswith("http"):
        with suppress(Exception):
            create_link_artifact(uri, "runs in MLflow", key=key(name, "mlflow"))


def key(name: str, kind: str) -> str:
    """An artifact's key: lower case, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", f"{name} {kind}".lower()).strip("-")
