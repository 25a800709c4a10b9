#!/usr/bin/env python3
"""The house's borders, read from the #include lines. Run by ctest.

- Layers: kernels < lib < app. A file includes its own layer and those below.
- Folders: no cycle among the folders of lib, nor among those of kernels. A folder is lib/X or
  kernels/X with all below it; what only tests and benchmarks build does not count.
- Device code (.cu, .cuh) includes the CUDA toolkit, the standard library and kernels/; host code
  of lib and app includes no .cuh.
- Packages: each has the folders that may include it.
"""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
LAYERS = ["kernels", "lib", "app"]
INCLUDE = re.compile(r'^\s*#\s*include\s*(?:"([^"]+)"|<([^>]+)>)')
# Package headers and where they may be included.
OWNERS = {
    r"CLI/": ["app/"],
    r"nanobind/": ["app/python/"],
    r"spdlog/": ["lib/core/"],
    r"hdf5\.h|H5": ["lib/core/", "lib/input/formats/", "lib/report/"],
    r"fmt/|nlohmann/": ["lib/", "app/"],
    r"Eigen/": ["lib/", "kernels/", "app/bench/"],
    r"png\.h": ["lib/report/"],
}
# What device code is compiled against in tests, in place of CUDA's built-ins.
MODEL_OF_THE_DEVICE = "kernels/testing/simt.h"


def is_test(path):
    return re.search(r"(^|/)(tests|testing|bench)/|_(test|bench)\.cpp$", path) is not None


def folder(path):
    return "/".join(path.split("/")[:2])


def find_cycle(edges):
    """A list of folders that include each other in turn, or nothing."""
    done, path = set(), []

    def visit(node):
        if node in path:
            return path[path.index(node):] + [node]
        if node in done:
            return None
        path.append(node)
        for target in sorted(edges.get(node, {})):
            cycle = visit(target)
            if cycle:
                return cycle
        done.add(path.pop())
        return None

    for start in sorted(edges):
        cycle = visit(start)
        if cycle:
            return cycle
    return None


def check(files):
    """Complaints about {path: text}."""
    complaints = []
    edges = {}  # folder -> folder -> one include that makes the edge
    for path, text in sorted(files.items()):
        layer = LAYERS.index(path.split("/")[0])
        device_code = path.endswith((".cu", ".cuh"))
        for number, line in enumerate(text.splitlines(), 1):
            match = INCLUDE.match(line)
            if not match:
                continue
            own, package = match.groups()
            place = f"{path}:{number}: includes {own or package}"
            if own and own not in files and own.split("/")[0] in LAYERS and not own.endswith(".def"):
                complaints.append(f"{place}: there is no such file")
            if package or own.split("/")[0] not in LAYERS:
                name = package or own
                if device_code and re.match("|".join(OWNERS), name):
                    complaints.append(f"{place}: device code includes CUDA headers and kernels/ only")
                for pattern, owners in OWNERS.items():
                    if re.match(pattern, name) and not path.startswith(tuple(owners)):
                        complaints.append(f"{place}: belongs to {', '.join(owners)}")
                if re.match(r"g(test|mock)/", name) and not is_test(path):
                    complaints.append(f"{place}: GoogleTest belongs to tests")
                continue
            if LAYERS.index(own.split("/")[0]) > layer:
                complaints.append(f"{place}: {path.split('/')[0]}/ is below {own.split('/')[0]}/")
            if device_code and not own.startswith("kernels/"):
                complaints.append(f"{place}: device code includes CUDA headers and kernels/ only")
            if own.endswith(".cuh") and layer > 0:
                complaints.append(f"{place}: host code includes no device code")
            if is_test(path) or (device_code and own == MODEL_OF_THE_DEVICE):
                continue
            if is_test(own):
                complaints.append(f"{place}: the program includes what only tests build")
            if folder(path) != folder(own):
                edges.setdefault(folder(path), {}).setdefault(folder(own), place)
    for layer in ("kernels", "lib"):
        own_edges = {
            a: {b: place for b, place in targets.items() if b.startswith(layer + "/")}
            for a, targets in edges.items() if a.startswith(layer + "/")
        }
        cycle = find_cycle(own_edges)
        if cycle:
            complaints.append("folders include each other in a circle: " + " -> ".join(cycle))
            complaints += ["  " + own_edges[a][b] for a, b in zip(cycle, cycle[1:])]
    return complaints


def main():
    files = {}
    for layer in LAYERS:
        for path in (ROOT / layer).rglob("*"):
            if path.suffix in (".h", ".cpp", ".cu", ".cuh"):
                files[path.relative_to(ROOT).as_posix()] = path.read_text()
    complaints = check(files)
    print("\n".join(complaints) if complaints else f"{len(files)} files keep the layers")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
