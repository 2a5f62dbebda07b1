"""Run DVC under another profile than the active one, or under each in turn.

DVC resolves the stages of the active profile only, so `dvc push`, `dvc gc -w` and
`dvc repro plot@paper` do not see the others. Here the word in params.yaml is changed for the time
of a command and put back, also when the command fails or is interrupted; so is what the profile
says of the studies and the seeds.

    python -m pipelines.profiles run paper dvc status
    python -m pipelines.profiles table paper    # collect what was run of it, without running more
    python -m pipelines.profiles push           # the outputs of all profiles in dvc.lock
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml

PARAMS, LOCK = Path("params.yaml"), Path("dvc.lock")
NOT_FOR_TABLES = {"download", "corrupt", "plot", "register"}  # stages that a table needs nothing of
_WORD = re.compile(r"^(profile:[ \t]*[\"']?)([\w-]+)", re.MULTILINE)
# Which of the studies' trainings are run: the name of an anchor further up.
_ALIAS = re.compile(r"^((variations|rivals):[ \t]*\*)([\w-]+)", re.MULTILINE)
# A list in one line, or as DVC writes it for `dvc exp run -S`: a line each.
_SEEDS = re.compile(
    r"^(seeds:)([ \t]*\[[^]\n]*\]|[ \t]*(?:#[^\n]*)?(?:\n[ \t]*)+- +\d+(?:\n[ \t]*- +\d+)*)", re.MULTILINE
)
# git's marks around the two sides of a conflict, seven characters each.
_CONFLICT = re.compile(r"^(<{7}|>{7})( |$)", re.MULTILINE)
CONFLICT_ADVICE = (
    "choose a side (`git checkout --ours dvc.lock` or `--theirs`) or edit it, `git add dvc.lock`, "
    "then `dvc repro` adds the rest"
)


@contextlib.contextmanager
def active_profile(name: str) -> Iterator[None]:
    """Make `name` the active profile inside the block.

    Raises:
        ValueError: params.yaml has no such profile.
    """
    before = PARAMS.read_text()
    handler = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        make_active(name)
        yield
    finally:
        _replace(with_choice_of(PARAMS.read_text(), before))
        signal.signal(signal.SIGTERM, handler)


def active() -> str:
    """The profile that the current folder's params.yaml names."""
    return _WORD.search(PARAMS.read_text()).group(2)


def make_active(name: str) -> None:
    """Make `name` the active profile of the current folder.

    Raises:
        ValueError: params.yaml has no such profile.
    """
    text = PARAMS.read_text()
    known = list(yaml.safe_load(text)["profiles"])
    if name not in known:
        raise ValueError(f"unknown profile {name!r}; params.yaml has {', '.join(known)}")
    _replace(with_profile(text, name))


def with_profile(text: str, name: str) -> str:
    """The text of a params.yaml with another active profile, and as many studies and seeds as it says."""
    own = yaml.safe_load(text)["profiles"][name]
    text = _WORD.sub(rf"\g<1>{name}", text, count=1)
    if "seeds" in own:
        text, count = _SEEDS.subn(lambda found: f"{found[1]} {own['seeds']}", text, count=1)
        if not count:
            raise ValueError("params.yaml: `seeds:` must be a list at the start of a line, such as [0, 1]")
    studied = own.get("studied")
    if not studied:
        return text
    suffix = {"variations": "", "rivals": "-rivals"}

    def chosen(found: re.Match) -> str:
        name = studied + suffix[found[2]]
        return found[1] + name if re.search(rf"&{name}(?![\w-])", text) else found[0]

    return _ALIAS.sub(chosen, text)


def with_choice_of(text: str, other: str) -> str:
    """The text of a params.yaml with another one's active profile and choice of studies and seeds."""
    text = _WORD.sub(rf"\g<1>{_WORD.search(other).group(2)}", text, count=1)
    if seeds := _SEEDS.search(other):
        text = _SEEDS.sub(lambda found: found[1] + seeds[2], text, count=1)
    names = {found[2]: found[3] for found in _ALIAS.finditer(other)}
    return _ALIAS.sub(lambda found: found[1] + names.get(found[2], found[3]), text)


def _replace(text: str) -> None:
    part = PARAMS.with_name(f".{PARAMS.name}.part")
    part.write_text(text)
    os.replace(part, PARAMS)


def bring_back(profile: str) -> None:
    """Check out what the active profile's table is made of, as far as it is in DVC's cache and not here.

    `dvc checkout` and `dvc exp run` take an inactive profile's outputs out of the workspace; what stands
    there otherwise, put back by `lambdanet restore`, say, is left alone.

    Raises:
        ValueError: dvc.lock is damaged, or DVC refuses.
    """
    known = yaml.safe_load(Path("dvc.yaml").read_text())["stages"].keys() - NOT_FOR_TABLES
    lock = read_lock(LOCK.read_text()) if LOCK.exists() else {}
    outs = [
        out["path"]
        for name, entry in lock.items()
        if name.partition("@")[0] in known and f"{name.partition('@')[2]}-".startswith(f"{profile}-")
        for out in entry.get("outs", [])
    ]
    absent = [out for out in outs if not Path(out).exists()]
    if absent and subprocess.call(["dvc", "checkout", "--quiet", "--allow-missing", *absent]):
        raise ValueError(f"`dvc checkout --allow-missing {absent[0]}` and the like failed; run it to see why")


def recorded_profiles() -> list[str]:
    """The profiles of params.yaml that have stages in dvc.lock."""
    stages = read_lock(LOCK.read_text()) if LOCK.exists() else {}
    known = yaml.safe_load(PARAMS.read_text())["profiles"]
    return [name for name in known if any(stage.split("@")[-1].startswith(name) for stage in stages)]


def in_conflict(text: str) -> bool:
    """Whether git left the marks of a merge conflict in a file."""
    return bool(_CONFLICT.search(text))


def read_lock(text: str) -> dict[str, dict]:
    """The stages of a dvc.lock.

    Raises:
        ValueError: it is damaged, or in a merge conflict.
    """
    if in_conflict(text):
        raise ValueError(f"dvc.lock is in a merge conflict: {CONFLICT_ADVICE}")
    try:
        stages = yaml.safe_load(text)["stages"]
    except (yaml.YAMLError, TypeError, KeyError):
        stages = None
    # One that was cut off in the middle may well be YAML; its last stage lacks something then.
    if not isinstance(stages, dict) or not all(
        isinstance(one, dict) and "cmd" in one for one in stages.values()
    ):
        raise ValueError("dvc.lock is damaged: `lambdanet doctor --fix`")
    return stages


def main(words: list[str]) -> int:
    """Run one of the commands of the module's docstring; returns the exit status."""
    if words[:1] == ["run"] and len(words) > 2:
        with active_profile(words[1]):
            return subprocess.call(words[2:])
    if words[:1] == ["table"] and len(words) == 2:
        with active_profile(words[1]):
            bring_back(words[1])
            return subprocess.call(["dvc", "repro", "--single-item", f"plot@{words[1]}"])
    if words == ["push"]:
        for name in recorded_profiles():
            print(f"profile {name}", flush=True)
            with active_profile(name):
                if status := subprocess.call(["dvc", "push", "--run-cache"]):
                    return status
        return 0
    raise ValueError("usage: python -m pipelines.profiles (run PROFILE COMMAND... | table PROFILE | push)")


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
