"""What every stage script does first and last: its words, its place in the grid, its errors."""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

# Threads that wait for each other spin; on a busy machine that can make a small network 20 times
# slower. A short spin costs a tenth on an idle one, none at all (OMP_WAIT_POLICY) a factor of two.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
# The python that DVC finds may be one that the project was not installed into.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lambdanet import interruption, params
from lambdanet.params import Cell

PARAMS = Path("params.yaml")
interruption.remember_dvc()  # before torch is loaded, while the `dvc` that runs this surely lives


def arguments(usage: str) -> list[str]:
    """The command line's words, one for each of `usage`; another number ends with the usage.

    Words in brackets at its end may be missing.

    Raises:
        ValueError: too many or too few words.
    """
    words, needed = sys.argv[1:], usage.split()
    fewest = sum(not word.startswith("[") for word in needed)
    if not fewest <= len(words) <= len(needed):
        raise ValueError(f"usage: python {sys.argv[0]} {usage}")
    return words


def load_params() -> params.Params:
    """params.yaml of the current folder, validated."""
    return params.load(PARAMS)


def cell(stage: str, names: list[str]) -> tuple[Cell, params.Params]:
    """The grid's cell that PROFILE NOISE MODEL SEED name, announced, and the parameters.

    Raises:
        ValueError: params.yaml is invalid, or has no such profile, noise or model.
    """
    profile, noise, model, seed = names
    if not seed.isdecimal() or int(seed) > params.LARGEST_SEED:
        raise ValueError(f"the seed is {seed!r}, must be a whole number from 0 to {params.LARGEST_SEED}")
    loaded = load_params()
    found = Cell(profile, noise, model, int(seed))
    loaded.noise(noise), loaded.training(profile, model)
    announce(loaded.stage_of(stage, found), loaded, profile)
    return found, loaded


def announce(name: str, loaded: params.Params, profile: str) -> None:
    """Print which of how many stages this is."""
    names = loaded.stages(profile)
    place = f"{names.index(name) + 1} of {len(names)}" if name in names else "not in params.yaml"
    print(f"[stage {place}] {name}", flush=True)


def device_name() -> str:
    """The device that the environment asks for; it must not stand in what DVC hashes."""
    return os.environ.get("LAMBDANET_DEVICE", "auto")


@contextlib.contextmanager
def errors_in_one_line() -> Iterator[None]:
    """Turn what a user can mend into one line on stderr and exit status 1."""
    logging.basicConfig(format="%(message)s")
    try:
        yield
    except (ValueError, OSError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
