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


# Keys that every row has, and the one that says which command made it.
ROW_KEYS = {"method": str, "params": dict, "seqlen": int}
KINDS = {"eval": "input", "prefill": "prompt"}


def _check_rows(path, rows, keys):
    if not isinstance(rows, list):
        raise PlotError(f"{path}: rows: expected a list, found {type(rows).__name__}")
    for i, row in enumerate(rows):
        for key, kind in keys.items():
            found = row.get(key) if isinstance(row, dict) else None
            if not isinstance(found, kind):
                raise PlotError(f"{path}: rows[{i}]: '{key}': found {json.dumps(found)}, expected "
                                f"{kind.__name__}")


def _read_results(path):
    document = _load_json(path)
    if not isinstance(document, dict) or "rows" not in document:
        raise PlotError(f"{path}: no 'rows': expected the results.json of s2o eval or prefill")
    _check_rows(path, document["rows"], ROW_KEYS)
    return document["rows"]


def read_rows(paths, command=None):
    """Rows of result files or folders that did not fail; only those that s2o eval or s2o prefill made,
    if `command` says so: their columns mean different things."""
    rows = []
    for path in paths:
        if path.endswith((".h5", ".hdf5")):
            raise PlotError(f"{path}: expected the results.json beside it, or their folder")
        rows += _read_results(os.path.join(path, "results.json") if os.path.isdir(path) else path)
    usable = [row for row in rows if not row.get("error")]
    if not usable:
        why = "all failed" if rows else "none was computed"
        raise PlotError(f"{', '.join(paths)}: no usable rows ({len(rows)} rows, {why})")
    if command is None:
        return usable
    made = [row for row in usable if KINDS[command] in row]
    if not made:
        raise PlotError(f"{', '.join(paths)}: no rows of s2o {command} ({len(usable)} of others)")
    return made


def read_tables(paths, name, keys):
    """Rows and notes of the table `name` in files written by `s2o match|table --format json`; every row
    has these keys."""
    rows, notes, title = [], [], ""
    for path in paths:
        document = _load_json(path)
        if not isinstance(document, dict) or not isinstance(document.get("tables"), list):
            raise PlotError(
                f"{path}: no 'tables': expected the output of s2o table --table {name} --format json"
            )
        tables = [table for table in document["tables"] if table.get("name") == name]
        if not tables:
            known = ", ".join(str(table.get("name")) for table in document["tables"]) or "none"
            raise PlotError(f"{path}: no table '{name}', it holds {known}")
        for table in tables:
            missing = [key for key in ("rows", "notes", "title") if key not in table]
            missing += [f"rows[{i}]['{key}']" for i, row in enumerate(table.get("rows", ()))
                        for key in keys if key not in row]
            if missing:
                raise PlotError(f"{path}: table '{name}': {missing[0]} is missing")
            rows += table["rows"]
            notes += table["notes"]
            title = table["title"]
    if not rows:
        raise PlotError(f"{', '.join(paths)}: table '{name}' has no rows")
    return rows, notes, title


def find_knobs(rows, overrides):
    """The parameter that traces each method's curve: the one with the most values."""
    for method, knob in overrides.items():
        known = {key for row in rows if row["method"] == method for key in row["params"]}
        if knob not in known:
            raise PlotError(f"--knob {method}={knob}: the results of {method} have "
                            f"{', '.join(sorted(known)) or 'no parameters'}")
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


def check_one_model(rows):
    """Losses and times of different models have no common mean."""
    models = sorted({str(row.get("model")) for row in rows})
    if len(models) > 1:
        raise PlotError(f"results of {' and '.join(models)}, expected one model for a figure")


def gaps_text(settings):
    """Which settings were not measured on all that others of their length were, so that their means are
    not comparable: after an interrupted run, or where results of different layers are joined. "" if none."""
    units, lengths = [], {}
    for setting in settings:
        units.append({(row.get("input", row.get("prompt")), row.get("layer")) for row in setting.rows})
        lengths.setdefault(setting.seqlen, set()).update(units[-1])
    gaps = [f"{setting.full_label()} at {setting.seqlen:,} tokens ({len(own)} of {len(lengths[setting.seqlen])})"
            for setting, own in zip(settings, units) if own != lengths[setting.seqlen]]
    if not gaps:
        return ""
    more = f" and {len(gaps) - 3} more" if len(gaps) > 3 else ""
    return f"means over fewer inputs or layers than others: {', '.join(gaps[:3])}{more}"


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
