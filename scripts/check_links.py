#!/usr/bin/env python3
"""Relative links and pictures of the repository's documents lead to files. Run by ctest."""

import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent


def main():
    listed = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=False)
    documents = listed.stdout.split() or [p.relative_to(ROOT) for p in ROOT.glob("*/*.md")]
    broken = []
    for document in documents:
        path = ROOT / document
        for number, line in enumerate(path.read_text().splitlines(), 1):
            for target in re.findall(r"\]\(([^)\s]+)\)", line):
                if re.match(r"[a-z]+:|#", target):
                    continue
                if not (path.parent / target.split("#")[0]).exists():
                    broken.append(f"{document}:{number}: no such file: {target}")
    print("\n".join(broken) if broken else f"links of {len(documents)} documents lead to files")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
