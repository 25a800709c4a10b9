"""Reads result files and exported tables of s2o for plot.py."""

import json
import os


class PlotError(Exception):
    """What the user asked for cannot be drawn; the message says why."""


def _load_json(path):
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except OSError as error:
        raise PlotError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise PlotError(f"{path}: no JSON: {error}") from error


def _read_json_results(path):
    document = _load_json(path)
    if not isinstance(document, dict) or "rows" not in document:
        raise PlotError(f"{path}: no 'rows': expected the results.json of s2o eval")
    return document["rows"]


def _read_hdf5_results(path):
    import h5py  # only here: JSON needs no HDF5

    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise PlotError(f"{path}: no HDF5 file: {error}") from error
    with file:
        if "table" not in file:
            raise PlotError(f"{path}: no group 'table': expected the results.h5 of s2o eval")
        columns = {}
        for name, dataset in file["table"].items():
            values = dataset[()]
            if values.dtype.kind in "SO":
                columns[name] = [v.rstrip(b"\0").decode("utf-8") for v in values]
            else:
                columns[name] = [None if v != v else v.item() for v in values]
        rows = [dict(zip(columns, values)) for values in zip(*columns.values())]
        for i, row in enumerate(rows):
            row["params"] = json.loads(row["params"])
            row["error"] = row["error"] or None
            group = file.get(f"rows/{i}")
            if group is None:
                continue
            row["per_head"] = {n: d[()] for n, d in group.get("per_head", {}).items()}
            if "stop_steps" in group:
                row["stop_steps"] = group["stop_steps"][()]
    return rows


def read_rows(paths):
    """Rows of result files or folders (results.h5 before results.json) that did not fail."""
    rows = []
    for path in paths:
        if os.path.isdir(path):
            names = [os.path.join(path, name) for name in ("results.h5", "results.json")]
            found = [name for name in names if os.path.exists(name)]
            if not found:
                raise PlotError(f"{path}: holds neither results.h5 nor results.json")
            path = found[0]
        is_hdf5 = path.endswith((".h5", ".hdf5"))
        rows += _read_hdf5_results(path) if is_hdf5 else _read_json_results(path)
    usable = [row for row in rows if not row.get("error")]
    if not usable:
        raise PlotError(f"{', '.join(paths)}: no usable rows ({len(rows)} rows, all failed)")
    return usable


def read_tables(paths, name):
    """Rows and notes of the table `name` in files written by `s2o match|table --format json`."""
    rows, notes, title = [], [], ""
    for path in paths:
        document = _load_json(path)
        if not isinstance(document, dict) or "tables" not in document:
            raise PlotError(
                f"{path}: no 'tables': expected the output of s2o table --table {name} --format json"
            )
        tables = [table for table in document["tables"] if table["name"] == name]
        if not tables:
            known = ", ".join(table["name"] for table in document["tables"])
            raise PlotError(f"{path}: no table '{name}', it holds {known}")
        for table in tables:
            rows += table["rows"]
            notes += table["notes"]
            title = table["title"]
    if not rows:
        raise PlotError(f"{', '.join(paths)}: table '{name}' has no rows")
    return rows, notes, title


def find_knobs(rows, overrides):
    """The parameter that traces each method's curve: the one with the most values."""
    knobs = {}
    for method in dict.fromkeys(row["method"] for row in rows):
        values = {}
        for row in rows:
            if row["method"] == method:
                for key, value in row["params"].items():
                    values.setdefault(key, set()).add(json.dumps(value))
        varying = {key: len(seen) for key, seen in values.items() if len(seen) > 1}
        knobs[method] = max(varying, key=varying.get) if varying else None
        if method in overrides:
            knobs[method] = overrides[method]
    return knobs


def _value_text(value):
    return value if isinstance(value, str) else json.dumps(value)


class Setting:
    """All rows of one method with all parameters fixed, at one sequence length."""

    def __init__(self, label, method, params, knob, seqlen):
        self.label = label  # without the knob
        self.method = method
        self.params = params
        self.knob = knob
        self.seqlen = seqlen
        self.rows = []

    def full_label(self):
        if self.knob is None:
            return self.label
        return f"{self.label} {self.knob}={_value_text(self.params[self.knob])}"

    def restricted(self, keep):
        """The same setting with the rows for which keep(row) holds; None without any."""
        part = Setting(self.label, self.method, self.params, self.knob, self.seqlen)
        part.rows = [row for row in self.rows if keep(row)]
        return part if part.rows else None

    def mean(self, column):
        values = [row[column] for row in self.rows if row.get(column) is not None]
        return sum(values) / len(values) if values else None


# Labels must fit beside a bar.
SHORT_NAMES = {"segment_size": "S", "key_order_sharing": "order"}


def _telling(names, all_params):
    """Of these parameters, those that say something: not those that only go with one before them."""
    kept = []
    for name in names:
        values = [json.dumps(params.get(name)) for params in all_params]
        others = [[json.dumps(params.get(other)) for params in all_params] for other in kept]
        pairs = [set(zip(values, other)) for other in others]
        if not any(len(p) == len(set(values)) == len(set(o)) for p, o in zip(pairs, others)):
            kept.append(name)
    return kept


def group_settings(rows, overrides):
    """Settings in order of appearance; labels hold the parameters that vary within a method, without
    those that change only together with one before them."""
    knobs = find_knobs(rows, overrides)
    varying = {}
    for method in knobs:
        seen = {}
        for row in rows:
            if row["method"] == method:
                for key, value in row["params"].items():
                    seen.setdefault(key, set()).add(json.dumps(value))
        names = [k for k, v in seen.items() if len(v) > 1 and k != knobs[method]]
        varying[method] = _telling(names, [row["params"] for row in rows if row["method"] == method])
    settings = {}
    for row in rows:
        method, params = row["method"], row["params"]
        key = (method, json.dumps(params, sort_keys=True), row["seqlen"], row.get("backend"))
        if key not in settings:
            parts = [
                f"{SHORT_NAMES.get(k, k)}={_value_text(params[k])}"
                for k in varying[method]
                if k in params
            ]
            knob = knobs[method] if knobs[method] in params else None
            label = " ".join([method] + parts)
            settings[key] = Setting(label, method, params, knob, row["seqlen"])
        settings[key].rows.append(row)
    return list(settings.values())


def nearest_settings(settings, sparsity):
    """Of each label, the setting whose mean density is nearest to 1 - sparsity."""
    nearest = {}
    for setting in settings:
        density = setting.mean("compute_density")
        if density is None:
            continue
        distance = abs(density - (1.0 - sparsity))
        key = (setting.label, setting.seqlen)
        if key not in nearest or distance < nearest[key][0]:
            nearest[key] = (distance, setting)
    return [setting for _, setting in nearest.values()]


def _ranges(numbers):
    """0,1,2,5 -> '0-2, 5'"""
    parts = []
    for number in sorted(numbers):
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}\u2013{b}" for a, b in parts)


def coverage(rows):
    """What the numbers were measured on: 'model/text, 8,192 tokens, layers 0-3'"""
    inputs = ", ".join(dict.fromkeys(row["input"] for row in rows))
    seqlens = ", ".join(f"{s:,}" for s in sorted({row["seqlen"] for row in rows}))
    layers = sorted({row["layer"] for row in rows})
    return f"{inputs}; {seqlens} tokens; layer{'s' if len(layers) > 1 else ''} {_ranges(layers)}"
