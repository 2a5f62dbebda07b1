"""What of the paper's claims reproduced: a verdict and the evidence for each, by the rule of `statistics`."""

from collections.abc import Iterable
from dataclasses import dataclass

from lambdanet.report import settings
from lambdanet.report.runs import STUDY_NOISE, Row, sample, unequal
from lambdanet.report.statistics import (
    ABOVE,
    BELOW,
    FAILS,
    HOLDS,
    NO_SPREAD,
    NOT_RUN,
    REACHED,
    UNSURE,
    Interval,
    against,
    at_least,
    difference_interval,
    mean_interval,
    summary,
)
from lambdanet.report.tables import paper_table2

NEAR = 0.1  # dB that count as none between two networks
MARGIN = 0.3  # dB from the paper's value at which it counts as reached
LAMBDANET, SMALL, AUTOENCODER, DNCNN = "lambdanet", "lambdanet-u4-m7", "autoencoder", "dncnn"
_VERDICTS = {ABOVE: HOLDS, REACHED: HOLDS, BELOW: FAILS}


@dataclass(frozen=True)
class Part:
    """One of a claim's comparisons.

    Attributes:
        of: the noise, or the network, that it is on.
        verdict: "holds", "does not hold", "inconclusive" or "not run".
        shown: its numbers, or what it is beside the paper's; may be empty.
        reason: why it is inconclusive although it was run, where the interval is not the reason.
    """

    of: str
    verdict: str
    shown: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Finding:
    """A claim and what came of it.

    Attributes:
        claim: one sentence.
        parts: its comparisons.
        note: what else a reader must know; may be empty.
    """

    claim: str
    parts: tuple[Part, ...]
    note: str = ""

    @property
    def verdict(self) -> str:
        """That of all parts, never stronger than these."""
        return summary(part.verdict for part in self.parts)

    @property
    def reasons(self) -> dict[str, list[str]]:
        """By reason, what it is the reason of."""
        found: dict[str, list[str]] = {}
        for part in self.parts:
            if part.reason:
                found.setdefault(part.reason, []).append(part.of)
        return found


def findings(rows: list[Row], *, comparable: bool) -> list[Finding]:
    """Go through the claims.

    The paper compares its networks each with the training that it gives it (50, 300 and 200 epochs): claims
    on its Table 2 are judged on networks that were trained so, and on no others. Every other comparison of
    networks asks that they were trained alike.

    Args:
        rows: of `runs.collect`.
        comparable: whether the images are the paper's; without these its claims are not ours to judge.
    """
    found = [_of_its_size(rows)] if any(row.done for row in rows) else []
    if not comparable:
        return found
    table = [row for row in rows if not row.study and not row.dataset]
    reached = [_values(table, model) for model in (LAMBDANET, SMALL, AUTOENCODER)]
    good = [
        _as_good(table, LAMBDANET, AUTOENCODER, NEAR),
        _as_good(table, LAMBDANET, DNCNN, NEAR),
        _as_good(table, SMALL, LAMBDANET, MARGIN),
    ]
    return [*good, *reached, *found]


def _values(table: list[Row], model: str) -> Finding:
    """Whether a network's PSNR reaches the paper's; entries of the paper that do not hold are left out."""
    paper = paper_table2().query("model == @model").set_index("noise").to_dict("index")
    rows = {row.noise: row for row in table if row.name == model}
    parts = [
        _beside(noise, rows[noise], table, entry["paper_psnr"])
        for noise, entry in paper.items()
        if noise in rows and not entry["paper_note"]
    ]
    doubted = [noise for noise, entry in paper.items() if entry["paper_note"]]
    note = f"Left out: {', '.join(doubted)}, an entry of the paper that does not hold (†)." if doubted else ""
    return Finding(
        f"{model} reaches the PSNR of each of its rows in Table 2 (at most {MARGIN} dB below).",
        tuple(parts),
        note,
    )


def _beside(noise: str, row: Row, table: list[Row], paper: float) -> Part:
    if not row.done:
        return Part(noise, NOT_RUN)
    off = mean_interval(sample(row, table)) - paper
    if reason := _unlike_the_paper([row]):
        return Part(noise, UNSURE, str(off), reason)
    place = against(off, 0.0, MARGIN)
    return Part(
        noise,
        _VERDICTS.get(place, UNSURE),
        f"{off}, {place}" if place in _VERDICTS else str(off),
        "" if off.known else NO_SPREAD,
    )


def _as_good(table: list[Row], model: str, other: str, near: float) -> Finding:
    """Whether a network's PSNR is at most `near` below another's, noise by noise."""
    by_place = {(row.noise, row.name): row for row in table}
    pairs = [
        (noise, by_place.get((noise, model)), by_place.get((noise, other)))
        for noise in dict.fromkeys(row.noise for row in table)
    ]
    sizes = settings.PAPERS_PARAMETERS
    return Finding(
        f"{model}, with {sizes[model]:,} parameters, is as good as {other}, with {sizes[other]:,} "
        f"(at most {near} dB below), on each noise, each as the paper trains it.",
        tuple(_no_worse(noise, one, two, near, table, as_papers=True) for noise, one, two in pairs),
    )


def _of_its_size(rows: list[Row]) -> Finding:
    """Whether a network of another kind with no more parameters is better than the paper's LambdaNet."""
    here = [row for row in rows if row.noise == STUDY_NOISE and row.done]
    papers = settings.PAPERS_PARAMETERS[LAMBDANET]
    ours = [row for row in here if row.family == LAMBDANET and row.parameters == papers]
    others = [row for row in here if row.family != LAMBDANET and row.parameters <= papers]
    pairs = [(_trained_like(row, ours), row) for row in others if ours]
    parts = [
        _no_worse(
            f"{one.name} ({one.mean('psnr'):.2f} dB) and {other.name} ({other.mean('psnr'):.2f} dB with "
            f"{other.parameters:,} parameters)", one, other, NEAR, here,
        )
        for one, other in pairs
    ]  # fmt: skip
    return Finding(
        f"LambdaNet, with {papers:,} parameters, is as good as any network of another kind with no more "
        f"(at most {NEAR} dB below), on {STUDY_NOISE}, all trained alike.",
        tuple(parts),
        "The paper makes no such comparison.",
    )


def _trained_like(row: Row, candidates: list[Row]) -> Row:
    """Of some networks the first that was trained like another, else the first."""
    return next((one for one in candidates if not unequal(one, row)), candidates[0])


def _no_worse(
    of: str, one: Row | None, other: Row | None, near: float, rows: list[Row], *, as_papers: bool = False
) -> Part:
    """Whether a network is at most `near` below another, if they may be compared."""
    if one is None or other is None or not one.done or not other.done:
        return Part(of, NOT_RUN)
    difference = difference_interval(sample(one, rows), sample(other, rows))
    reason = _unlike_the_paper([one, other]) if as_papers else unequal(one, other)
    if reason:
        return Part(of, UNSURE, str(difference), reason)
    return Part(of, at_least(difference, -near), str(difference), _no_spread(difference))


def _no_spread(difference: Interval) -> str:
    return "" if difference.known else NO_SPREAD


def _unlike_the_paper(rows: Iterable[Row]) -> str:
    names: dict[str, list[str]] = {}
    for row in rows:
        used = row.recipe | row.hyperparameters
        if found := settings.unlike_the_paper(row.name, used, row.parameters):
            names.setdefault(found, []).append(row.name)
    return "; ".join(
        f"{' and '.join(alike)} not trained as the paper's: {found}" for found, alike in names.items()
    )
