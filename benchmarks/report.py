"""Every benchmark of networks, metrics, noise and photographs in one go, and a report of them.

    python -m benchmarks [--quick] [--out results]

Prints the tables and writes them to benchmarks.json and benchmarks.md, anew after each part, so that
what was measured is kept if a later part fails. About five minutes on two idle cores without `denoisers`,
whose BM3D takes longer. Peers that are not installed are listed as such; `pip install -e '.[bench]'`
brings them.
"""

import sys
import traceback
from datetime import UTC, datetime
from pathlib import Path

import click

from benchmarks import baselines, data, denoisers, gpu, measuring, networks, photographs, sizes, tables
from benchmarks.tables import Measure, Table
from lambdanet import files
from lambdanet.run_log import commit

PARTS: dict[str, Measure] = {
    "networks": networks.measure,
    "baselines": baselines.measure,
    "data": data.measure,
    "photographs": photographs.measure,
    "denoisers": denoisers.measure,
    "sizes": sizes.measure,
    "gpu": gpu.measure,
}


@click.command()
@click.option("--quick", is_flag=True, help="Few repeats and small sizes, to try it out.")
@click.option("--out", default="results", show_default=True, type=click.Path(path_type=Path, file_okay=False))
@click.option("--only", multiple=True, type=click.Choice(list(PARTS)), help="A part; may be repeated.")
def main(quick: bool, out: Path, only: tuple[str, ...]) -> None:
    """Measure everything, print it and write it down; see the module's docstring."""
    head = describe(quick) | {"busy_before_percent": measuring.warn_if_busy()}
    done, failed = {}, {}
    for name in only or PARTS:
        start = measuring.clock()
        done[name] = []
        try:
            for table in PARTS[name](quick):
                done[name].append(table)
                print(tables.text(table), flush=True)
        except Exception as error:
            failed[name] = f"{type(error).__name__}: {error}"
            traceback.print_exc()
        print(f"[{name}: {measuring.clock() - start:.0f} s]\n", flush=True)
        write(out, head | {"failed": failed}, done)
    if failed:
        sys.exit(f"error: these parts failed: {', '.join(failed)}")


def describe(quick: bool) -> dict:
    """What stands at the top of a report."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        "commit": commit(),
        "quick": quick,
        "machine": measuring.machine(),
        "versions": measuring.versions(),
    }


def write(folder: Path, head: dict, done: dict[str, list[Table]]) -> None:
    """Write what was measured so far, as JSON with every call's seconds and as a page."""
    parts = {name: [tables.as_json(table) for table in found] for name, found in done.items()}
    files.write_json(folder / "benchmarks.json", head | {"tables": parts})
    files.write_text(folder / "benchmarks.md", page(head, done))


def page(head: dict, done: dict[str, list[Table]]) -> str:
    """The report as Markdown."""
    machine = head["machine"]
    installed = [f"{name} {version}" for name, version in head["versions"].items() if version]
    missing = [name for name, version in head["versions"].items() if not version]
    variables = [f"`{name}={value}`" for name, value in machine["variables"].items()]
    lines = [
        "# Benchmarks",
        "",
        f"- Measured {head['date']} at commit {head['commit']} by `python -m benchmarks`"
        + (", `--quick`: a trial run, whose numbers mean nothing." if head["quick"] else "."),
        f"- Machine: {machine['processor']}, {machine['cores']} cores ({', '.join(machine['flags'])}), "
        f"{machine['memory_bytes'] / 2**30:.0f} GiB, {machine['threads']} threads"
        + (f", {machine['gpu']}" if "gpu" in machine else ", no GPU")
        + f"; {head['busy_before_percent']:.0f} % busy with something else just before.",
        f"- Versions: {', '.join(installed)}."
        + (f" Not installed: {', '.join(missing)}." if missing else ""),
        *([f"- Variables: {', '.join(variables)}."] if variables else []),
        *(f"- **{name} failed: {reason}**" for name, reason in head["failed"].items()),
        "",
        "Times hold for this machine; ratios carry further, as all methods of a table ran in turns.",
        "",
    ]
    return "\n".join([*lines, *(tables.markdown(table) for found in done.values() for table in found)])
