"""The versions that decide a result's bytes: workers with others must not take part in it unseen."""

import hashlib
import platform
import re
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

# These and Python, or what DVC makes of a result.
DECIDING = (
    "torch", "torchvision", "llvmlite", "numpy", "scipy", "scikit-image", "pandas", "safetensors", "pillow",
    "dvc",
)  # fmt: skip


def installed() -> dict[str, str]:
    """This environment's Python and deciding packages."""
    found = {"python": ".".join(platform.python_version_tuple()[:2])}
    for name in DECIDING:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "none"
    return found


def differences(lock: Path) -> str:
    """Where this environment has other versions than a lock file; empty where it has the same."""
    lines = re.findall(r"^[\w.-]+(?:\[[^]]*\])?==[^\\\n]+", lock.read_text(), re.MULTILINE)
    pins = [one for one in map(Requirement, lines) if not one.marker or one.marker.evaluate()]
    locked = {one.name: str(one.specifier).removeprefix("==") for one in pins}
    found = {name: (version, locked.get(name, version)) for name, version in installed().items()}
    return ", ".join(f"{name} {ours}, locked is {pin}" for name, (ours, pin) in found.items() if ours != pin)


def queue() -> str:
    """The name of the queue that workers with this environment serve, and no others."""
    found = installed()
    digest = hashlib.sha256(repr(sorted(found.items())).encode()).hexdigest()[:8]
    return f"python{found['python']}-torch{found['torch'].partition('+')[0]}-{digest}"
