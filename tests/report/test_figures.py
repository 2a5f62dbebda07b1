"""Where the figures' markers stand, and in which colours."""

from pathlib import Path

import numpy as np
import pytest
from report_helpers import row

from lambdanet.report import figures, studies, tables
from lambdanet.report.runs import Study

BLUE, RED = figures.COLOURS["lambdanet"], figures.COLOURS["dncnn"]


@pytest.fixture
def drawn(monkeypatch):
    """The figures, which are not written."""
    found = []
    monkeypatch.setattr(figures, "_save", lambda path, figure: found.append(figure))
    return found


def points(axis, *, hollow):
    """Of an axis, place and colour of each marker that is filled, or not."""
    return {
        (float(line.get_xdata()[0]), float(line.get_ydata()[0]), line.get_color())
        for line in axis.lines
        if line.get_marker() == "o" and len(line.get_xdata()) == 1
        if (line.get_markerfacecolor() == "none") == hollow
    }


def table(*rows):
    return tables.table2(list(rows), comparable=True)


def test_the_papers_points_stand_at_its_sizes(drawn):
    rows = [row("dncnn", [25.0], parameters=5_536), row("autoencoder")]
    figures.write_psnr(Path("a.png"), table(*rows), {})
    orange = figures.COLOURS["autoencoder"]
    assert points(drawn[0].axes[0], hollow=True) == {(558_336, 26.70, RED), (47_355, 26.23, orange)}
    assert points(drawn[0].axes[0], hollow=False) == {(5_536, 25.0, RED)}
    networks, paper = studies.pareto(rows), tables.paper_table2().query("noise == 'gaussian-01'")
    figures.write_pareto(Path("b.png"), networks, paper, "Gaussian 0.1")
    (theirs,) = [line for line in drawn[1].axes[0].lines if line.get_label() == "the paper's value"]
    assert sorted(theirs.get_xdata()) == [3_959, 9_083, 47_355, 558_336]
    assert not [line for line in drawn[1].axes[0].lines if "front" in str(line.get_label())]


def test_the_dumbbell_has_ours_and_the_papers_on_a_line_with_the_interval(drawn):
    rows = table(row("lambdanet", [26.8, 26.9]), row("dncnn"), row("lambdanet", [24.7], noise="speckle"))
    figures.write_dumbbell(Path("a.png"), rows, {"gaussian-01": "Gaussian 0.1"})
    first, second = drawn[0].axes
    assert points(first, hollow=False) == {(26.85, 0, BLUE)}
    assert points(first, hollow=True) == {(26.88, 0, BLUE), (26.70, 1, RED)}
    (bar,) = first.containers[0].lines[2]
    low, high = bar.get_segments()[0][:, 0]
    assert (low, high) == pytest.approx((26.85 - 0.635310, 26.85 + 0.635310), abs=1e-6)  # t(0.975, 1) s / √2
    assert first.get_title() == "Gaussian 0.1\nnoisy input: 20.30 dB"
    assert points(second, hollow=True) == {(24.80, 0, BLUE)}
    labels = {label.get_text() for label in drawn[0].legends[0].get_texts()}
    assert labels == {"LambdaNet", "DnCNN", "95 % interval", "the paper's value"}


def test_a_studys_figure_has_its_axis_and_the_documents_values(drawn):
    base = row("base", [26.7, 26.9], study="base", hyperparameters={"d": 16})
    wide = row("d32", [26.95], study="channels", hyperparameters={"name": "lambdanet", "d": 32})
    study = Study(name="channels", title="d", axis="d", base=base, rows=[wide])
    figures.write_study(Path("a.png"), study, studies.table(study, [base, wide]))
    ours, theirs = [line for line in drawn[0].axes[0].lines if line.get_marker() == "o"]
    assert (list(ours.get_xdata()), list(ours.get_ydata())) == ([16, 32], pytest.approx([26.8, 26.95]))
    assert list(theirs.get_ydata()) == [26.83, 26.89]


def test_photographs_have_their_psnr():
    clean = np.full((512, 512, 3), 100, np.uint8)
    assert figures.photograph_psnr(clean, clean + 51) == pytest.approx(-20 * np.log10(51 / 255))
