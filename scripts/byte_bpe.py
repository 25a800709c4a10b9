"""Byte-level BPE from a Hugging Face tokenizer.json, with the standard library alone.

load_tokenizer(path) gives an object with encode(text) -> ids, decode(ids) -> text, encode_special,
special_ids and vocab_size. Where the `tokenizers` package is installed it does the encoding; else
ByteBpe below, which reads the same file: vocabulary, merges, added tokens, and the pre-tokenizers
that byte-level models use (Split, Digits, ByteLevel, in a Sequence). Anything else is an error, not
a guess. Bytes that a vocabulary lacks are left out, as the package does, with a warning.
"""

import json
import re
import sys
import unicodedata

GPT2_PATTERN = (r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
# White_Space of Unicode; the \s of Python has four control characters more.
SPACES = "\\t-\\r \\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000"


class TokenizerError(Exception):
    """The file is no byte-level BPE that is understood here."""


def byte_alphabet():
    """The printable character that stands for each byte in a byte-level vocabulary."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {byte: chr(byte) for byte in printable}
    others = [byte for byte in range(256) if byte not in letters]
    letters.update({byte: chr(256 + i) for i, byte in enumerate(others)})
    return letters


_CLASSES = {}


def category_class(letter):
    """Characters of a general category (L or N) as the inside of a bracket expression."""
    if letter not in _CLASSES:
        ranges, first = [], None
        for code in range(sys.maxunicode + 2):
            inside = code <= sys.maxunicode and unicodedata.category(chr(code))[0] == letter
            if inside and first is None:
                first = code
            elif not inside and first is not None:
                ranges.append(f"\\U{first:08x}-\\U{code - 1:08x}")
                first = None
        _CLASSES[letter] = "".join(ranges)
    return _CLASSES[letter]


def compile_pattern(pattern):
    """A pattern of the tokenizers library for Python's re, which knows no \\p{..}."""
    out, i, in_brackets = [], 0, False
    while i < len(pattern):
        escape = re.match(r"\\p\{([LN])\}|\\([sS])", pattern[i:])
        if escape:
            if escape.group(2) == "S":
                if in_brackets:
                    raise TokenizerError(f"pattern {pattern!r}: \\S inside brackets")
                out.append(f"[^{SPACES}]")
            else:
                inside = category_class(escape.group(1)) if escape.group(1) else SPACES
                out.append(inside if in_brackets else f"[{inside}]")
            i += escape.end()
            continue
        if pattern[i] == "\\":
            if pattern[i + 1 : i + 2] in "pP":
                raise TokenizerError(f"pattern {pattern!r}: only \\p{{L}} and \\p{{N}} are known")
            out.append(pattern[i : i + 2])
            i += 2
            continue
        if pattern[i] in "[]":
            in_brackets = pattern[i] == "["
        out.append(pattern[i])
        i += 1
    try:
        return re.compile("".join(out))
    except re.error as error:
        raise TokenizerError(f"pattern {pattern!r}: {error}") from error


def isolate(pattern, text):
    """`text` cut into matches and what lies between them."""
    pieces, end = [], 0
    for match in pattern.finditer(text):
        if match.start() > end:
            pieces.append(text[end : match.start()])
        if match.end() > match.start():
            pieces.append(match.group())
        end = match.end()
    if end < len(text):
        pieces.append(text[end:])
    return pieces


def pre_tokenizer(spec):
    """A function from a list of pieces to a list of smaller pieces."""
    kind = spec["type"]
    if kind == "Sequence":
        steps = [pre_tokenizer(step) for step in spec["pretokenizers"]]

        def run(pieces):
            for step in steps:
                pieces = step(pieces)
            return pieces

        return run
    if kind == "Digits":
        one = compile_pattern(r"\p{N}" if spec.get("individual_digits") else r"\p{N}+")
        return lambda pieces: [part for piece in pieces for part in isolate(one, piece)]
    if kind == "Split":
        if spec.get("behavior") != "Isolated" or spec.get("invert") or "Regex" not in spec["pattern"]:
            raise TokenizerError(f"pre-tokenizer Split {spec}: only isolated regular expressions")
        split = compile_pattern(spec["pattern"]["Regex"])
        return lambda pieces: [part for piece in pieces for part in isolate(split, piece)]
    if kind == "ByteLevel":
        if spec.get("add_prefix_space"):
            raise TokenizerError("pre-tokenizer ByteLevel with add_prefix_space")
        if not spec.get("use_regex", True):
            return lambda pieces: pieces
        gpt2 = compile_pattern(GPT2_PATTERN)
        return lambda pieces: [part for piece in pieces for part in isolate(gpt2, piece)]
    raise TokenizerError(f"pre-tokenizer {kind}: expected Sequence, Split, Digits or ByteLevel")


class ByteBpe:
    """The built-in encoder."""

    def __init__(self, document):
        model = document["model"]
        if model.get("type", "BPE") != "BPE" or model.get("byte_fallback"):
            raise TokenizerError("model: expected byte-level BPE")
        normalizer = document.get("normalizer")
        if normalizer is not None and normalizer.get("type") != "NFC":
            raise TokenizerError(f"normalizer {normalizer.get('type')}: expected none or NFC")
        self._nfc = normalizer is not None
        self._vocab = model["vocab"]
        pairs = (tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"])
        self._ranks = {pair: rank for rank, pair in enumerate(pairs)}
        self._ignore_merges = model.get("ignore_merges", False)
        self._split = self._pre_tokenizer(document["pre_tokenizer"])
        self._letters = byte_alphabet()
        self._bytes = {letter: byte for byte, letter in self._letters.items()}
        self._absent = [chr(byte) for byte, letter in self._letters.items()
                        if byte < 128 and letter not in self._vocab]
        self._cache = {}
        self.special_ids = {t["content"]: t["id"] for t in document.get("added_tokens", [])}
        for names, where in ((self._vocab, "model.vocab"), (self.special_ids, "added_tokens")):
            for name, i in names.items():
                if not isinstance(name, str) or not isinstance(i, int) or i < 0:
                    raise TokenizerError(f"{where}: found {name!r} with id {i!r}, expected a string and "
                                         "a number")
        self._tokens = {i: token for token, i in self._vocab.items()}
        self._special = {i: content for content, i in self.special_ids.items()}
        if not self._tokens:
            raise TokenizerError("model: an empty vocabulary")
        self.vocab_size = 1 + max([*self._tokens, *self._special])

    def _pre_tokenizer(self, spec):
        return pre_tokenizer(spec)

    def _merge(self, word):
        parts = list(word)
        while len(parts) > 1:
            pairs = list(zip(parts, parts[1:]))
            best = min(pairs, key=lambda pair: self._ranks.get(pair, len(self._ranks)))
            if best not in self._ranks:
                break
            merged, i = [], 0
            while i < len(parts):
                if i + 1 < len(parts) and (parts[i], parts[i + 1]) == best:
                    merged.append(parts[i] + parts[i + 1])
                    i += 2
                else:
                    merged.append(parts[i])
                    i += 1
            parts = merged
        return parts

    def _ids_of(self, piece):
        ids = self._cache.get(piece)
        if ids is None:
            word = "".join(self._letters[byte] for byte in piece.encode("utf-8"))
            if self._ignore_merges and word in self._vocab:
                ids = [self._vocab[word]]
            else:
                known = "".join(letter for letter in word if letter in self._vocab)
                parts = self._merge(known)
                missing = [part for part in parts if part not in self._vocab]
                if missing:
                    raise TokenizerError(f"merges: {missing[0]!r} is no token")
                ids = [self._vocab[part] for part in parts]
            self._cache[piece] = ids
        return ids

    def encode(self, text):
        """Ids of plain text; special tokens in it are text like any other."""
        self._warn_about_absent(text)
        if self._nfc:
            text = unicodedata.normalize("NFC", text)
        return [i for piece in self._split([text]) for i in self._ids_of(piece)]

    def _warn_about_absent(self, text):
        found = [character for character in self._absent if character in text]
        if found:
            self._absent = [character for character in self._absent if character not in found]
            print(f"byte_bpe: warning: the vocabulary has no token for {found[0]!r}; it is left out",
                  file=sys.stderr)

    def decode(self, ids):
        """The text of ids; bytes that are no UTF-8 are replaced."""
        out = bytearray()
        for i in ids:
            if i in self._special:
                out += self._special[i].encode("utf-8")
            elif i in self._tokens:
                if not all(letter in self._bytes for letter in self._tokens[i]):
                    raise TokenizerError(f"token {i}, {self._tokens[i]!r}, does not stand for bytes")
                out += bytes(self._bytes[letter] for letter in self._tokens[i])
            else:
                raise TokenizerError(f"token id {i} is in no vocabulary of {self.vocab_size}")
        return out.decode("utf-8", errors="replace")


class FastBpe(ByteBpe):
    """The same with the encoder of the tokenizers package."""

    def __init__(self, document, path):
        super().__init__(document)
        from tokenizers import Tokenizer

        try:
            self._fast = Tokenizer.from_file(str(path))
        except Exception as error:  # the package raises nothing more special
            raise TokenizerError(f"the tokenizers package: {error}") from error
        # Plain text, as the built-in encoder has it.
        self._fast.encode_special_tokens = True

    def _pre_tokenizer(self, spec):
        return None  # that of the package, which knows more patterns

    def encode(self, text):
        self._warn_about_absent(text)
        return self._fast.encode(text, add_special_tokens=False).ids


def encode_special(tokenizer, text):
    """Ids of text in which the names of special tokens stand for these tokens."""
    if not tokenizer.special_ids:
        return tokenizer.encode(text)
    names = sorted(tokenizer.special_ids, key=len, reverse=True)
    ids = []
    for piece in re.split("(" + "|".join(re.escape(name) for name in names) + ")", text):
        if piece in tokenizer.special_ids:
            ids.append(tokenizer.special_ids[piece])
        elif piece:
            ids += tokenizer.encode(piece)
    return ids


def load_tokenizer(path, built_in=False):
    """The tokenizer of a tokenizer.json; `built_in` keeps the tokenizers package out."""
    try:
        with open(path, encoding="utf-8") as file:
            document = json.load(file)
        if not built_in:
            try:
                return FastBpe(document, path)
            except ImportError:
                pass
        return ByteBpe(document)
    except TokenizerError as error:
        raise TokenizerError(f"{path}: {error}") from error
    except ValueError as error:
        raise TokenizerError(f"{path}: no JSON: {error}") from error
    except (AttributeError, LookupError, TypeError) as error:
        raise TokenizerError(f"{path}: expected the tokenizer.json of a byte-level BPE, found one "
                             f"that lacks a part of it: {error!r}") from error
