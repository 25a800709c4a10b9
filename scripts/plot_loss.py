"""Figures of whole prefills: what a method costs a model's predictions."""

from matplotlib import ticker

from plot_common import (
    curve_look,
    in_paper_order,
    legend_below,
    line_styles,
    panels_over_legend,
    ratio_axis,
    set_title,
    warn_about_gaps,
)
from plot_data import PlotError, check_one_model, group_settings, read_rows

TARGET = 0.01  # nats: by position, the setting of each method nearest to it is shown


def _load(arguments):
    """Settings of prefills without an answer, and the dense rows by prompt."""
    rows = read_rows(arguments.inputs, "prefill")
    rows = [row for row in rows if None not in (row.get("held_out_loss"), row.get("dense_loss"))]
    if not any(row["method"] != "dense" for row in rows):
        raise PlotError("no held-out loss of a sparse method beside that of dense in the results")
    settings = [s for s in group_settings(rows, arguments.knobs) if s.method != "dense"]
    check_one_model(rows)
    warn_about_gaps(settings)
    if len({s.seqlen for s in settings}) > 1:  # a curve is of one length
        for setting in settings:
            setting.label += f", {setting.seqlen:,} tokens"
    for row in rows:
        row["loss_increase"] = row["held_out_loss"] - row["dense_loss"]
        if row.get("attention_ms") is not None and row.get("planning_ms") is not None:
            row["attention_and_planning_ms"] = row["attention_ms"] + row["planning_ms"]
    dense = {(row["prompt"], row["seqlen"]): row for row in rows  # of the stored numbers
             if row["method"] == "dense" and not row.get("params")}
    return rows, in_paper_order(settings, arguments.methods, lambda s: s.method), dense


def _axis_of_loss(axes):
    axes.set_yscale("symlog", linthresh=1e-3)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_ylabel("held-out loss over dense, nats")
    axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axes.grid(True)
    axes.set_axisbelow(True)


def _title(rows):
    models = ", ".join(sorted({row["model"] for row in rows}))
    prompts = ", ".join(sorted({f"{row['prompt']} ({row['seqlen']:,} tokens)" for row in rows}))
    return f"{models}; {prompts}"


def _against_cost(arguments, column, prepare):
    """A column against density, and against attention and planning time."""
    rows, settings, dense = _load(arguments)
    costs = ["compute_density"]
    if any("attention_and_planning_ms" in row for row in rows if row["method"] != "dense"):
        costs.append("attention_and_planning_ms")
    num_labels = len({s.label for s in settings})
    figure, panels, legend = panels_over_legend(len(costs), (num_labels + 2) // 3)
    styles = line_styles((s.label, s.method) for s in settings)
    for axes, cost in zip(panels, costs):
        for label in dict.fromkeys(s.label for s in settings):
            curve = [s for s in settings if s.label == label]
            points = sorted((s.mean(cost), s.mean(column)) for s in curve
                            if s.mean(cost) is not None and s.mean(column) is not None)
            if points:
                axes.plot(*zip(*points), linestyle=styles[label], label=label,
                          **curve_look(curve[0].method))
        axes.set_xscale("log")
        ratio_axis(axes.xaxis)
        axes.margins(y=0.1)
        axes.grid(True)
        axes.set_axisbelow(True)
        prepare(axes)
    panels[0].set_xlabel("compute density, mean over layers")
    if len(costs) > 1:
        for row in dense.values():
            panels[1].axvline(row["attention_and_planning_ms"], color="black", linewidth=0.8)
        panels[1].set_xlabel("attention + planning of all layers, ms (black: dense)")
        panels[1].set_ylabel("")
    legend_below(legend, panels, columns=3)
    set_title(figure, arguments, _title(rows))
    return figure


def loss(arguments):
    """Held-out loss over dense."""
    return _against_cost(arguments, "loss_increase", _axis_of_loss)


def divergence(arguments):
    """KL of the predictions from those of dense."""

    def prepare(axes):
        axes.set_yscale("log")
        ratio_axis(axes.yaxis)
        axes.set_ylabel("KL from dense, nats")

    return _against_cost(arguments, "kl_from_dense", prepare)


def loss_by_position(arguments):
    """Loss over dense by position, of the setting of each method nearest to TARGET."""
    rows, settings, dense = _load(arguments)
    shown = {}
    for setting in settings:
        distance = abs(setting.mean("loss_increase") - TARGET)
        if setting.label not in shown or distance < shown[setting.label][0]:
            shown[setting.label] = (distance, setting)
    figure, (axes,), legend = panels_over_legend(1, (len(shown) + 1) // 2)
    styles = line_styles((s.label, s.method) for _, s in shown.values())
    for _, setting in shown.values():
        sums, counts = {}, {}
        for row in setting.rows:
            reference = dense.get((row["prompt"], row["seqlen"]))
            if reference is None:
                continue
            for bucket, base in zip(row["loss_by_position"], reference["loss_by_position"]):
                end = bucket["end"]
                sums[end] = sums.get(end, 0.0) + bucket["loss"] - base["loss"]
                counts[end] = counts.get(end, 0) + 1
        if not sums:
            continue
        ends = sorted(sums)
        label = f"{setting.full_label()} ({setting.mean('compute_density'):.3f})"
        axes.plot(ends, [sums[e] / counts[e] for e in ends], linestyle=styles[setting.label],
                  label=label, **curve_look(setting.method))
    if not axes.has_data():
        raise PlotError("no rows of dense on the same prompts in the results, to subtract by position")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value / 1024:g}K"))
    axes.set_xlabel("up to this position")
    _axis_of_loss(axes)
    legend_below(legend, [axes])
    set_title(figure, arguments, f"Setting nearest to +{TARGET:g} nats (density); {_title(rows)}")
    return figure


FIGURES = {"divergence": divergence, "loss": loss, "loss_by_position": loss_by_position}
