"""What every entry script does first and last: its words, its device, its errors.

Not a dependency in DVC: it decides how a stage is called and how it fails.
"""

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

# Threads that wait for each other spin; on a busy machine that can make a small network 20 times
# slower. A short spin costs a tenth on an idle one, none at all (OMP_WAIT_POLICY) a factor of two.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
# The python that DVC finds may be one that the project was not installed into.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lambdanet.training import interruption

interruption.remember_dvc()  # before torch is loaded, while the `dvc` that runs this surely lives


def device() -> str:
    """The device that the environment asks for; it must not stand in what DVC hashes."""
    return os.environ.get("LAMBDANET_DEVICE", "auto")


def run(main: Callable[..., None], usage: str) -> None:
    """Call `main` with the command line's words, one for each of `usage`.

    What a user can mend becomes one line on stderr and exit status 1.
    """
    logging.basicConfig(format="%(message)s")
    try:
        if len(words := sys.argv[1:]) != len(usage.split()):
            raise ValueError(f"usage: python {sys.argv[0]} {usage}")
        main(*words)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
    except ModuleNotFoundError as error:
        sys.exit(f"error: {error}; install what this project needs by `make setup`")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
