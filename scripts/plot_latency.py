"""Figures of time: planning and attention by setting, against length, error and target."""

import matplotlib.pyplot as plt
from matplotlib import ticker

from plot_common import (
    PAGE_WIDTH,
    in_paper_order,
    line_styles,
    load_settings,
    method_style,
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
    height = 0.6 + 0.14 * len({s.label for s in shown})
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


def _panels_over_legend(count, rows_of_legend):
    """(figure, axes of the panels, at most three in a line, axes for a legend below them)."""
    columns = count if count <= 3 else 2
    lines = -(-count // columns)
    figure = plt.figure(figsize=(PAGE_WIDTH, 2.4 * lines + 0.2 + 0.17 * rows_of_legend))
    heights = [2.4] * lines + [0.17 * rows_of_legend + 0.1]
    grid = figure.add_gridspec(lines + 1, columns, height_ratios=heights)
    panels = [figure.add_subplot(grid[i // columns, i % columns]) for i in range(count)]
    legend = figure.add_subplot(grid[lines, :])
    legend.axis("off")
    return figure, panels, legend


def _legend_below(legend, panels, columns=2):
    handles = {}
    for axes in panels:
        for line, label in zip(*axes.get_legend_handles_labels()):
            handles.setdefault(label, line)
    legend.legend(handles.values(), handles.keys(), loc="upper center", ncol=columns, fontsize=6)


def latency_scaling(arguments):
    """Total time against sequence length, one line a method."""
    rows, settings = load_settings(arguments)
    timed = [s for s in settings if s.mean("total_latency_ms") is not None]
    lengths = sorted({s.seqlen for s in timed})
    if len(lengths) < 2:
        raise PlotError("latencies at one sequence length only; a scaling needs two")
    shown = nearest_settings(timed, arguments.sparsity)
    labels = list(dict.fromkeys((s.method, s.label) for s in shown))
    figure, (axes,), legend = _panels_over_legend(1, (len(labels) + 1) // 2)
    styles = line_styles([(label, method) for method, label in labels])
    for method, label in labels:
        points = sorted(
            (s.seqlen, s.mean("total_latency_ms")) for s in shown if s.label == label
        )
        if len(points) < 2:
            continue
        color, marker = method_style(method)
        axes.plot(*zip(*points), color=color, marker=marker, linestyle=styles[label], label=label)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(lengths, [f"{n // 1024}K" for n in lengths])
    axes.set_xlabel("sequence length, tokens")
    axes.set_ylabel("planning + attention, ms a layer")
    axes.grid(True)
    axes.set_axisbelow(True)
    _legend_below(legend, [axes])
    set_title(
        figure, arguments, f"Setting nearest to sparsity {arguments.sparsity:g}; {coverage(rows)}"
    )
    return figure


def error_time(arguments):
    """Error against total time, one curve a method: what an error costs, planning included."""
    rows, settings = load_settings(arguments)
    error = arguments.metric
    shown = [
        s
        for s in settings
        if s.mean("total_latency_ms") is not None and s.mean(error) is not None
    ]
    lengths = sorted({s.seqlen for s in shown})
    if not lengths:
        raise PlotError(f"no setting has both total_latency_ms and {error}")
    num_labels = len({s.label for s in shown})
    figure, panels, legend = _panels_over_legend(len(lengths), (num_labels + 1) // 2)
    styles = line_styles([(s.label, s.method) for s in shown])
    for axes, seqlen in zip(panels, lengths):
        here = [s for s in shown if s.seqlen == seqlen and s.method != "dense"]
        for label in dict.fromkeys(s.label for s in here):
            curve = sorted(
                (s.mean("total_latency_ms"), s.mean(error)) for s in here if s.label == label
            )
            method = next(s.method for s in here if s.label == label)
            color, marker = method_style(method)
            axes.plot(*zip(*curve), color=color, marker=marker, linestyle=styles[label], label=label)
        for setting in shown:
            if setting.method == "dense" and setting.seqlen == seqlen:
                axes.axvline(setting.mean("total_latency_ms"), color="black", linewidth=0.8)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.xaxis.set_minor_formatter(ticker.NullFormatter())
        axes.set_xlabel(f"ms a layer, {seqlen:,} tokens")
        axes.grid(True)
        axes.set_axisbelow(True)
        if axes.get_subplotspec().is_first_col():
            axes.set_ylabel("relative L2 error" if error == "relative_l2" else "MSE")
    _legend_below(legend, panels)
    set_title(figure, arguments, "Planning + attention; black line: dense. " + coverage(rows))
    return figure


def matched_error_latency(arguments):
    """Speed-up over dense against length, one panel a target error, one line a method."""
    rows, notes, title = read_tables(arguments.inputs, "matched_error_latency")
    rows = in_paper_order(rows, arguments.methods, lambda row: row["method"])
    targets = sorted({row["target_relative_l2"] for row in rows})
    lengths = sorted({row["seqlen"] for row in rows})
    methods = list(dict.fromkeys(row["method"] for row in rows))
    figure, panels, legend = _panels_over_legend(len(targets), (len(methods) + 3) // 4)
    for axes, target in zip(panels, targets):
        for method in methods:
            points = sorted(
                (row["seqlen"], row["speedup_vs_dense"])
                for row in rows
                if (row["method"], row["target_relative_l2"]) == (method, target)
                and row["speedup_vs_dense"] is not None
            )
            color, marker = method_style(method)
            # Without a point too: the legend names every method that was measured.
            axes.plot([x for x, _ in points], [y for _, y in points], color=color, marker=marker,
                      label=method)
        axes.axhline(1, color="black", linewidth=0.8)
        axes.set_title(f"relative L2 at most {target:g}")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        ratio_axis(axes.yaxis)
        axes.set_xlim(lengths[0] / 1.3, lengths[-1] * 1.3)
        axes.set_xticks(lengths, [f"{n // 1024}K" for n in lengths])
        axes.grid(True)
        axes.set_axisbelow(True)
        if axes.get_subplotspec().is_first_col():
            axes.set_ylabel("speed-up over dense")
    _legend_below(legend, panels, columns=4)
    set_title(figure, arguments, f"{title}: fastest setting measured, planning included; no point: not reached")
    return figure


FIGURES = {
    "latency": latency,
    "latency_scaling": latency_scaling,
    "error_time": error_time,
    "matched_error_latency": matched_error_latency,
}
