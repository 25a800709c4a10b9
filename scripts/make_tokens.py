#!/usr/bin/env python3
"""Writes a token file for `s2o capture`, `s2o prefill` and `s2o eval` in a model's own tokens.

  python3 scripts/make_tokens.py --tokenizer MODEL/tokenizer.json --book --tokens 131072 --out book.safetensors
  python3 scripts/make_tokens.py --tokenizer MODEL/tokenizer.json --code --tokens 131072 --out code.safetensors
  python3 scripts/make_tokens.py --tokenizer MODEL/tokenizer.json --text a.txt b.txt --out text.safetensors

--book: the books of data/tokens, War and Peace and then Middlemarch. --code: source files, one after
the other in the order of their names, each below its path; without folders the standard library of
this Python, which every machine has. No beginning-of-sequence token is added. Needs Python alone; the
`tokenizers` package, where it is installed, encodes faster. The same texts and arguments give the
same tokens.
"""

import argparse
import array
import contextlib
import json
import pathlib
import platform
import struct
import sys
import sysconfig

from byte_bpe import TokenizerError, load_tokenizer
from make_tasks import TaskError, positive, read_plain_text, read_text

DATA = pathlib.Path(__file__).resolve().parent.parent / "data"
BOOKS = ("war_and_peace", "middlemarch")
EXTENSIONS = (".py", ".c", ".cc", ".cpp", ".cu", ".cuh", ".h", ".hpp", ".rs", ".go", ".java", ".js", ".ts")


class SourceError(Exception):
    """There is not enough text where it was looked for."""


def book_texts():
    """The shipped books, one text; they are stored in the tokens of the test model."""
    tokenizer = load_tokenizer(DATA / "tiny-llama" / "tokenizer.json")
    books = (read_text(DATA / "tokens" / f"{name}.safetensors", tokenizer) for name in BOOKS)
    yield " ".join(BOOKS), "\n\n".join(books)


def plain_texts(files):
    for file in files:
        yield file.name, read_plain_text(file)


def code_texts(folders):
    """(path below its folder, text) of every source file, in the order of these paths."""
    for folder in folders:
        if not folder.is_dir():
            raise SourceError(f"--code {folder}: no such folder")
        found = (path for path in folder.rglob("*") if path.suffix in EXTENSIONS and path.is_file())
        for path in sorted(found, key=lambda path: path.relative_to(folder).as_posix()):
            name = path.relative_to(folder).as_posix()
            yield name, f"# {name}\n" + path.read_text(encoding="utf-8", errors="replace")


def encode(tokenizer, texts, count):
    """The first `count` tokens of the texts, blank lines between them (all: None); their number."""
    ids, used, blank = [], 0, ""
    for _, text in texts:
        ids += tokenizer.encode(blank + text)
        used, blank = used + 1, "\n\n"
        if count is not None and len(ids) >= count:
            return ids[:count], used
    if not ids or count is not None:
        raise SourceError(f"{len(ids)} tokens in {used} texts, expected at least {count or 1}")
    return ids, used


def write_tokens(path, ids, metadata):
    data = array.array("i", ids).tobytes()
    header = {"__metadata__": metadata,
              "input_ids": {"dtype": "I32", "shape": [len(ids)], "data_offsets": [0, len(data)]}}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_bytes(struct.pack("<Q", len(text)) + text + data)
        partial.replace(path)  # whole or not at all
    finally:
        with contextlib.suppress(OSError):  # the error above says more
            partial.unlink(missing_ok=True)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokenizer", required=True, type=pathlib.Path, help="tokenizer.json")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--book", action="store_true", help="the books of data/tokens")
    source.add_argument("--code", nargs="*", type=pathlib.Path,
                        help="folders of sources [standard library of this Python]")
    source.add_argument("--text", nargs="+", type=pathlib.Path, help="plain text files")
    parser.add_argument("--tokens", type=positive, help="how many [all]")
    parser.add_argument("--out", required=True, type=pathlib.Path, help="a .safetensors file")
    arguments = parser.parse_args()
    if arguments.out.suffix != ".safetensors":  # the name tells readers what it is
        parser.error(f"argument --out: found '{arguments.out}', expected a .safetensors file")
    return arguments


def texts_of(arguments):
    """(source as the file names it, texts)."""
    if arguments.book:
        return " ".join(BOOKS), book_texts()
    if arguments.text:
        return " ".join(file.name for file in arguments.text), plain_texts(arguments.text)
    if arguments.code:
        return "code of " + " ".join(folder.name for folder in arguments.code), code_texts(arguments.code)
    stdlib = pathlib.Path(sysconfig.get_paths()["stdlib"])
    return f"standard library of Python {platform.python_version()}", code_texts([stdlib])


def main():
    arguments = parse_arguments()
    try:
        source, texts = texts_of(arguments)
        ids, used = encode(load_tokenizer(arguments.tokenizer), texts, arguments.tokens)
        write_tokens(arguments.out, ids, {"source": source})
    except OSError as error:
        sys.exit(f"make_tokens: {error.filename or arguments.out}: {error.strerror}")
    except (SourceError, TaskError, TokenizerError, ValueError) as error:
        sys.exit(f"make_tokens: {error}")
    print(f"{arguments.out}: {len(ids)} tokens of {used} texts", file=sys.stderr)


if __name__ == "__main__":
    main()
