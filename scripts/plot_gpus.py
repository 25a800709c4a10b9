"""Figure of GPUs that share a model: time to first token, parallel efficiency, communication."""

import collections

from plot_common import (
    LINE_STYLES,
    legend_below,
    load_settings,
    method_style,
    panels_over_legend,
    set_title,
)
from plot_data import PlotError, check_one_model


def _mean(values):
    return sum(values) / len(values)


def _curves(rows):
    """{(method, params, seqlen): {gpus: (time to first token, share of communication)}}, ms."""
    cells = collections.defaultdict(lambda: collections.defaultdict(list))
    for row in rows:
        total = row.get("time_to_first_token_ms")
        gpus = row.get("gpus")
        if total is None or gpus is None:
            continue
        key = (row["method"], str(row["params"]), row["seqlen"])
        cells[key][int(gpus)].append((total, (row.get("communication_ms") or 0.0) / total))
    return {
        key: {n: tuple(_mean(part) for part in zip(*values)) for n, values in sorted(by_gpus.items())}
        for key, by_gpus in cells.items()
    }


def gpu_scaling(arguments):
    """Results of `s2o prefill` with --parallel 1, 2, ..., one line a setting and length."""
    rows, _ = load_settings(arguments, command="prefill")
    check_one_model(rows)
    curves = {key: points for key, points in _curves(rows).items() if len(points) > 1}
    if not curves:
        raise PlotError("no setting was prefilled on different numbers of GPUs (--parallel)")
    figure, panels, legend = panels_over_legend(3, (len(curves) + 1) // 2)
    time, efficiency, share = panels
    lengths = sorted({seqlen for _, _, seqlen in curves})
    for (method, params, seqlen), points in curves.items():
        color, marker = method_style(method)
        style = {"color": color, "marker": marker,
                 "linestyle": LINE_STYLES[lengths.index(seqlen) % len(LINE_STYLES)]}
        gpus = list(points)
        label = f"{method}, {seqlen:,} tokens"
        time.plot(gpus, [points[n][0] / 1000 for n in gpus], label=label, **style)
        share.plot(gpus, [100 * points[n][1] for n in gpus], **style)
        if 1 in points:
            efficiency.plot(gpus, [points[1][0] / points[n][0] / n for n in gpus], **style)
    for axes, text in zip(panels, ["time to first token, s", "parallel efficiency",
                                   "communication not hidden, %"]):
        axes.set_xlabel("GPUs")
        axes.set_ylabel(text)
        axes.set_xscale("log", base=2)
        ticks = sorted({n for points in curves.values() for n in points})
        axes.set_xticks(ticks, [str(n) for n in ticks])
        axes.grid(True)
    time.set_yscale("log", base=2)
    time.yaxis.set_major_formatter("{x:g}")
    efficiency.set_ylim(0, 1.05)
    share.set_ylim(bottom=0)
    legend_below(legend, [time])
    set_title(figure, arguments, str(rows[0].get("model", "")))
    return figure


FIGURES = {"gpu_scaling": gpu_scaling}
