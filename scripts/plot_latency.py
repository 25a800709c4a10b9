"""Figures of time: planning and attention by setting, against length and target."""

import matplotlib.pyplot as plt
from matplotlib import ticker

from plot_common import (
    PAGE_WIDTH,
    curve_look,
    in_paper_order,
    legend_below,
    load_settings,
    method_style,
    panels_over_legend,
    ratio_axis,
    set_title,
)
from plot_data import PlotError, coverage, nearest_settings, read_tables


def latency(arguments):
    rows, settings = load_settings(arguments)
    timed = [s for s in settings if s.mean("total_latency_ms") is not None]
    if not timed:
        raise PlotError("no latencies in the results")
    shown = nearest_settings(timed, arguments.sparsity)
    backends = ", ".join(sorted({str(row.get("backend")).upper() for row in rows}))
    groups = sorted({setting.seqlen for setting in shown})
    height = max(1.2, 0.6 + 0.14 * len({s.label for s in shown}))
    figure, grid = plt.subplots(
        len(groups), 1, figsize=(PAGE_WIDTH, height * len(groups)), squeeze=False
    )
    for axes, seqlen in zip(grid[:, 0], groups):
        bars = [setting for setting in shown if setting.seqlen == seqlen]
        for y, setting in enumerate(bars):
            plan = setting.mean("plan_latency_ms") or 0.0
            attention = setting.mean("attention_latency_ms")
            color = method_style(setting.method)[0]
            axes.barh(y, attention, color=color, height=0.65)
            axes.barh(y, plan, left=attention, color=color, alpha=0.45, hatch="////", height=0.65,
                      edgecolor="white", linewidth=0)
            share = plan / (plan + attention)
            axes.text(plan + attention, y, f" {100 * share:.0f} %", va="center", fontsize=6)
        labels = [f"{s.full_label()} ({s.mean('compute_density'):.2f})" for s in bars]
        axes.set_yticks(range(len(bars)), labels, fontsize=5.5)
        axes.invert_yaxis()
        axes.margins(x=0.12, y=0.01)
        axes.set_xlabel(f"milliseconds a layer, {seqlen:,} tokens, {backends}")
        axes.grid(True, axis="x")
        axes.set_axisbelow(True)
    plain = plt.Rectangle((0, 0), 1, 1, color="#666666")
    hatched = plt.Rectangle((0, 0), 1, 1, facecolor="#bbbbbb", hatch="////", edgecolor="white")
    grid[0, 0].legend([plain, hatched], ["attention", "planning (share at the bar)"], loc="lower right")
    set_title(
        figure,
        arguments,
        f"Setting nearest to sparsity {arguments.sparsity:g} (density in brackets); {coverage(rows)}",
    )
    return figure


def _matched_panels(rows):
    """[(title, x column, its values, rows)]: by target where lengths differ, else by input."""
    lengths = sorted({row["seqlen"] for row in rows})
    inputs = list(dict.fromkeys((row["input"], row["seqlen"]) for row in rows))
    if len(lengths) > 1 and len({name for name, _ in inputs}) == 1:
        targets = sorted({row["target"] for row in rows})
        return [
            (f"error at most {target:g}", "seqlen", lengths, [r for r in rows if r["target"] == target])
            for target in targets
        ]
    panels = []
    for name, seqlen in inputs:
        here = [row for row in rows if (row["input"], row["seqlen"]) == (name, seqlen)]
        targets = sorted({row["target"] for row in here})
        told = name if str(seqlen) in name else f"{name}, {seqlen:,} tokens"
        panels.append((told, "target", targets, here))
    return panels


def matched_error(arguments):
    """Speed-up over dense at equal error: against the error, or against length where lengths differ."""
    keys = ("input", "seqlen", "on", "target", "method", "speedup_vs_dense", "units", "total_units")
    rows, notes, title = read_tables(arguments.inputs, "matched_error", keys)
    errors = sorted({row["on"] for row in rows})
    if len(errors) > 1:
        raise PlotError(f"the tables compare on {' and '.join(errors)}, expected one error for a figure")
    rows = in_paper_order(rows, arguments.methods, lambda row: row["method"])
    rows = [row for row in rows if row["speedup_vs_dense"] is not None]
    if not rows:
        raise PlotError("no method was timed beside dense, or none reaches an error")
    methods = list(dict.fromkeys(row["method"] for row in rows))
    panels = _matched_panels(rows)
    figure, all_axes, legend = panels_over_legend(len(panels), (len(methods) + 3) // 4)
    for axes, (name, column, values, here) in zip(all_axes, panels):
        for method in methods:
            points = sorted(
                (row[column], row["speedup_vs_dense"], row["units"] == row["total_units"])
                for row in here
                if row["method"] == method
            )
            look = curve_look(method)
            # Without a point too: the legend names every method that was measured.
            axes.plot([p[0] for p in points], [p[1] for p in points], label=method, **look)
            for x, y, is_whole in points:
                if not is_whole:
                    axes.plot(x, y, **dict(look, markerfacecolor="white", zorder=4))
        axes.axhline(1, color="black", linewidth=0.8)
        axes.set_title(name, fontsize=7)
        axes.set_xscale("log", base=2 if column == "seqlen" else 10)
        axes.set_yscale("log")
        ratio_axis(axes.yaxis)
        axes.set_xlim(values[0] / 1.3, values[-1] * 1.3)
        axes.xaxis.set_minor_locator(ticker.NullLocator())
        labels = [f"{v // 1024}K" if column == "seqlen" else f"{v:g}" for v in values]
        axes.set_xticks(values, labels)
        axes.grid(True)
        axes.set_axisbelow(True)
        if column == "target":
            axes.set_xlabel(here[0]["on"].replace("_", " ").replace(" l2", " L2") + " at most")
        if axes.get_subplotspec().is_first_col():
            axes.set_ylabel("speed-up over dense")
    legend_below(legend, all_axes, columns=4)
    set_title(figure, arguments, f"{title}, planning included; hollow: not every layer reaches it")
    return figure


FIGURES = {
    "latency": latency,
    "matched_error": matched_error,
}
