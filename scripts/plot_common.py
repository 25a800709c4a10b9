"""What the figures of plot.py share: how methods look, page width, axes, legends, titles."""

import sys

import matplotlib.pyplot as plt
from matplotlib import ticker

from plot_data import PlotError, gaps_text, group_settings, read_rows

PAGE_WIDTH = 7.0  # inches: two columns of a paper

# One colour and marker per method, the same in every figure. S2O stands out, oracles are grey.
METHOD_STYLES = {
    "dense": ("#000000", "x"),
    "streaming_llm": ("#8c6d31", "v"),
    "minference": ("#e377c2", "<"),
    "flexprefill": ("#ff7f0e", ">"),
    "xattention": ("#2ca02c", "s"),
    "pbs_attn": ("#1f77b4", "D"),
    "mean_pooling": ("#17becf", "p"),
    "sparge_attn": ("#bcbd22", "h"),
    "flash_prefill": ("#9467bd", "^"),
    "rbs": ("#8c564b", "P"),
    "oracle_block": ("#a0a0a0", "s"),
    "oracle_token": ("#606060", "o"),
    "s2o": ("#d62728", "o"),
    "s2o_plus": ("#67000d", "*"),
}
LINE_STYLES = ["-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3))]


def method_style(method):
    """(colour, marker); a colour of its own for a method that this list does not know."""
    if method in METHOD_STYLES:
        return METHOD_STYLES[method]
    spare = ["#393b79", "#637939", "#843c39", "#7b4173", "#3182bd"]
    return spare[sum(map(ord, method)) % len(spare)], "d"


def in_paper_order(items, methods, method_of):
    """`items` of the methods asked for (all if none), in the order of METHOD_STYLES."""
    known = {method_of(item) for item in items}
    for method in methods:
        if method not in known:
            raise PlotError(f"--methods {method}: not in the results, they hold {sorted(known)}")
    order = list(METHOD_STYLES)
    kept = [item for item in items if not methods or method_of(item) in methods]
    rank = {name: order.index(name) if name in order else len(order) for name in known}
    return sorted(kept, key=lambda item: rank[method_of(item)])


def load_settings(arguments, command="eval"):
    """(rows, settings) of what s2o eval or prefill wrote."""
    rows = read_rows(arguments.inputs, command)
    rows = in_paper_order(rows, arguments.methods, lambda row: row["method"])
    settings = group_settings(rows, arguments.knobs)
    warn_about_gaps(settings)
    return rows, settings


def warn_about_gaps(settings):
    gaps = gaps_text(settings)
    if gaps:
        print(f"plot.py: warning: {gaps}", file=sys.stderr)


def line_styles(labelled):
    """{label: line style} of (label, method) pairs: the n-th curve of a method gets the n-th."""
    count, styles = {}, {}
    for label, method in dict.fromkeys(labelled):
        styles[label] = LINE_STYLES[count.get(method, 0) % len(LINE_STYLES)]
        count[method] = count.get(method, 0) + 1
    return styles


def curve_look(method):
    color, marker = method_style(method)
    front = method.startswith("s2o")
    return {
        "color": color,
        "marker": marker,
        "zorder": 3 if front else 2,
        "linewidth": 1.8 if front else 1.1,
        "markersize": 6 if marker == "*" else 3.5,
    }


def set_title(figure, arguments, text):
    figure.suptitle(arguments.title or text, fontsize=8, x=0.01, ha="left")


def side_legend(axes, all_axes):
    """One legend right of `axes` for the curves of all panels."""
    handles = {}
    for each in all_axes:
        for handle, label in zip(*each.get_legend_handles_labels()):
            handles.setdefault(label, handle)
    axes.legend(
        handles.values(),
        handles.keys(),
        loc="upper left",
        bbox_to_anchor=(1.02, 1.0),
        borderaxespad=0,
    )


def ratio_axis(axis):
    """A logarithmic axis of few decades, labelled 0.5, 1, 2, ... also below a decade."""
    axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axis.set_minor_locator(ticker.NullLocator())
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))


def panels_over_legend(count, rows_of_legend):
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


def legend_below(legend, panels, columns=2):
    handles = {}
    for axes in panels:
        for line, label in zip(*axes.get_legend_handles_labels()):
            handles.setdefault(label, line)
    legend.legend(handles.values(), handles.keys(), loc="upper center", ncol=columns, fontsize=6)
