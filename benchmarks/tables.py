"""Tables of a benchmark: as text for a terminal, as Markdown, as JSON."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import click

from benchmarks import measuring

Value = str | float | int | None
Measure = Callable[[bool], Iterable["Table"]]


@dataclass(frozen=True)
class Table:
    """Rows of named values, and what they are."""

    title: str
    about: str  # one sentence: what is compared, and how
    rows: list[dict[str, Value]]  # a row may lack columns
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, list[float]] = field(default_factory=dict)  # each call's, for the JSON file
    digits: int = 3  # significant ones that are shown

    @property
    def columns(self) -> list[str]:
        """All rows' columns, in the order in which they first appear; "note" is the last."""
        found = list(dict.fromkeys(column for row in self.rows for column in row))
        return sorted(found, key=lambda column: column == "note")


def shown(value: Value, digits: int = 3) -> str:
    """A value to read: some significant digits, nothing for None."""
    if value is None:
        return ""
    if not isinstance(value, float):
        return str(value)
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if abs(value) < 1e-3:
        return f"{value:.1e}"
    return f"{value:.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"


def text(table: Table) -> str:
    """For a terminal: columns of equal width, numbers to the right."""
    cells = [[shown(row.get(column), table.digits) for column in table.columns] for row in table.rows]
    widths = [max(map(len, column)) for column in zip(table.columns, *cells, strict=True)]
    right = _numeric(table)
    lines = [
        "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in [table.columns, *cells]
    ]
    return "\n".join([table.title, table.about, "", *lines, *_noted(table, "")]) + "\n"


def markdown(table: Table) -> str:
    """For a page: a heading, a sentence, a table, notes."""
    rule = ["---:" if number else "---" for number in _numeric(table)]
    cells = [[shown(row.get(column), table.digits) for column in table.columns] for row in table.rows]
    lines = [f"| {' | '.join(line)} |" for line in [table.columns, rule, *cells]]
    return "\n".join([f"## {table.title}", "", table.about, "", *lines, *_noted(table, "- ")]) + "\n"


def as_json(table: Table) -> dict:
    """All of it; what is not finite becomes None."""
    rows = [{column: _finite(value) for column, value in row.items()} for row in table.rows]
    return {
        "title": table.title, "about": table.about, "rows": rows, "notes": table.notes,
        "seconds": table.seconds,
    }  # fmt: skip


def command(measure: Measure) -> click.Command:
    """A command line that measures and prints; `--quick` only tries it out."""

    @click.command(help=measure.__doc__)
    @click.option("--quick", is_flag=True, help="Few repeats and small sizes, to try it out.")
    def main(quick: bool) -> None:
        measuring.warn_if_busy()
        for table in measure(quick):
            print(text(table), flush=True)

    return main


def _numeric(table: Table) -> list[bool]:
    return [not any(isinstance(row.get(column), str) for row in table.rows) for column in table.columns]


def _noted(table: Table, bullet: str) -> list[str]:
    return ["", *(f"{bullet}{note}" for note in table.notes)] if table.notes else []


def _finite(value: Value) -> Value:
    return None if isinstance(value, float) and not math.isfinite(value) else value
