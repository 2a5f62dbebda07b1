"""The figures, as PNG: convergence (Figure 9), PSNR against size, photographs (Figure 10)."""

import io
import itertools
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image
from skimage.io import imread

from lambdanet import files
from lambdanet.config import RunKey
from lambdanet.data import photos
from lambdanet.report.runs import Question

INK, MUTED = "#222222", "#777777"
COLOURS = ("#0072b2", "#56b4e9", "#e69f00", "#d55e00", "#009e73", "#cc79a7")  # Okabe and Ito
STYLE = {
    "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": MUTED,
    "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK, "axes.grid": True,
    "grid.color": "#e5e5e5", "grid.linewidth": 0.6, "axes.axisbelow": True, "legend.frameon": False,
}  # fmt: skip

TILE = 192  # pixels of one picture in a panel
CROP = 96  # pixels of the photograph in a close-up, shown at twice their size
CORNERS = {"astronaut": (60, 170), "chelsea": (142, 112)}  # top, left of the close-up


def write_convergence(path: Path, histories: dict[RunKey, pd.DataFrame]) -> None:
    """Training loss and monitored PSNR over the epochs, a column a noise, a colour a model."""
    noises = list(dict.fromkeys(run_key.noise for run_key in histories))
    colours = _colours(run_key.model for run_key in histories)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(2.5 * len(noises) + 0.6, 5), layout="constrained")
        axes = figure.subplots(2, len(noises), squeeze=False, sharex=True)
        for (top, bottom), noise in zip(axes.T, noises, strict=True):
            for run_key, history in histories.items():
                if run_key.noise == noise:
                    style = {"color": colours[run_key.model], "label": run_key.model, "linewidth": 1.4}
                    style |= {"marker": "o", "markersize": 4 if len(history) < 10 else 0}
                    top.plot(history["epoch"], history["loss"], **style)
                    bottom.plot(history["epoch"], history["monitored_psnr"], **style)
            top.set(title=noise, yscale="log")
            bottom.set(xlabel="epoch", xscale="log")
            _label_plainly(top.yaxis)
            _label_plainly(bottom.xaxis)
        axes[0, 0].set_ylabel("training loss")
        axes[1, 0].set_ylabel("monitored PSNR (dB)")
        _legend(figure, axes[0, 0])
        _save(path, figure)


def write_psnr(path: Path, table: pd.DataFrame) -> None:
    """PSNR against the number of parameters, a column a noise; the paper's values and parameters hollow."""
    noises = list(dict.fromkeys(table.loc[table["seeds"] > 0, "noise"]))
    colours = _colours(table["model"])
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(2.3 * len(noises) + 0.6, 3.4), layout="constrained")
        axes = figure.subplots(1, len(noises), squeeze=False, sharex=True)[0]
        for axis, noise in zip(axes, noises, strict=True):
            rows = table[table["noise"] == noise]
            for row in rows.to_dict("records"):
                at = {"color": colours[row["model"]], "markersize": 7, "linestyle": "none", "marker": "o"}
                if row["seeds"]:
                    axis.plot(row["parameters"], row["psnr"], label=row["model"], **at)
                if pd.notna(row["paper_psnr"]):
                    hollow = at | {"markerfacecolor": "none", "markersize": 10}
                    axis.plot(row["paper_parameters"], row["paper_psnr"], **hollow)
            noisy = rows["noisy_psnr"].dropna().iloc[0]
            axis.axhline(noisy, color=MUTED, linestyle="--", linewidth=1)
            axis.annotate(
                "noisy input", (0.98, noisy), xycoords=("axes fraction", "data"), ha="right",
                va="bottom", color=MUTED, fontsize=8,
            )  # fmt: skip
            axis.set(title=noise, xscale="log", xlabel="parameters")
            axis.margins(0.2)
            axis.xaxis.set_minor_formatter(mpl.ticker.NullFormatter())
        axes[0].set_ylabel("PSNR (dB)")
        if table["paper_psnr"].notna().any():
            axes[0].plot(
                [], [], "o", color=MUTED, markerfacecolor="none", markersize=10, label="the paper's value"
            )
        _legend(figure, max(axes, key=lambda axis: len(axis.get_legend_handles_labels()[1])))
        _save(path, figure)


def write_study(path: Path, study: Question, rows: pd.DataFrame) -> None:
    """A study's PSNR: over its axis with the parameters on a second one, or a row for each variation.

    Args:
        path: PNG to write.
        study: which.
        rows: of `studies.table`; those that were not run are left out.
    """
    done = rows[rows["seeds"] > 0]
    with mpl.rc_context(STYLE):
        if study.axis:
            figure = Figure(figsize=(5.2, 3.4), layout="constrained")
            _draw_over_axis(figure.subplots(), study, done)
            _legend(figure, figure.axes[0], columns=2)
        else:
            figure = Figure(figsize=(5.2, 0.8 + 0.32 * len(done)), layout="constrained")
            axis = figure.subplots()
            best = done["psnr"].max()
            for place, row in enumerate(done.to_dict("records")):
                colour = COLOURS[4] if row["psnr"] == best else COLOURS[0]
                axis.errorbar(row["psnr"], place, xerr=_spread(row), fmt="o", color=colour, capsize=3)
                axis.annotate(
                    f"{row['psnr']:.2f}", (row["psnr"], place), textcoords="offset points", xytext=(7, -3),
                    fontsize=8, color=MUTED,
                )  # fmt: skip
            labels = [f"{r['variation']} ({int(r['parameters']):,})" for r in done.to_dict("records")]
            axis.set_yticks(range(len(done)), labels)
            axis.set(xlabel="PSNR (dB); in brackets: parameters", ylim=(len(done) - 0.5, -0.5))
            axis.margins(x=0.15)
        _save(path, figure)


def _draw_over_axis(axis: object, study: Question, done: pd.DataFrame) -> None:
    groups = list(done.groupby("group")) if study.group else [(None, done)]
    for colour, (group, rows) in zip(COLOURS, groups, strict=False):
        name = f"{study.group} = {group:g}" if study.group else "PSNR"
        axis.errorbar(
            rows["axis"], rows["psnr"], yerr=[_spread(r) or 0 for r in rows.to_dict("records")],
            marker="o", color=colour, label=name, capsize=3,
        )  # fmt: skip
    known = done[done["reference"].notna()]
    if len(known):
        axis.plot(
            known["axis"], known["reference"], "o", color=INK, markerfacecolor="none", markersize=9,
            label="the paper's",
        )  # fmt: skip
    axis.set(xlabel=study.axis, ylabel="PSNR (dB)")
    axis.set_xscale("log", base=2)
    axis.set_xticks(sorted(set(done["axis"])))
    axis.xaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_locator(mpl.ticker.NullLocator())
    second = axis.twinx()
    for group, rows in groups:
        second.plot(rows["axis"], rows["parameters"], ":", color=MUTED, linewidth=1, marker=".", zorder=0)
        if group is not None:
            last = rows.iloc[-1]
            second.annotate(
                f"{study.group}={group:g}", (last["axis"], last["parameters"]), fontsize=7, color=MUTED
            )
    second.set(ylabel="parameters (dotted)", yscale="log")
    second.yaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda value, _: f"{value:,.0f}"))
    second.yaxis.set_minor_formatter(mpl.ticker.NullFormatter())
    if done["parameters"].max() < 10 * done["parameters"].min():  # else a decade's ticks are enough
        second.yaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    second.grid(visible=False)
    second.spines["right"].set_visible(True)


def _spread(row: dict) -> float | None:
    return None if pd.isna(row["psnr_std"]) else row["psnr_std"]


def write_pareto(path: Path, networks: pd.DataFrame, paper: pd.DataFrame, noise: str) -> None:
    """PSNR against parameters of all networks on the studies' noise, and a front for each shared recipe.

    Args:
        path: PNG to write.
        networks: of `studies.pareto`.
        paper: of `tables.paper_table2`, that noise's rows; empty where its images are not used.
        noise: its name.
    """
    colours = _colours(networks["family"])
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.6, 4.6), layout="constrained")
        axis = figure.subplots()
        for family, rows in networks.groupby("family", sort=False):
            axis.plot(
                rows["parameters"], rows["psnr"], "o", color=colours[family], label=family, markersize=6
            )
        if len(paper):
            axis.plot(
                paper["paper_parameters"], paper["paper_psnr"], "o", color=MUTED, markerfacecolor="none",
                markersize=10, label="the paper's value",
            )  # fmt: skip
        fronts = networks[networks["front"]].groupby("recipe")
        for line, (recipe, front) in zip(itertools.cycle(("-", "--", ":", "-.")), fronts, strict=False):
            axis.step(
                front["parameters"], front["psnr"], line, where="post", color=INK, linewidth=1,
                label=f"front of recipe {recipe}",
            )  # fmt: skip
            for row in front.to_dict("records"):
                axis.annotate(
                    row["name"], (row["parameters"], row["psnr"]), textcoords="offset points",
                    xytext=(4, 5), fontsize=7, color=INK,
                )  # fmt: skip
        axis.set(xscale="log", xlabel="parameters", ylabel=f"PSNR (dB), {noise}")
        axis.margins(0.12)
        axis.xaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axis.xaxis.set_minor_formatter(mpl.ticker.NullFormatter())
        axis.set_xlim(*axis.get_xlim())
        axis.axvspan(axis.get_xlim()[0], 20_000, color="#f4f4f4", zorder=0)
        _legend(figure, axis, columns=4)
        _save(path, figure)


def write_levels(path: Path, levels: dict[str, pd.DataFrame]) -> None:
    """PSNR of the denoised images over the noise level, a line a network; dashed: the noisy images.

    Args:
        path: PNG to write.
        levels: of `sets.levels`, of networks that were tried on the same images.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.2, 3.6), layout="constrained")
        axis = figure.subplots()
        for colour, (name, rows) in zip(COLOURS, levels.items(), strict=False):
            axis.plot(rows["sigma"], rows["psnr"], marker="o", color=colour, label=name)
        rows = next(iter(levels.values()))
        axis.plot(rows["sigma"], rows["noisy_psnr"], "--", color=MUTED, label="noisy images")
        axis.set(xlabel="sigma of the noise, of 255", ylabel="PSNR (dB)")
        _legend(figure, axis)
        _save(path, figure)


def write_examples(path: Path, folders: dict[str, Path]) -> None:
    """Test images, a row each: clean, noisy and a column a network; below each its middle, enlarged.

    Args:
        path: PNG to write.
        folders: network to the folder that `examine` wrote.
    """
    some = next(iter(folders.values()))
    columns = [("clean", some, "clean"), ("noisy", some, "noisy")]
    columns += [(name, folder, "denoised") for name, folder in folders.items()]
    rows = []
    for number in range(len(list(some.glob("*-clean.png")))):
        pictures = [imread(folder / f"{number}-{kind}.png") for _, folder, kind in columns]
        rows.append(pictures)
        h, w = (side // 2 for side in pictures[0].shape[:2])
        side = min(20, h // 2)  # a patch of 40 x 40, where there is one
        rows.append([picture[h - side : h + side, w - side : w + side] for picture in pictures])
    with mpl.rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(1.9 * len(columns), 1.6 * len(rows)), layout="constrained")
        _draw_pictures(figure, rows, [title for title, _, _ in columns], interpolation="nearest")
        _save(path, figure)


def write_against_authors(path: Path, histories: dict[RunKey, pd.DataFrame], authors: pd.DataFrame) -> bool:
    """Figure 9: training loss by epoch, ours over what the authors logged; says whether there is anything.

    Args:
        path: PNG to write.
        histories: of the table's runs.
        authors: of `studies.authors_convergence`.
    """
    ours = {run_key: history for run_key, history in histories.items() if len(history) > 1}
    pairs = [
        (run_key, logged)
        for run_key in ours
        if len(logged := authors[(authors["noise"] == run_key.noise) & (authors["model"] == run_key.model)])
    ]
    if not pairs:
        return False
    models = list(dict.fromkeys(run_key.model for run_key, _ in pairs))
    noises = _colours(run_key.noise for run_key, _ in pairs)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.4 * len(models) + 0.8, 3.6), layout="constrained")
        for axis, model in zip(figure.subplots(1, len(models), squeeze=False)[0], models, strict=True):
            for run_key, logged in pairs:
                if run_key.model == model:
                    colour = noises[run_key.noise]
                    axis.plot(logged["epoch"], logged["loss"], ":", color=colour, linewidth=1.2)
                    history = ours[run_key]
                    axis.plot(history["epoch"], history["loss"], color=colour, label=run_key.noise)
            axis.set(title=model, xlabel="epoch", yscale="log", xscale="log")
            _label_plainly(axis.xaxis)
            _label_plainly(axis.yaxis)
        figure.axes[0].set_ylabel("training loss (MSE)")
        figure.axes[0].plot([], [], ":", color=MUTED, label="the authors' log")
        _legend(figure, max(figure.axes, key=lambda one: len(one.lines)))
        _save(path, figure)
    return True


def write_following(path: Path, histories: dict[str, list[pd.DataFrame]], logged: pd.DataFrame) -> None:
    """A study's training losses by epoch, a line a seed, beside what the authors logged.

    Args:
        path: PNG to write.
        histories: by entry, one for each seed.
        logged: of `studies.authors_convergence`, one model on one noise.
    """
    colours = _colours(histories)
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
        _legend(figure, axis, columns=2)
        _save(path, figure)


def write_panel(path: Path, panels: dict[str, Path]) -> None:
    """Photographs with one noise: clean, noisy and a column a model; below each a close-up.

    Args:
        path: PNG to write.
        panels: model to the folder that `evaluate` wrote.
    """
    some = next(iter(panels.values()))
    columns = [("clean", some, "clean"), ("noisy", some, "noisy")]
    columns += [(model, folder, "denoised") for model, folder in panels.items()]
    rows = []
    for name in photos.TEST:
        pictures = [imread(folder / f"{name}-{kind}.png") for _, folder, kind in columns]
        top, left = CORNERS[name]
        rows.append([_resized(picture) for picture in pictures])
        rows.append([_resized(p[top : top + CROP, left : left + CROP]) for p in pictures])
    with mpl.rc_context(STYLE | {"axes.grid": False}):
        inches = TILE / 100
        figure = Figure(figsize=(inches * len(columns), inches * len(rows) + 0.3), dpi=100)
        _draw_pictures(figure, rows, [title for title, _, _ in columns], interpolation="none", pad=4)
        head = 0.3 / (inches * len(rows) + 0.3)
        figure.subplots_adjust(0, 0, 1, 1 - head, wspace=0.02, hspace=0.02)
        _save(path, figure)


def _draw_pictures(
    figure: Figure,
    rows: list[list[np.ndarray]],
    titles: list[str],
    *,
    interpolation: str,
    pad: float | None = None,
) -> None:
    """Rows of pictures without axes, each column under its title."""
    axes = figure.subplots(len(rows), len(titles), squeeze=False)
    for line, pictures in zip(axes, rows, strict=True):
        for axis, picture in zip(line, pictures, strict=True):
            axis.imshow(picture, interpolation=interpolation)
            axis.set_axis_off()
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=10, pad=pad)


def _resized(picture: np.ndarray) -> np.ndarray:
    method = Image.Resampling.NEAREST if len(picture) < TILE else Image.Resampling.LANCZOS
    return np.asarray(Image.fromarray(picture).resize((TILE, TILE), method))


def _colours(models: object) -> dict[str, str]:
    return {model: COLOURS[i % len(COLOURS)] for i, model in enumerate(dict.fromkeys(models))}


def _label_plainly(axis: object) -> None:
    """1, 2, 5, 10 and so on, written out, on a logarithmic axis."""
    axis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(mpl.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(mpl.ticker.NullFormatter())


def _legend(figure: Figure, axis: object, columns: int | None = None) -> None:
    handles, labels = axis.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    columns = columns or min(len(unique), int(figure.get_figwidth() // 1.5))
    figure.legend(unique.values(), unique.keys(), loc="outside lower center", ncols=columns)


def _save(path: Path, figure: Figure) -> None:
    buffer = io.BytesIO()
    # Without this matplotlib writes its version into the file, and the same figure differs by machine.
    figure.savefig(buffer, format="png", dpi=100, metadata={"Software": None})
    files.write_bytes(path, buffer.getvalue())
