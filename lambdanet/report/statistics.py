"""The rule by which the report judges: intervals over seeds, and a verdict by where they lie.

1. Several seeds: the 95 % t-interval of their mean, mean ± t s / sqrt(n), with the seeds' own standard
   deviation s and n - 1 degrees of freedom.
2. One seed: the prediction interval, value ± t s, as a single training falls that far from its mean over
   seeds. s is the pooled standard deviation of its family: of all rows with several seeds that have the same
   kind of network, noise, images, optimizer, loss and kind of schedule, whatever their sizes, epochs and
   rates. s^2 = (sum over rows and seeds of (value - row's mean)^2) / (sum over rows of (n - 1)), and t has as
   many degrees of freedom as that divisor. A family without such a row has no spread: "inconclusive".
3. Differences: Welch's interval, from s^2 / n of each side by 1 or 2. Where both sides have the same family
   and either of them has one seed, both take the family's s: s sqrt(1 / n + 1 / m).
4. "A is at most x dB below B" "holds" if all of the interval of A - B lies at or above -x, "does not hold" if
   all of it lies below, and is "inconclusive" otherwise. A claim on several noises holds if it holds on each,
   does not hold if it fails on any, and is "not run" if nothing of it was; else it is inconclusive.
   Each interval is of one comparison: nothing is corrected for their number.

These functions know numbers only. Which trainings may be compared at all is in `settings`.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95
HOLDS, FAILS, UNSURE, NOT_RUN = "holds", "does not hold", "inconclusive", "not run"
NO_SPREAD = "trained once, and nothing of its family with several seeds"


@dataclass(frozen=True)
class Sample:
    """What one row of a table measured.

    Attributes:
        values: one for each seed.
        family: the same of each row that the spread of a single training is taken from.
    """

    values: tuple[float, ...]
    family: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True)
class Interval:
    """An estimate and the ends of its 95 % interval; both NaN where there is no spread to take it from."""

    value: float
    low: float = math.nan
    high: float = math.nan

    @property
    def known(self) -> bool:
        """Whether it has ends."""
        return not math.isnan(self.low)

    def __sub__(self, constant: float) -> "Interval":
        return Interval(self.value - constant, self.low - constant, self.high - constant)

    def text(self, digits: int = 2, unit: str = " dB") -> str:
        """The estimate, and in brackets its interval, with signs."""
        value, low, high = (signed(one, digits) for one in (self.value, self.low, self.high))
        return f"{value}{unit} ({low} to {high})" if self.known else f"{value}{unit}"


def signed(value: float, digits: int = 2) -> str:
    """A difference with its sign, and no minus before zero."""
    return f"{round(value, digits) + 0:+.{digits}f}"


@dataclass(frozen=True)
class _Spread:
    variance: float
    freedom: int


def mean_interval(sample: Sample) -> Interval:
    """The interval of a row's mean over seeds."""
    value, spread = float(np.mean(sample.values)), _spread(sample)
    if spread is None:
        return Interval(value)
    return _around(value, spread.variance / len(sample.values), spread.freedom)


def difference_interval(a: Sample, b: Sample) -> Interval:
    """The interval of the difference of two rows' means, a - b."""
    value = float(np.mean(a.values) - np.mean(b.values))
    n, m = len(a.values), len(b.values)
    if a.family == b.family and 1 in (n, m):
        shared = _pooled(a.family)
        return (
            _around(value, shared.variance * (1 / n + 1 / m), shared.freedom) if shared else Interval(value)
        )
    one, other = _spread(a), _spread(b)
    if one is None or other is None:
        return Interval(value)
    v, w = one.variance / n, other.variance / m
    freedom = (v + w) ** 2 / (v**2 / one.freedom + w**2 / other.freedom) if v + w else 1
    return _around(value, v + w, freedom)


def at_least(interval: Interval, bound: float) -> str:
    """The verdict on "it is at least `bound`"."""
    if interval.low >= bound:
        return HOLDS
    return FAILS if interval.high < bound else UNSURE  # NaN compares as false


def summary(verdicts: Iterable[str]) -> str:
    """The verdict on a claim with several parts, never stronger than these."""
    found = set(verdicts)
    if FAILS in found:
        return FAILS
    return found.pop() if len(found) == 1 else UNSURE if found else NOT_RUN


def _spread(sample: Sample) -> _Spread | None:
    """By a row's own seeds, or for a single one by its family's."""
    return _pooled([sample.values]) or _pooled(sample.family)


def _pooled(groups: Sequence[Sequence[float]]) -> _Spread | None:
    several = [np.asarray(group) for group in groups if len(group) > 1]
    freedom = sum(len(group) - 1 for group in several)
    if not freedom:
        return None
    return _Spread(sum(((group - group.mean()) ** 2).sum() for group in several) / freedom, freedom)


def _around(value: float, variance: float, freedom: float) -> Interval:
    if not variance:
        return Interval(value, value, value)
    from scipy import stats  # here: it takes a second, and not every reader of a table has a question

    low, high = stats.t.interval(CONFIDENCE, freedom, loc=value, scale=math.sqrt(variance))
    return Interval(value, float(low), float(high))
