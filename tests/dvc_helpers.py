"""A little DVC project with stages that take no time."""

import subprocess
import sys

import yaml

DVC = [sys.executable, "-m", "dvc"]


def write_stages(folder, **stages):
    """dvc.yaml of stages that copy what they need into a file of their name: name=(needs, command)."""
    content = {}
    for name, (needs, command) in stages.items():
        copy = f"cat {' '.join(needs)} > {name}" if needs else f"echo {name} > {name}"
        content[name] = {"cmd": f"{command} && {copy}", "outs": [name]}
        content[name]["deps"] = list(needs) or ["source"]
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": content}))


def make_project(folder):
    """An empty DVC project in git, with the file that stages without needs depend on."""
    folder.mkdir()
    (folder / "source").write_text("source\n")
    for command in (["git", "init", "-q"], [*DVC, "init", "-q"]):
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder
