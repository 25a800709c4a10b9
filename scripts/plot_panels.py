"""Heads of every layer, and how far the tiles of S2O walk."""

import math

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import ticker

from plot_common import PAGE_WIDTH, load_settings, set_title
from plot_data import PlotError, coverage, nearest_settings


def density_by_head(arguments):
    rows, settings = load_settings(arguments, needs=("per_head", "sparse methods"))
    shown = []
    for setting in nearest_settings(settings, arguments.sparsity):
        part = setting.restricted(lambda row: len(row.get("per_head", {}).get("compute_density", ())))
        if part and part.mean("compute_density") < 1:
            shown.append(part)
    if not shown:
        raise PlotError("no sparse setting with the density of its heads")
    layers = sorted({row["layer"] for setting in shown for row in setting.rows})
    columns = min(len(shown), 4)
    lines = math.ceil(len(shown) / columns)
    figure, grid = plt.subplots(
        lines,
        columns,
        figsize=(PAGE_WIDTH, 0.6 + lines * (0.55 + 0.22 * len(layers))),
        squeeze=False,
        sharex=True,
        sharey=True,
    )
    image = None
    for axes, setting in zip(grid.flat, shown):
        heads = max(len(row["per_head"]["compute_density"]) for row in setting.rows)
        sums, counts = np.zeros((len(layers), heads)), np.zeros((len(layers), heads))
        for row in setting.rows:
            values = row["per_head"]["compute_density"]
            sums[layers.index(row["layer"]), : len(values)] += values
            counts[layers.index(row["layer"]), : len(values)] += 1
        mean = np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)
        image = axes.imshow(mean, vmin=0, vmax=1, cmap="viridis", aspect="auto")
        if heads <= 8:
            for (layer, head), value in np.ndenumerate(mean):
                if not np.isnan(value):
                    color = "white" if value < 0.6 else "black"
                    text = f"{100 * value:.0f}"
                    axes.text(head, layer, text, ha="center", va="center", fontsize=5, color=color)
        axes.set_title(f"{setting.full_label()}\nmean {mean[~np.isnan(mean)].mean():.2f}", fontsize=6.5)
        axes.set_yticks(range(len(layers)), layers)
        axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
        axes.tick_params(length=0)
    for axes in grid.flat[len(shown) :]:
        axes.set_visible(False)
    for column in grid.T:
        lowest = [axes for axes in column if axes.get_visible()][-1]
        lowest.set_xlabel("query head")
        lowest.tick_params(labelbottom=True)
    for axes in grid[:, 0]:
        axes.set_ylabel("layer")
    figure.colorbar(image, ax=grid, label="compute density", shrink=0.8, pad=0.01)
    set_title(
        figure,
        arguments,
        f"Each method at the setting nearest to sparsity {arguments.sparsity:g}; {coverage(rows)}",
    )
    return figure


def _tile_depths(row):
    """(history, depth) in keys, [heads, tiles]: what each query tile could and did walk."""
    heads = row["num_q_heads"]
    steps = np.asarray(row["stop_steps"])
    if steps.size == 0 or steps.size % heads:
        return None
    steps = steps.reshape(heads, -1)
    params = row["params"]
    block_m, block_n = params.get("block_m", 128), params.get("block_n", 128)
    segment = params.get("segment_size", block_m)
    first_token = np.arange(steps.shape[1]) * block_m
    history = first_token // segment * segment - params.get("local_window", 0)
    history = np.maximum(history, 0)
    return np.broadcast_to(history, steps.shape), np.minimum(steps * block_n, history)


def stop_depth(arguments):
    rows, settings = load_settings(arguments, needs=("stop_steps", "s2o and s2o_plus"))
    shown = []
    for setting in nearest_settings(settings, arguments.sparsity):
        part = setting.restricted(lambda row: len(row.get("stop_steps", ())))
        if part:
            shown.append(part)
    if not shown:
        raise PlotError("no setting with stop steps; only s2o and s2o_plus have them")
    layers = sorted({row["layer"] for setting in shown for row in setting.rows})
    figure, grid = plt.subplots(
        len(shown),
        len(layers) + 1,
        figsize=(PAGE_WIDTH, 0.5 + 1.6 * len(shown)),
        squeeze=False,
        sharey="row",
    )
    colors = plt.get_cmap("viridis")(np.linspace(0.05, 0.85, len(layers)))
    for line, setting in zip(grid, shown):
        block_m = setting.params.get("block_m", 128)
        for axes, layer, color in zip(line, layers, colors):
            depths = [_tile_depths(row) for row in setting.rows if row["layer"] == layer]
            depths = [pair for pair in depths if pair is not None]
            if not depths:
                continue
            history = depths[0][0][0]
            walked = np.concatenate([pair[1] for pair in depths])
            tokens = np.arange(walked.shape[1]) * block_m / 1024
            axes.plot(tokens, history / 1024, "--", color="#888888", linewidth=0.8)
            axes.plot(tokens, walked.T / 1024, color=color, alpha=0.35, linewidth=0.5)
            axes.plot(tokens, np.median(walked, axis=0) / 1024, color="#000000", linewidth=1.3)
            axes.set_title(f"layer {layer}", loc="left")
            axes.grid(True)
            past = np.concatenate([(d[h > 0] / h[h > 0]) for h, d in depths])
            share = np.sort(past)
            line[-1].plot(np.linspace(0, 1, share.size), share * history.max() / 1024, color=color)
        line[0].set_ylabel(f"{setting.full_label()}\nhistory keys visited (Ki)", fontsize=7)
        twin = line[-1].secondary_yaxis(
            "right", functions=(lambda y, m=history.max() / 1024: y / m, lambda y, m=history.max() / 1024: y * m)
        )
        twin.set_ylabel("share of the history", fontsize=7)
        line[-1].set_title("tiles, sorted", loc="left")
        line[-1].grid(True)
    for axes in grid[-1, :-1]:
        axes.set_xlabel("query (Ki tokens)")
    grid[-1, -1].set_xlabel("share of tiles")
    set_title(
        figure,
        arguments,
        "Thin: heads; black: median; dashed: the whole history. " + coverage(rows),
    )
    return figure


FIGURES = {
    "density_by_head": density_by_head,
    "stop_depth": stop_depth,
}
