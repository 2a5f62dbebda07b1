"""What Prefect's pages show of a stage on a worker: how far it is, and at the end its scores."""

import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from prefect.artifacts import (
    create_link_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from pipelines.console import progress

UPDATE_SECONDS = 5
MLFLOW_SECONDS = 60


@contextmanager
def every(seconds: float, call: Callable[[], None]) -> Iterator[None]:
    """Call something again and again in a thread for the time of the block; its errors are not ours."""
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


@contextmanager
def progress_artifact(stage: str) -> Iterator[Callable[[str], None]]:
    """An artifact that follows a stage; yields what is to be called with each line that it prints."""
    last = {"text": "", "shown": ""}
    artifact = None
    with suppress(Exception):  # a server that is away for a while does not stop a stage
        artifact = create_progress_artifact(0.0, key=key(stage, "progress"), description=stage)

    def note(line: str) -> None:
        last["text"] = progress(line) or last["text"]

    def show() -> None:
        text = last["text"]
        if artifact and text != last["shown"]:
            last["shown"] = text
            update_progress_artifact(artifact, percent(text), description=f"{stage}: {text}")

    with every(UPDATE_SECONDS, show):
        yield note
    if artifact:
        with suppress(Exception):
            update_progress_artifact(artifact, 100.0, description=f"{stage}: {last['text']}")


def percent(text: str) -> float:
    """How far a stage is, from what `pipelines.console.progress` gives."""
    if match := re.search(r"(?:epoch|step) ([\d.,]+)(?:/| of )([\d,]+)", text):
        done, total = (float(number.replace(",", "")) for number in match.groups())
        return min(100.0, 100 * done / total) if total else 0.0
    return 0.0


def result_artifacts(stage: str, profile: str, say: Callable[[str], None]) -> None:
    """A table of a cell's scores beside the paper's, and a link to its run in MLflow.

    A stage that is no cell's has none. What goes wrong here is told and does no harm.
    """
    kind, _, rest = stage.partition("@")
    if kind not in ("train", "evaluate"):
        return
    cell = ["--profile", profile, "--cell", rest.removeprefix(f"{profile}-"), "--json"]
    try:
        said = subprocess.run(
            [sys.executable, "-m", "lambdanet.cli", "show", *cell],
            capture_output=True, text=True, timeout=MLFLOW_SECONDS, check=True,
        )  # fmt: skip
        shown = json.loads(said.stdout)
        about = f"{stage} beside the paper"
        create_table_artifact(shown["table"], key=key(stage, "scores"), description=about)
        if shown["mlflow"]:
            create_link_artifact(shown["mlflow"], "its run in MLflow", key=key(stage, "mlflow"))
    except Exception as error:  # the result itself is safe
        reason = getattr(error, "stderr", "") or f"{type(error).__name__}: {error}"
        say(f"its scores cannot be shown here ({' '.join(reason.split())[-300:]})")


def key(stage: str, kind: str) -> str:
    """An artifact's key: lower case, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", f"{stage} {kind}".lower()).strip("-")
