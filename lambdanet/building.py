"""The registry's networks built by several processes, those of one architecture together.

To trace a network takes seconds, and so does loading what traces; loading this module does not.

Not a dependency in DVC: it says which process does what.
"""

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor
from pathlib import Path

from lambdanet import workers

LOADED = ("lambdanet.registry", "torch.export._trace")  # and with them torch and MLflow
WORTH_A_PROCESS = 3  # architectures, which are traced in about the time that a process takes to start


@contextlib.contextmanager
def networks(weights: list[Path]) -> Iterator[Callable[[Path], Path | None]]:
    """Have networks built: of one architecture, one is traced for all.

    Yields:
        A function from a weights file to the folder of its MLflow model; None where `registry.register` is
        to build it. It raises the ValueError that the building ended with.
    """
    from lambdanet import registry

    alike: dict[str, dict[Path, Path]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for number, path in enumerate(weights):
            alike.setdefault(_architecture(path), {})[path] = Path(temporary, str(number))
        with workers.several(_processes(len(alike)), LOADED, _use_one_thread) as later:
            of = {}
            for folders in alike.values():
                of |= dict.fromkeys(folders, (folders, later(registry.build_alike, folders)))

            def built(path: Path) -> Path | None:
                if path not in of:
                    return None
                folders, result = of[path]
                try:
                    failed = result()
                except BrokenExecutor:  # something kills these processes
                    return None
                if path in failed:
                    raise failed[path]
                return folders[path]

            yield built


def _processes(architectures: int) -> int:
    return min(workers.cores(), architectures // WORTH_A_PROCESS)


def _use_one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def _architecture(weights: Path) -> str:
    from lambdanet.models import read_description

    try:
        return json.dumps(read_description(weights)["model"], sort_keys=True)
    except ValueError:
        return str(weights)  # whoever builds it says what is wrong
