"""The figures, as PNG. A model has one colour in all of them; the paper's values are hollow."""

import io
import itertools
from collections.abc import Iterable
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from PIL import Image
from skimage.io import imread

from lambdanet import files
from lambdanet.config import RunKey
from lambdanet.data import photos
from lambdanet.report.runs import Study
from lambdanet.report.settings import model_title

INK, MUTED = "#222222", "#767676"
COLOURS = {  # Okabe and Ito's, and three that differ from these
    "lambdanet": "#0072b2", "lambdanet-u4-m7": "#56b4e9", "autoencoder": "#e69f00", "dncnn": "#d55e00",
    "cnn": "#009e73", "skip-autoencoder": "#cc79a7", "lambda-resnet": "#6a3d9a", "unet": "#8c564b",
}  # fmt: skip
LINES = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9")  # of what is no model
DPI, PHOTO_DPI = 150, 100
STYLE = {
    "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": MUTED,
    "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK, "axes.grid": True,
    "grid.color": "#e5e5e5", "grid.linewidth": 0.6, "axes.axisbelow": True, "legend.frameon": False,
    "axes.titlesize": 9, "figure.dpi": DPI,
}  # fmt: skip
HOLLOW = {"linestyle": "none", "marker": "o", "markerfacecolor": "none", "markersize": 9}
SPAN = 0.2  # dB that an axis shows at least: less is within the scatter of seeds

TILE = 192  # pixels of one picture of a photograph
CROP = 96  # pixels of the photograph in a close-up, enlarged
CORNERS = {"astronaut": (60, 170), "chelsea": (142, 112)}  # top, left of the close-up


def colour(model: str) -> str:
    """The colour of a model, or of a family of networks."""
    return COLOURS.get(model, MUTED)


def write_dumbbell(path: Path, table: pd.DataFrame, noises: dict[str, str]) -> None:
    """Ours against the paper's PSNR, a column a noise and a line a model; bars: the 95 % interval.

    Args:
        path: PNG to write.
        table: of `tables.table2`.
        noises: their titles by name.
    """
    models = list(dict.fromkeys(table["model"]))
    with mpl.rc_context(STYLE):
        figure, axes = _by_noise(table, noises, 0.3 * len(models) + 1.25, sharey=True)
        for axis, rows in axes:
            for row in rows.to_dict("records"):
                place = models.index(row["model"])
                _draw_ours(axis, row, row["psnr"], place, along="x")
                if pd.notna(row["paper_psnr"]):
                    ends = row["psnr"], row["paper_psnr"]
                    axis.plot(ends, [place] * 2, color=MUTED, linewidth=1, zorder=1)
                    axis.plot(row["paper_psnr"], place, color=colour(row["model"]), **HOLLOW)
            axis.set(xlabel="PSNR (dB)")
            _span_at_least(axis, "x")
        axis.set_yticks(range(len(models)), [model_title(model) for model in models])
        axis.set_ylim(len(models) - 0.5, -0.5)
        _papers_legend(figure, table)
        _save(path, figure)


def write_psnr(path: Path, table: pd.DataFrame, noises: dict[str, str]) -> None:
    """The same against the number of parameters; the paper's values stand at the paper's."""
    with mpl.rc_context(STYLE):
        figure, axes = _by_noise(table, noises, 3.2, sharex=True)
        for axis, rows in axes:
            for row in rows.to_dict("records"):
                _draw_ours(axis, row, row["parameters"], row["psnr"], along="y")
                if pd.notna(row["paper_psnr"]):
                    paper = row["paper_parameters"], row["paper_psnr"]
                    axis.plot(*paper, color=colour(row["model"]), **HOLLOW)
            axis.set(xscale="log", xlabel="parameters")
            axis.margins(x=0.15)
            _span_at_least(axis, "y")
            axis.xaxis.set_minor_formatter(mpl.ticker.NullFormatter())
        figure.axes[0].set_ylabel("PSNR (dB)")
        _papers_legend(figure, table)
        _save(path, figure)


def _by_noise(
    table: pd.DataFrame, noises: dict[str, str], height: float, **shared: bool
) -> tuple[Figure, list[tuple[object, pd.DataFrame]]]:
    """A figure with a column for each noise, under its title and the noisy input's PSNR, and its rows."""
    names = list(dict.fromkeys(table["noise"]))
    figure = Figure(figsize=(max(2.2 * len(names) + 1, 4.4), height), layout="constrained")
    axes = figure.subplots(1, len(names), squeeze=False, **shared)[0]
    found = [(axis, table[table["noise"] == name]) for axis, name in zip(axes, names, strict=True)]
    for (axis, rows), name in zip(found, names, strict=True):
        noisy = rows["noisy_psnr"].dropna()[:1]
        input_psnr = "".join(f"\nnoisy input: {psnr:.2f} dB" for psnr in noisy)
        axis.set_title(noises.get(name, name) + input_psnr)
    return figure, found


def _draw_ours(axis: object, row: dict, x: float, y: float, *, along: str) -> None:
    """A row's PSNR with its interval, where it was run; its colour in the legend in any case."""
    shown = {"color": colour(row["model"]), "markersize": 6}
    axis.plot([], [], "o", label=model_title(row["model"]), **shown)
    if row["seeds"]:
        known = pd.notna(row["psnr_low"])
        ends = [[row["psnr"] - row["psnr_low"]], [row["psnr_high"] - row["psnr"]]] if known else None
        axis.errorbar(x, y, **{f"{along}err": ends}, fmt="o", capsize=3, **shown)


def _span_at_least(axis: object, which: str) -> None:
    """Let an axis of PSNR show at least `SPAN`, with a margin."""
    low, high = getattr(axis.dataLim, f"interval{which}")
    if np.isfinite([low, high]).all():
        margin = max(0.12 * (high - low), (SPAN - (high - low)) / 2, 0.02)
        getattr(axis, f"set_{which}lim")(low - margin, high + margin)


def _papers_legend(figure: Figure, table: pd.DataFrame) -> None:
    """The models, the interval, and what is hollow."""
    first = figure.axes[0]
    if table["psnr_low"].notna().any():
        first.errorbar([], [], yerr=[], fmt="none", ecolor=MUTED, capsize=3, label="95 % interval")
    if table["paper_psnr"].notna().any():
        first.plot([], [], color=MUTED, label="the paper's value", **HOLLOW)
    _legend(figure)


def write_convergence(
    path: Path, histories: dict[RunKey, pd.DataFrame], authors: pd.DataFrame, noises: dict[str, str]
) -> None:
    """Training loss and monitored PSNR over the epochs, a column a noise; dotted: what the authors logged.

    Args:
        path: PNG to write.
        histories: of the table's runs.
        authors: of `studies.authors_convergence`; may be empty.
        noises: their titles by name.
    """
    names = list(dict.fromkeys(key.noise for key in histories))
    models = {key.model for key in histories}
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(max(2.3 * len(names), 3.4), 4.6), layout="constrained")
        axes = figure.subplots(2, len(names), squeeze=False, sharex=True)
        for (top, bottom), noise in zip(axes.T, names, strict=True):
            of_noise = {key: history for key, history in histories.items() if key.noise == noise}
            for key, history in of_noise.items():
                style = {"color": colour(key.model), "label": model_title(key.model), "linewidth": 1.3}
                style |= {"marker": "o", "markersize": 4 if len(history) < 10 else 0}
                top.plot(history["epoch"], history["loss"], **style)
                bottom.plot(history["epoch"], history["monitored_psnr"], **style)
            for model, logged in authors[authors["noise"] == noise].groupby("model"):
                if model in models:
                    top.plot(logged["epoch"], logged["loss"], ":", color=colour(model), linewidth=1.3)
            top.set(title=noises.get(noise, noise), yscale="log")
            bottom.set(xlabel="epoch", xscale="log")
            _label_plainly(top.yaxis)
            _label_plainly(bottom.xaxis)
        axes[0, 0].set_ylabel("training loss")
        axes[1, 0].set_ylabel("monitored PSNR (dB)")
        if len(authors):
            axes[0, 0].plot([], [], ":", color=MUTED, label="the authors' log")
        _legend(figure)
        _save(path, figure)


def write_following(path: Path, histories: dict[str, list[pd.DataFrame]], logged: pd.DataFrame) -> None:
    """A study's training losses by epoch, a line a seed, beside what the authors logged.

    Args:
        path: PNG to write.
        histories: by entry, one for each seed.
        logged: of `studies.authors_convergence`, one model on one noise.
    """
    colours = dict(zip(histories, itertools.cycle(LINES)))
    last = max(history["epoch"].max() for of_seeds in histories.values() for history in of_seeds)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 4.4), layout="constrained")
        axis = figure.subplots()
        for name, of_seeds in histories.items():
            for history in of_seeds:
                axis.plot(history["epoch"], history["loss"], color=colours[name], label=name, linewidth=1)
        part = logged[logged["epoch"] <= last]
        axis.plot(part["epoch"], part["loss"], ":", color=INK, linewidth=1.8, label="the authors' log")
        axis.set(xlabel="epoch", ylabel="training loss (MSE)", xscale="log", yscale="log")
        _label_plainly(axis.xaxis)
        _label_plainly(axis.yaxis)
        _legend(figure, columns=2)
        _save(path, figure)


def write_study(path: Path, study: Study, rows: pd.DataFrame) -> None:
    """A study's PSNR over its axis, or a line for each entry; bars: the standard deviation over seeds.

    Args:
        path: PNG to write.
        study: which.
        rows: of `studies.table`; those that were not run are left out.
    """
    done = rows[rows["seeds"] > 0]
    with mpl.rc_context(STYLE):
        if study.axis:
            figure = Figure(figsize=(5.6, 3.2), layout="constrained")
            axis = figure.subplots()
            _draw_over_axis(axis, study, done)
            _span_at_least(axis, "y")
        else:
            figure = Figure(figsize=(5.6, 0.8 + 0.3 * len(done)), layout="constrained")
            axis = figure.subplots()
            for place, row in enumerate(done.to_dict("records")):
                own = colour(row["model"])
                axis.errorbar(row["psnr"], place, xerr=_spread(row), fmt="o", color=own, capsize=3)
                if pd.notna(row["reference"]):
                    axis.plot(row["reference"], place, color=own, label="the document's", **HOLLOW)
            labels = [f"{row['variation']} ({int(row['parameters']):,})" for row in done.to_dict("records")]
            axis.set_yticks(range(len(done)), labels)
            axis.set(xlabel="PSNR (dB); in brackets: parameters", ylim=(len(done) - 0.5, -0.5))
            _span_at_least(axis, "x")
            axis.locator_params(axis="x", nbins=5)
        _legend(figure)
        _save(path, figure)


def _draw_over_axis(axis: object, study: Study, done: pd.DataFrame) -> None:
    groups = list(done.groupby("group")) if study.group else [(None, done)]
    for line, (group, rows) in zip(itertools.cycle(LINES), groups):
        name = f"{study.group} = {group:g}" if study.group else "this run"
        errors = [_spread(row) or 0 for row in rows.to_dict("records")]
        axis.errorbar(rows["axis"], rows["psnr"], yerr=errors, marker="o", color=line, label=name, capsize=3)
    known = done[done["reference"].notna()]
    if len(known):
        axis.plot(known["axis"], known["reference"], color=INK, label="the document's", **HOLLOW)
    axis.set(xlabel=study.axis, ylabel="PSNR (dB)")
    axis.set_xscale("log", base=2)
    axis.set_xticks(sorted(set(done["axis"])))
    axis.xaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_locator(mpl.ticker.NullLocator())


def _spread(row: dict) -> float | None:
    return None if pd.isna(row["psnr_std"]) else row["psnr_std"]


def write_pareto(path: Path, networks: pd.DataFrame, paper: pd.DataFrame, noise: str) -> None:
    """PSNR against parameters of all networks on the studies' noise, pale without a front, and the fronts.

    Args:
        path: PNG to write.
        networks: of `studies.pareto`, which says which may stand here.
        paper: of `tables.paper_table2`, that noise's rows; empty where its images are not used.
        noise: its title.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8, 4.6), layout="constrained")
        axis, fronts = figure.subplots(), networks[networks["front"]]
        shown = networks["recipe"].isin(fronts["recipe"]) if len(fronts) else ~networks["front"]
        for family, rows in networks.groupby("family", sort=False):
            axis.plot([], [], "o", color=colour(family), label=model_title(family), markersize=5)
            for some, alpha in ((rows[~shown[rows.index]], 0.25), (rows[shown[rows.index]], 1)):
                points = some["parameters"], some["psnr"]
                axis.plot(*points, "o", color=colour(family), markersize=5, alpha=alpha, markeredgewidth=0)
        if len(paper):
            points = paper["paper_parameters"], paper["paper_psnr"]
            axis.plot(*points, color=MUTED, label="the paper's value", **HOLLOW)
        for number, (recipe, front) in enumerate(fronts.groupby("recipe")):
            style = ("-", "--", ":", "-.")[number % 4]
            label = f"front of recipe {recipe}"
            points = front["parameters"], front["psnr"]
            axis.step(*points, style, where="post", color=INK, linewidth=1, label=label)
        axis.set(xscale="log", xlabel="parameters", ylabel=f"PSNR (dB), {noise}")
        axis.margins(0.1)
        _span_at_least(axis, "y")
        axis.xaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axis.xaxis.set_minor_formatter(mpl.ticker.NullFormatter())
        _legend(figure)
        labelled = fronts.sort_values("psnr", ascending=False)
        _label_points(axis, zip(labelled["name"], labelled["parameters"], labelled["psnr"], strict=True))
        _save(path, figure)


def _label_points(axis: object, points: Iterable[tuple[str, float, float]]) -> None:
    """Name points where there is space, the first ones first; a name that would cover another is left out."""
    figure = axis.figure
    FigureCanvasAgg(figure)
    figure.draw_without_rendering()  # the layout decides where the points are
    figure.set_layout_engine("none")
    frame, taken = axis.get_window_extent(), []
    for line in axis.lines:
        if line.get_marker() not in ("None", "", None):
            taken += [
                Bbox.from_bounds(x - 6, y - 6, 12, 12) for x, y in axis.transData.transform(line.get_xydata())
            ]
    for name, x, y in points:
        for dx, dy, side in ((6, 5, "left"), (6, -12, "left"), (-6, 5, "right"), (-6, -12, "right")):
            at = {"textcoords": "offset points", "xytext": (dx, dy), "ha": side, "fontsize": 7}
            text = axis.annotate(model_title(name), (x, y), color=INK, **at)
            box = text.get_window_extent()
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
            if inside and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
            text.remove()


def write_levels(path: Path, levels: dict[str, pd.DataFrame]) -> None:
    """PSNR of the denoised images over the noise level, a line a network; dashed: the noisy images.

    Args:
        path: PNG to write.
        levels: by network, what was found on the same images: sigma, noisy_psnr, psnr.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.6, 3.4), layout="constrained")
        axis = figure.subplots()
        for line, (name, rows) in zip(itertools.cycle(LINES), levels.items()):
            axis.plot(rows["sigma"], rows["psnr"], marker="o", color=line, label=name)
        rows = next(iter(levels.values()))
        axis.plot(rows["sigma"], rows["noisy_psnr"], "--", color=MUTED, label="noisy images")
        axis.set(xlabel="sigma of the noise, of 255", ylabel="PSNR (dB)")
        _legend(figure)
        _save(path, figure)


def write_photographs(path: Path, folders: dict[str, Path], *, strip: bool = False) -> None:
    """Photographs with one noise: clean, noisy and a column a model, each with its PSNR, and close-ups.

    Args:
        path: PNG to write.
        folders: model to the folder that `evaluate` wrote.
        strip: one row alone, the first photograph's close-ups.
    """
    some = next(iter(folders.values()))
    columns = [("clean", some, "clean"), ("noisy", some, "noisy")]
    columns += [(model_title(model), folder, "denoised") for model, folder in folders.items()]
    rows = []
    for name in photos.TEST[:1] if strip else photos.TEST:
        pictures = [imread(folder / f"{name}-{kind}.png") for _, folder, kind in columns]
        top, left = CORNERS[name]
        titles = [f"{photograph_psnr(pictures[0], picture):.2f} dB" for picture in pictures[1:]]
        close = [picture[top : top + CROP, left : left + CROP] for picture in pictures]
        rows += [] if strip else [(pictures, ["", *titles])]
        rows.append((close, ["", *titles] if strip else [""] * len(columns)))
    with mpl.rc_context(STYLE | {"axes.grid": False, "figure.dpi": PHOTO_DPI}):
        inches = TILE / PHOTO_DPI
        figure = Figure(
            figsize=(inches * len(columns), (inches + 0.2) * len(rows) + 0.2), layout="constrained"
        )
        figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0.01, hspace=0.01)
        axes = figure.subplots(len(rows), len(columns), squeeze=False)
        for line, (pictures, titles) in zip(axes, rows, strict=True):
            for axis, picture, title in zip(line, pictures, titles, strict=True):
                axis.imshow(_resized(picture), interpolation="none")
                axis.set_axis_off()
                axis.text(0.5, -0.03, title, ha="center", va="top", transform=axis.transAxes, fontsize=8)
        for axis, (title, _, _) in zip(axes[0], columns, strict=True):
            axis.set_title(title, pad=3)
        _save(path, figure)


def photograph_psnr(clean: np.ndarray, picture: np.ndarray) -> float:
    """PSNR of a picture of 8 bits in dB."""
    return float(-10 * np.log10(np.mean((clean / 255.0 - picture / 255.0) ** 2)))


def _resized(picture: np.ndarray) -> np.ndarray:
    method = Image.Resampling.NEAREST if len(picture) < TILE else Image.Resampling.LANCZOS
    return np.asarray(Image.fromarray(picture).resize((TILE, TILE), method))


def _label_plainly(axis: object) -> None:
    """1, 3, 10, 30 and so on, written out, on a logarithmic axis."""
    axis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 3)))
    axis.set_major_formatter(mpl.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(mpl.ticker.NullFormatter())


def _legend(figure: Figure, columns: int | None = None) -> None:
    """One below the figure, of all that its axes name; none where that is one thing only."""
    found = [axis.get_legend_handles_labels() for axis in figure.axes]
    unique = {
        label: handle for handles, labels in found for handle, label in zip(handles, labels, strict=True)
    }
    if len(unique) > 1:
        columns = columns or min(len(unique), int(figure.get_figwidth() // 1.5))
        figure.legend(unique.values(), unique.keys(), loc="outside lower center", ncols=columns)


def _save(path: Path, figure: Figure) -> None:
    buffer = io.BytesIO()
    # Without this matplotlib writes its version into the file, and the same figure differs by machine.
    figure.savefig(buffer, format="png", metadata={"Software": None})
    files.write_bytes(path, buffer.getvalue())
