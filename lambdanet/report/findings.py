"""What of the paper's claims reproduced: a verdict for each, with its evidence."""

from dataclasses import dataclass

import pandas as pd

NEAR = 0.1  # dB that count as none between two networks
REACHED = 0.3  # dB from the paper's value at which it counts as reached
LAMBDANET, SMALL, AUTOENCODER, DNCNN = "lambdanet", "lambdanet-u4-m7", "autoencoder", "dncnn"


@dataclass(frozen=True)
class Finding:
    """A claim of the paper and what came of it.

    Attributes:
        claim: one sentence.
        verdict: "holds", "does not hold" or "holds for ... of ...".
        evidence: the numbers.
    """

    claim: str
    verdict: str
    evidence: str


def findings(table: pd.DataFrame, networks: list[dict], *, comparable: bool) -> list[Finding]:
    """Go through the claims that something was run for.

    Args:
        table: of `tables.table2`.
        networks: of `studies.pareto`, as rows.
        comparable: whether the images are the paper's, so that its values are ours to reach.
    """
    found = [
        _values(table) if comparable else None,
        _as_good(table, LAMBDANET, AUTOENCODER, NEAR),
        _as_good(table, LAMBDANET, DNCNN, NEAR),
        _as_good(table, SMALL, LAMBDANET, REACHED),
        _of_its_size(networks),
    ]
    return [one for one in found if one]


def _values(table: pd.DataFrame) -> Finding | None:
    rows = table[(table["seeds"] > 0) & table["paper_psnr"].notna() & (table["paper_note"] == "")]
    if rows.empty:
        return None
    off = rows["psnr_difference"].abs()
    furthest = rows.loc[off.idxmax()]
    evidence = (
        f"Furthest: {furthest['noise']}, {furthest['model']}, {furthest['psnr']:.2f} dB for "
        f"{furthest['paper_psnr']:.2f}. Its entries that do not hold (†) are left out."
    )
    return Finding(
        f"Table 2: its PSNR is reached within {REACHED} dB.", _verdict(off <= REACHED, "values"), evidence
    )


def _as_good(table: pd.DataFrame, model: str, other: str, near: float) -> Finding | None:
    """Whether a network's PSNR is at most `near` below another's, noise by noise."""
    done = table[table["seeds"] > 0]
    a, b = (done[done["model"] == name].set_index("noise") for name in (model, other))
    difference = (a["psnr"] - b["psnr"]).reindex(a.index).dropna()
    if difference.empty:
        return None
    sizes = a["parameters"].iloc[0], b["parameters"].iloc[0]
    return Finding(
        f"{model}, with {sizes[0]:,} parameters, is as good as {other}, with {sizes[1]:,} "
        f"(at most {near} dB below).",
        _verdict(difference >= -near, "noises"),
        ", ".join(f"{noise} {value:+.2f} dB" for noise, value in difference.items()) + ".",
    )


def _of_its_size(networks: list[dict]) -> Finding | None:
    """Whether a network of another kind with no more parameters is better than the paper's LambdaNet."""
    ours = next((row for row in networks if row["name"] == LAMBDANET), None)
    others = [
        row
        for row in networks
        if ours and row["family"] != LAMBDANET and row["parameters"] <= ours["parameters"]
    ]
    if not others:
        return None
    best = max(others, key=lambda row: row["psnr"])
    return Finding(
        "No network of another kind with as few parameters is better (Gaussian noise 0.1).",
        "does not hold" if best["psnr"] > ours["psnr"] else "holds",
        f"The best of {len(others)} tried is {best['name']}: {best['psnr']:.2f} dB with "
        f"{best['parameters']:,} parameters; LambdaNet: {ours['psnr']:.2f} dB with {ours['parameters']:,}.",
    )


def _verdict(kept: pd.Series, what: str) -> str:
    if kept.all():
        return "holds"
    return f"holds for {kept.sum()} of {len(kept)} {what}" if kept.any() else "does not hold"
