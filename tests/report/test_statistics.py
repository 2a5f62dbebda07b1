"""The intervals against scipy's own and textbook formulas, and the verdicts by where they lie."""

import math

import pytest
from scipy import stats

from lambdanet.report import statistics
from lambdanet.report.statistics import FAILS, HOLDS, NOT_RUN, UNSURE, Interval, Sample, summary

A, B = (26.80, 26.65, 26.89), (27.10, 27.02, 27.25, 27.31)
VERDICTS = [(-0.1, 0.5, HOLDS), (-0.11, 0.5, UNSURE), (-0.5, -0.11, FAILS), (-0.5, -0.1, UNSURE)]


def ends(interval):
    return interval.low, interval.high


def test_several_seeds_have_the_t_interval_of_their_mean():
    found = statistics.mean_interval(Sample(A, (B,)))
    assert found.value == pytest.approx(26.78)
    # s = 0.12124, t(0.975, 2) = 4.30265: 0.30119 on each side
    assert ends(found) == pytest.approx((26.478814, 27.081186), abs=1e-6)
    assert ends(found) == pytest.approx(stats.t.interval(0.95, 2, loc=26.78, scale=stats.sem(A)), abs=1e-12)


def test_one_seed_has_the_prediction_interval_of_its_familys_pooled_variance():
    # 0.0294 of A with 2 and 0.0534 of B with 3 degrees of freedom: s = 0.12869, t(0.975, 5) = 2.57058
    found = statistics.mean_interval(Sample((27.0,), (A, B)))
    assert ends(found) == pytest.approx((27 - 0.330797, 27 + 0.330797), abs=1e-6)
    assert not statistics.mean_interval(Sample((27.0,))).known
    assert not statistics.mean_interval(Sample((27.0,), ((26.0,),))).known


def test_differences_of_several_seeds_are_welchs():
    welch = stats.ttest_ind(A, B, equal_var=False).confidence_interval(0.95)
    found = statistics.difference_interval(Sample(A), Sample(B))
    assert ends(found) == pytest.approx((welch.low, welch.high), abs=1e-9)


def test_a_single_seed_is_compared_by_its_familys_spread():
    half = stats.t.ppf(0.975, 2) * math.sqrt(stats.tvar(A) * (1 + 1 / 3))
    found = statistics.difference_interval(Sample((27.0,), (A,)), Sample(A, (A,)))
    assert found.value == pytest.approx(0.22)
    assert ends(found) == pytest.approx((0.22 - half, 0.22 + half), abs=1e-9)
    # two families: each side has its own
    other = statistics.difference_interval(Sample((27.0,), (B,)), Sample(A, (A,)))
    v, w = stats.tvar(B), stats.tvar(A) / 3
    half = stats.t.ppf(0.975, (v + w) ** 2 / (v**2 / 3 + w**2 / 2)) * math.sqrt(v + w)
    assert ends(other) == pytest.approx((0.22 - half, 0.22 + half), abs=1e-9)
    for pair in ((Sample((1.0,)), Sample(A)), (Sample((1.0,)), Sample((2.0,)))):
        assert not statistics.difference_interval(*pair).known


@pytest.mark.parametrize(("low", "high", "verdict"), VERDICTS)
def test_verdict_is_where_the_interval_lies(low, high, verdict):
    assert statistics.at_least(Interval((low + high) / 2, low, high), -0.1) == verdict


def test_without_an_interval_nothing_is_decided():
    assert statistics.at_least(Interval(5.0), 0.0) == UNSURE
    assert Interval(-0.001).text() == "+0.00 dB"


def test_a_claim_is_never_stronger_than_its_parts():
    assert summary([HOLDS, HOLDS]) == HOLDS
    assert summary([HOLDS, FAILS, NOT_RUN]) == FAILS
    assert summary([NOT_RUN, NOT_RUN]) == summary([]) == NOT_RUN
    for parts in ([HOLDS, NOT_RUN], [HOLDS, UNSURE], [UNSURE, NOT_RUN]):
        assert summary(parts) == UNSURE
