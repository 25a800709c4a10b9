#!/usr/bin/env python3
"""Relative links and pictures of the repository's documents lead to files, and to headings in them. Run by ctest."""

import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent


def anchors(path):
    """Of the headings of a document, as GitHub makes them."""
    titles = re.findall(r"^#+ +(.*?) *$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def main():
    listed = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=False)
    documents = listed.stdout.split() or [p.relative_to(ROOT) for p in ROOT.glob("*/*.md")]
    broken = []
    for document in documents:
        path = ROOT / document
        for number, line in enumerate(path.read_text().splitlines(), 1):
            for target in re.findall(r"\]\(([^)\s]+)\)", line):
                if re.match(r"[a-z]+:", target):
                    continue
                name, _, anchor = target.partition("#")
                file = path.parent / name if name else path
                if not file.exists():
                    broken.append(f"{document}:{number}: no such file: {target}")
                elif anchor and anchor not in anchors(file):
                    broken.append(f"{document}:{number}: no such heading: {target}")
    print("\n".join(broken) if broken else f"links of {len(documents)} documents lead to files and headings")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
