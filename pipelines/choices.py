"""What may be chosen in Prefect's forms: the names in params.yaml, read when a flow is loaded."""

from pathlib import Path
from typing import Literal

import yaml

PARAMS = Path(__file__).resolve().parent.parent / "params.yaml"


def names(section: str) -> tuple[str, ...]:
    """The names of a section of params.yaml."""
    return tuple(yaml.safe_load(PARAMS.read_text())[section])


def seeds(profile: str) -> list[int]:
    """The seeds of the trainings of a profile's grid."""
    found = yaml.safe_load(PARAMS.read_text())
    return found["profiles"][profile].get("seeds", found["seeds"])


Profile = Literal[names("profiles")]
Noise = Literal[names("noises")]
Model = Literal[names("models")]
