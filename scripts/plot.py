#!/usr/bin/env python3
"""Draws the figures of a paper from result files of s2o: PREFIX.pdf and PREFIX.png.

From result files or folders (several are joined):
  plot.py frontier RESULTS... --out PREFIX         error against compute density
  plot.py latency RESULTS... --out PREFIX          planning and attention time
  plot.py divergence RESULTS... --out PREFIX       KL from dense against density and time (s2o prefill)
  plot.py loss RESULTS... --out PREFIX             held-out loss over dense, likewise
  plot.py loss_by_position RESULTS... --out PREFIX the same by position in the prompt
  plot.py gpu_scaling RESULTS... --out PREFIX      GPUs that share a model (s2o prefill --parallel)
Labels: S is segment_size, order is key_order_sharing.
From tables (s2o table RESULTS... --table NAME --format json):
  plot.py matched_sparsity|matched_mse TABLE.json --out PREFIX
  plot.py matched_error TABLE.json --out PREFIX    (also of --table latency)
"""

import argparse
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

try:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
except ImportError as error:
    sys.exit(f"plot.py: error: {error}; install python3-matplotlib")

import plot_curves
import plot_gpus
import plot_latency
import plot_loss
from plot_data import PlotError

FIGURES = {**plot_curves.FIGURES, **plot_latency.FIGURES, **plot_loss.FIGURES, **plot_gpus.FIGURES}

STYLE = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.2,
    "lines.markersize": 4,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.5,
    "pdf.fonttype": 42,  # text stays text
    "figure.constrained_layout.use": True,
}


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("figure", choices=sorted(FIGURES))
    parser.add_argument("inputs", nargs="+", metavar="INPUT")
    parser.add_argument("--out", required=True, metavar="PREFIX", help="PREFIX.pdf and PREFIX.png")
    parser.add_argument("--title", help="in place of what the results say they are")
    parser.add_argument(
        "--methods", default="", help="only these, with commas (default: all)", metavar="NAMES"
    )
    parser.add_argument(
        "--sparsity", type=float, default=0.8, help="where one setting a method is shown (0.8)"
    )
    parser.add_argument("--by", choices=["all", "layer"], default="all", help="frontier: panels")
    parser.add_argument(
        "--metric", choices=["mse", "relative_l2"], default="mse", help="frontier: error"
    )
    parser.add_argument(
        "--knob",
        action="append",
        default=[],
        metavar="METHOD=PARAM",
        help="the parameter that traces a curve (default: the one with the most values)",
    )
    arguments = parser.parse_args()
    for knob in arguments.knob:
        if knob.count("=") != 1 or knob[0] == "=" or knob[-1] == "=":
            parser.error(f"--knob {knob}: expected METHOD=PARAM")
    if not 0 < arguments.sparsity < 1:
        parser.error(f"--sparsity {arguments.sparsity}: expected a number between 0 and 1")
    if os.path.isdir(arguments.out) or not os.path.basename(arguments.out):
        parser.error(f"--out {arguments.out}: a folder, expected the beginning of file names")
    arguments.knobs = dict(knob.split("=") for knob in arguments.knob)
    arguments.methods = [name for name in arguments.methods.split(",") if name]
    return arguments


def save(figure, path, **options):
    """Whole or not at all."""
    try:
        figure.savefig(path + ".new", **options)
        os.replace(path + ".new", path)
    finally:
        if os.path.exists(path + ".new"):
            os.remove(path + ".new")


def main():
    arguments = parse_arguments()
    plt.rcParams.update(STYLE)
    try:
        figure = FIGURES[arguments.figure](arguments)
        folder = os.path.dirname(arguments.out)
        if folder:
            os.makedirs(folder, exist_ok=True)
        # No dates: equal results give equal files.
        save(figure, arguments.out + ".pdf", format="pdf", metadata={"CreationDate": None})
        save(figure, arguments.out + ".png", format="png", dpi=200)
    except PlotError as error:
        inputs = ", ".join(arguments.inputs)
        named = any(name in str(error) for name in arguments.inputs)
        print(f"plot.py {arguments.figure}: error: {'' if named else inputs + ': '}{error}",
              file=sys.stderr)
        return 2
    except OSError as error:
        print(f"plot.py: error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
