"""What of the paper's claims reproduced: a verdict and the evidence for each, by the rule of `statistics`."""

from collections.abc import Iterable
from dataclasses import dataclass

from lambdanet.report import settings
from lambdanet.report.runs import STUDY_NOISE, Row, sample, unequal
from lambdanet.report.statistics import (
    NO_SPREAD,
    NOT_RUN,
    UNSURE,
    Interval,
    at_least,
    difference_interval,
    mean_interval,
    summary,
)
from lambdanet.report.tables import paper_table2

NEAR = 0.1  # dB that count as none between two networks
NEAR_SSIM = 0.01  # likewise
MARGIN = 0.3  # dB below the paper's value at which it still counts as reached
LAMBDANET, SMALL, AUTOENCODER, DNCNN = "lambdanet", "lambdanet-u4-m7", "autoencoder", "dncnn"


@dataclass(frozen=True)
class Part:
    """One of a claim's comparisons.

    Attributes:
        of: the noise, or the networks, that it is on.
        verdict: "holds", "does not hold", "inconclusive" or "not run".
        shown: its numbers; may be empty.
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
        title: a few words.
        claim: one sentence.
        parts: its comparisons.
        note: what else a reader must know; may be empty.
    """

    title: str
    claim: str
    parts: tuple[Part, ...]
    note: str = ""

    @property
    def verdict(self) -> str:
        """That of all parts, never stronger than these."""
        return summary(part.verdict for part in self.parts)

    @property
    def counts(self) -> dict[str, int]:
        """By verdict, how many parts have it."""
        found = [part.verdict for part in self.parts]
        return {verdict: found.count(verdict) for verdict in dict.fromkeys(found)}


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
    table = [row for row in rows if not row.study]
    good = [
        _as_good(table, LAMBDANET, AUTOENCODER, NEAR),
        _as_good(table, LAMBDANET, DNCNN, NEAR),
        _as_good(table, SMALL, LAMBDANET, MARGIN),
        _as_good(table, LAMBDANET, AUTOENCODER, NEAR_SSIM, "ssim"),
        _as_good(table, LAMBDANET, DNCNN, NEAR_SSIM, "ssim"),
    ]
    return [*good, *(_values(table, model) for model in (LAMBDANET, SMALL, AUTOENCODER, DNCNN)), *found]


def _values(table: list[Row], model: str) -> Finding:
    """Whether a network's PSNR reaches the paper's; entries that do not hold decide nothing."""
    paper = paper_table2().query("model == @model").set_index("noise").to_dict("index")
    rows = [row for row in table if row.name == model and row.noise in paper]
    sound = [row for row in rows if not paper[row.noise]["paper_note"]]
    parts = [_beside(row, table, **paper[row.noise]) for row in sound or rows]
    doubted = [row.noise_title for row in rows if row not in sound]
    note = f"Entries of the paper that do not hold (†): {', '.join(doubted)}." if doubted else ""
    name = settings.model_title(model)
    claim = f"{name} reaches the PSNR of each of its rows in Table 2 (at most {MARGIN} dB below)."
    return Finding(f"{name}: the paper's values", claim, tuple(parts), note)


def _beside(row: Row, table: list[Row], *, paper_psnr: float, paper_note: str, **_: object) -> Part:
    if not row.done:
        return Part(row.noise_title, NOT_RUN)
    off = mean_interval(sample(row, table)) - paper_psnr
    reason = _unlike_the_paper([row]) or (paper_note and f"the paper's entry does not hold: {paper_note}")
    return _judged(row.noise_title, off, -MARGIN, reason)


def _as_good(table: list[Row], model: str, other: str, near: float, key: str = "psnr") -> Finding:
    """Whether a network's PSNR or SSIM is at most `near` below another's, noise by noise."""
    by_place = {(row.noise, row.name): row for row in table}
    noises = {row.noise: row.noise_title for row in table}
    parts = tuple(
        _no_worse(
            noise_title, by_place.get((noise, model)), by_place.get((noise, other)), near, table, key,
            as_papers=True,
        )
        for noise, noise_title in noises.items()
    )  # fmt: skip
    sizes, titles = settings.PAPERS_PARAMETERS, [settings.model_title(name) for name in (model, other)]
    unit = "dB" if key == "psnr" else "of SSIM"
    return Finding(
        f"{titles[0]} as good as {titles[1]}{', SSIM' if key == 'ssim' else ''}",
        f"{titles[0]}, with {sizes[model]:,} parameters, is as good as {titles[1]}, with {sizes[other]:,} "
        f"(at most {near} {unit} below), on each noise, each as the paper trains it.",
        parts,
    )


def _of_its_size(rows: list[Row]) -> Finding:
    """Whether a network of another kind is better than a LambdaNet that has no fewer parameters."""
    here = [row for row in rows if row.noise == STUDY_NOISE and row.done]
    ours = sorted((row for row in here if row.family == LAMBDANET), key=lambda row: row.parameters)
    pairs = [(_of_size(row, ours), row) for row in here if row.family != LAMBDANET and not row.document]
    parts = [
        _no_worse(
            f"{settings.model_title(one.name)} ({one.mean('psnr'):.2f} dB with {one.parameters:,} "
            f"parameters) and {settings.model_title(other.name)} ({other.mean('psnr'):.2f} dB with "
            f"{other.parameters:,})", one, other, NEAR, here,
        )
        for one, other in pairs if one
    ]  # fmt: skip
    noise = f", on {here[0].noise_title}" if here else ""
    return Finding(
        "LambdaNet the best of its size",
        f"LambdaNet is as good as any network of another kind with no more parameters (at most {NEAR} dB "
        f"below){noise}, both trained alike.",
        tuple(parts),
        "This comparison is not the paper's. Each network stands beside the smallest LambdaNet that has no "
        "fewer parameters and was trained alike; the others have none. Within a study, settings that the "
        "same search chose for each kind of network may differ.",
    )


def _of_size(row: Row, by_size: list[Row]) -> Row | None:
    """Of some networks by size, the smallest with no fewer parameters that was trained like another."""
    enough = [one for one in by_size if one.parameters >= row.parameters]
    return next((one for one in enough if not unequal(one, row)), None)


def _no_worse(
    of: str, one: Row | None, other: Row | None, near: float, rows: list[Row], key: str = "psnr",
    *, as_papers: bool = False,
) -> Part:  # fmt: skip
    """Whether a network is at most `near` below another; `as_papers` asks for the paper's training."""
    if one is None or other is None or not one.done or not other.done:
        return Part(of, NOT_RUN)
    difference = difference_interval(sample(one, rows, key), sample(other, rows, key))
    reason = _unlike_the_paper([one, other]) if as_papers else ""
    return _judged(of, difference, -near, reason, key)


def _judged(of: str, interval: Interval, bound: float, reason: str, key: str = "psnr") -> Part:
    shown = interval.text() if key == "psnr" else interval.text(3, "")
    reason = reason or ("" if interval.known else NO_SPREAD)
    return Part(of, UNSURE if reason else at_least(interval, bound), shown, reason)


def _unlike_the_paper(rows: Iterable[Row]) -> str:
    names: dict[str, list[str]] = {}
    for row in rows:
        used = row.recipe | row.hyperparameters
        if found := settings.unlike_the_paper(row.name, used, row.parameters):
            names.setdefault(found, []).append(settings.model_title(row.name))
    return "; ".join(
        f"{' and '.join(alike)} not trained as the paper's: {found}" for found, alike in names.items()
    )
