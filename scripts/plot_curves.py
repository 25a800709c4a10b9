"""Figures (a) to (c): error against density, and methods at equal sparsity and equal error."""

import math

import matplotlib.pyplot as plt
from matplotlib import ticker

from plot_common import (
    PAGE_WIDTH,
    curve_look,
    in_paper_order,
    line_styles,
    load_settings,
    ratio_axis,
    set_title,
    side_legend,
)
from plot_data import PlotError, coverage, read_tables

ERROR_NAMES = {"mse": "MSE", "relative_l2": "relative L2 error"}


def _draw_frontier(axes, settings, metric, styles):
    curves = {}
    for setting in settings:
        x, y = setting.mean("compute_density"), setting.mean(metric)
        if x is not None and y and x < 1:
            curves.setdefault((setting.label, setting.method), []).append((x, y))
    for (label, method), points in curves.items():
        axes.plot(*zip(*sorted(points)), linestyle=styles[label], label=label, **curve_look(method))
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter(ticker.PercentFormatter(xmax=1, decimals=0))
    axes.grid(True)
    return bool(curves)


def _frontier_panels(arguments, rows):
    """[(title, keep(row))]: one panel per sequence length, or per length and layer."""
    seqlens = sorted({row["seqlen"] for row in rows})
    panels = []
    for seqlen in seqlens:
        title = f"{seqlen:,} tokens" if len(seqlens) > 1 else ""
        if arguments.by == "all":
            panels.append((title, lambda row, s=seqlen: row["seqlen"] == s))
            continue
        for layer in sorted({row["layer"] for row in rows}):
            layer_title = ", ".join(filter(None, [title, f"layer {layer}"]))
            panels.append(
                (layer_title, lambda row, s=seqlen, l=layer: row["seqlen"] == s and row["layer"] == l)
            )
    return panels


def frontier(arguments):
    rows, settings = load_settings(arguments)
    styles = line_styles((setting.label, setting.method) for setting in settings)
    panels = _frontier_panels(arguments, rows)
    columns = min(len(panels), 2)
    lines = math.ceil(len(panels) / columns)
    figure, grid = plt.subplots(
        lines,
        columns,
        figsize=(PAGE_WIDTH if columns > 1 else 5.4, 0.5 + 2.8 * lines),
        squeeze=False,
        sharex=True,
    )
    drawn = False
    for axes, (title, keep) in zip(grid.flat, panels):
        kept = [setting.restricted(keep) for setting in settings]
        drawn |= _draw_frontier(axes, [s for s in kept if s], arguments.metric, styles)
        axes.set_title(title, loc="left")
    if not drawn:
        raise PlotError("no sparse setting with an error above 0 to draw")
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    # At long contexts much happens below a few percent.
    if min(setting.mean("compute_density") or 1 for setting in settings) < 0.02:
        grid[0, 0].set_xscale("log")
        grid[0, 0].xaxis.set_major_formatter(ticker.FuncFormatter(lambda x, _: f"{100 * x:g} %"))
    else:
        grid[0, 0].set_xlim(left=0)
    for axes in grid[-1]:
        axes.set_xlabel("compute density")
    for axes in grid[:, 0]:
        axes.set_ylabel(ERROR_NAMES[arguments.metric])
    side_legend(grid[0, -1], grid.flat)
    set_title(figure, arguments, coverage(rows))
    return figure


def _draw_values(axes, rows, labelled, styles, level, quantity):
    """The quantity over the level; hollow markers where not every unit reaches the level."""
    for label, method in labelled:
        curve = [row for row in rows if row["label"] == label and row[quantity] is not None]
        curve.sort(key=lambda row: row[level])
        if not curve:
            continue
        look = curve_look(method)
        x, y = [row[level] for row in curve], [row[quantity] for row in curve]
        axes.plot(x, y, linestyle=styles[label], label=label, **look)
        for row in curve:
            if row["units"] < row["total_units"]:
                axes.plot(
                    row[level], row[quantity], color=look["color"], marker=look["marker"],
                    markersize=look["markersize"], markerfacecolor="white", zorder=4,
                )


def _draw_ratios(axes, rows, labelled, levels, level, reference):
    """One group a level, one dot with its interval a curve."""
    shown = [pair for pair in labelled if pair[0] != reference]
    for i, (label, method) in enumerate(shown):
        look = curve_look(method)
        offset = 0.8 * ((i + 0.5) / len(shown) - 0.5)
        for row in rows:
            if row["label"] != label or row["ratio"] is None:
                continue
            x = levels.index(row[level]) + offset
            if row["ratio_low"] is not None:
                axes.plot([x, x], [row["ratio_low"], row["ratio_high"]], color=look["color"],
                          linewidth=1)
            full = row["ratio_units"] == row["total_units"]
            axes.plot(x, row["ratio"], look["marker"], color=look["color"], zorder=look["zorder"],
                      markersize=look["markersize"],
                      markerfacecolor=look["color"] if full else "white")
    for i in range(1, len(levels)):
        axes.axvline(i - 0.5, color="#dddddd", linewidth=0.5)
    axes.set_xticks(range(len(levels)), [f"{value:g}" for value in levels])
    axes.set_xlim(-0.5, len(levels) - 0.5)
    axes.axhline(1, color=curve_look("s2o")["color"], linewidth=1, zorder=1)


def _matched_figure(arguments, table, level, quantity, words):
    """Left: the quantity itself; right: its ratio to the reference with its bootstrap interval."""
    keys = ("seqlen", "label", "method", quantity, "units", "total_units", "ratio", "ratio_low",
            "ratio_high", "ratio_units")
    rows, notes, title = read_tables(arguments.inputs, table, keys)
    if level not in rows[0]:
        level, words = "mse", dict(words, x="MSE")  # --mse gave the levels
    rows = in_paper_order(rows, arguments.methods, lambda row: row["method"])
    reference = title.split("relative to ")[-1]
    levels = sorted({row[level] for row in rows})
    seqlens = sorted({row["seqlen"] for row in rows})
    labelled = list(dict.fromkeys((row["label"], row["method"]) for row in rows))
    styles = line_styles(labelled)
    figure, grid = plt.subplots(
        len(seqlens), 2, figsize=(PAGE_WIDTH, 0.7 + 2.9 * len(seqlens)), squeeze=False,
        gridspec_kw={"width_ratios": [2, 3]},
    )
    for (left, right), seqlen in zip(grid, seqlens):
        part = [row for row in rows if row["seqlen"] == seqlen]
        _draw_values(left, part, labelled, styles, level, quantity)
        _draw_ratios(right, part, labelled, levels, level, reference)
        if level == "mse":
            left.set_xscale("log")
        for axes in (left, right):
            axes.set_yscale("log")
            axes.grid(True, axis="y")
            if len(seqlens) > 1:
                axes.set_title(f"{seqlen:,} tokens", loc="left")
        ratio_axis(right.yaxis)
        if quantity == "compute_density":
            ratio_axis(left.yaxis)
        left.set_ylabel(words["y"])
        right.set_ylabel(f"ratio to {reference}, 95 % interval")
    for axes in grid[-1]:
        axes.set_xlabel(words["x"])
    side_legend(grid[0, 1], grid.flat)
    units = [note for note in notes if note.startswith("seqlen ")]
    set_title(
        figure, arguments, "\n".join([title + "; hollow: fewer units reach this level"] + units)
    )
    return figure


def matched_sparsity(arguments):
    words = {"x": "sparsity", "y": "MSE (geometric mean)"}
    return _matched_figure(arguments, "matched_sparsity", "sparsity", "mse", words)


def matched_mse(arguments):
    words = {
        "x": "error of the reference at sparsity",
        "y": "compute density (geometric mean)",
    }
    return _matched_figure(
        arguments, "matched_mse", "reference_sparsity", "compute_density", words
    )


FIGURES = {"frontier": frontier, "matched_sparsity": matched_sparsity, "matched_mse": matched_mse}
