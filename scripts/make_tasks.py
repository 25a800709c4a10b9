#!/usr/bin/env python3
"""Writes RULER-style prompts with known answers, for `s2o prefill` ("prompts" in its config).

  python3 scripts/make_tasks.py --tokenizer data/tiny-llama/tokenizer.json \\
      --text data/tokens/war_and_peace.safetensors --lengths 4096,8192 --samples 20 --out tasks.jsonl

Needs Python 3.9 alone; the `tokenizers` package, where it is installed, encodes faster. --text is
plain text, or a token file of the same tokenizer, which is decoded. One line of the output is one
prompt: input_ids (the answer included), answer_start, answer_length, task, length, sample, meta.
Every prompt has exactly the length asked for, answer included. The same arguments give the same
bytes.

Tasks follow RULER (arXiv 2404.06654), with text of your choice as the haystack:
  niah_single       one key and its number
  niah_multi_key    several keys; one of them is asked for
  niah_multi_value  one key with several numbers; all are asked for, in the order of the text
  niah_multi_query  several keys; all are asked for
  variable_tracking a chain of assignments; the names that share the value, in order
  common_words      the words that a list repeats most, in alphabetical order
  frequent_words    the three most frequent coded words, most frequent first
Answers are scored token by token with all tokens before them given, so an order had to be fixed
where RULER takes any.
"""

import argparse
import array
import contextlib
import itertools
import json
import pathlib
import random
import re
import string
import struct
import sys

from byte_bpe import TokenizerError, encode_special, load_tokenizer

NUM_KEYS = 4     # of the multi-key, multi-value and multi-query tasks
NUM_HOPS = 4     # assignments after the first of a chain
NUM_COMMON = 10  # words asked for
BOS_NAMES = ("<|begin_of_text|>", "<|bos|>", "<s>", "<bos>")
# (with a system message, without one), by the name that --template takes.
CHATML = "<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n{lead}"
LLAMA3 = ("<|start_header_id|>user<|end_header_id|>\n\n{prompt}<|eot_id|>"
          "<|start_header_id|>assistant<|end_header_id|>\n\n{lead}")
TEMPLATES = {
    "plain": ("{system}\n\n{prompt}\n{lead}", "{prompt}\n{lead}"),
    # Qwen, SmolLM2 and others.
    "chatml": ("<|im_start|>system\n{system}<|im_end|>\n" + CHATML, CHATML),
    "llama3": ("<|start_header_id|>system<|end_header_id|>\n\n{system}<|eot_id|>" + LLAMA3, LLAMA3),
}


class TaskError(Exception):
    """What was asked for cannot be made."""


# ---- input ----

def positive(text):
    """An argument of argparse."""
    if not text.strip().isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"found '{text}', expected a positive integer")
    return int(text)


def read_plain_text(path):
    data = path.read_bytes()
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise TaskError(f"{path}: byte {error.start} is not UTF-8; `iconv -t utf-8` converts other "
                        "texts") from error


def read_token_file(path):
    """The ids of a safetensors token file."""
    data = path.read_bytes()
    try:
        size = struct.unpack("<Q", data[:8])[0]
        info = json.loads(data[8 : 8 + size])["input_ids"]
        codes = {"I32": "i", "I64": "q", "U16": "H"}
        ids = array.array(codes[info["dtype"]])
        begin, end = info["data_offsets"]
        if 8 + size + end > len(data):
            raise TaskError(f"{path}: cut off: input_ids end at byte {8 + size + end}, the file has "
                            f"{len(data)}")
        ids.frombytes(data[8 + size + begin : 8 + size + end])
        return list(ids)
    except (struct.error, LookupError, TypeError, ValueError) as error:
        raise TaskError(f"{path}: no safetensors file with integer input_ids ({error})") from error


def read_text(path, tokenizer):
    """The haystack, without special tokens."""
    if path.suffix == ".safetensors":
        special = set(tokenizer.special_ids.values())
        try:
            return tokenizer.decode([i for i in read_token_file(path) if i not in special])
        except TokenizerError as error:
            raise TaskError(f"{path}: {error}; expected tokens of this tokenizer") from error
    return read_plain_text(path)


class Haystack:
    """Text as tokens, with the places between sentences."""

    def __init__(self, text, tokenizer):
        self.ids, self.breaks = [], {0}
        for sentence in re.findall(r"[^.!?]*[.!?]+[\"')\]]*|[^.!?]+$", text):
            self.ids += tokenizer.encode(sentence)
            self.breaks.add(len(self.ids))
        self.words = sorted(set(re.findall(r"\b[a-z]{4,9}\b", text)))
        if len(self.ids) < 256 or len(self.words) < 200:
            raise TaskError(f"--text: {len(self.ids)} tokens and {len(self.words)} different words, "
                            "expected at least 256 and 200")

    def passage(self, start, size):
        """`size` tokens from `start` on, round and round, and where sentences end in them."""
        count = len(self.ids)
        ids = [self.ids[(start + i) % count] for i in range(size)]
        breaks = [i for i in range(1, size) if (start + i) % count in self.breaks]
        return ids, breaks

    def random_start(self, rng):
        return rng.choice(sorted(self.breaks))


# ---- tasks: each returns facts to hide, a question and its lead, the answer ----

class Draft:
    """A prompt before it has a length: `facts` are hidden in the text at `depths` (0 to 1)."""

    def __init__(self, intro, facts, question, lead, answer, meta=None):
        self.intro, self.facts, self.question = intro, facts, question
        self.lead, self.answer, self.meta = lead, answer, meta or {}


def listed(words):
    return ", ".join(words[:-1]) + " and " + words[-1] if len(words) > 1 else words[0]


def numbers(rng, count):
    return [str(n) for n in rng.sample(range(1000000, 10000000), count)]


def needle(key, value):
    return f" One of the special magic numbers for {key} is: {value}."


def magic(keys, values, asked, answers):
    """The needle tasks: facts in the order of the text."""
    many = len(answers) > 1
    what = "What are all the special magic numbers for" if many else "What is the special magic number for"
    lead = (f"The special magic {'numbers' if many else 'number'} for {listed(asked)} mentioned in "
            f"the provided text {'are' if many else 'is'}")
    intro = ("Some special magic numbers are hidden within the following text. Make sure to memorize "
             "them. I will quiz you about the numbers afterwards.\n")
    return Draft(intro, [needle(k, v) for k, v in zip(keys, values)],
                 f"\n{what} {listed(asked)} mentioned in the provided text?", lead,
                 " " + listed(answers), {"keys": asked, "values": answers})


def word_keys(rng, hay, count):
    words = rng.sample(hay.words, 2 * count)
    return [f"{words[2 * i]}-{words[2 * i + 1]}" for i in range(count)]


def niah_single(rng, hay):
    keys, values = word_keys(rng, hay, 1), numbers(rng, 1)
    return magic(keys, values, keys, values)


def niah_multi_key(rng, hay):
    keys, values = word_keys(rng, hay, NUM_KEYS), numbers(rng, NUM_KEYS)
    asked = rng.randrange(NUM_KEYS)
    return magic(keys, values, [keys[asked]], [values[asked]])


def niah_multi_value(rng, hay):
    key, values = word_keys(rng, hay, 1), numbers(rng, NUM_KEYS)
    return magic(key * NUM_KEYS, values, key, values)


def niah_multi_query(rng, hay):
    keys, values = word_keys(rng, hay, NUM_KEYS), numbers(rng, NUM_KEYS)
    order = rng.sample(range(NUM_KEYS), NUM_KEYS)
    return magic(keys, values, [keys[i] for i in order], [values[i] for i in order])


def variable_tracking(rng, _):
    names = ["".join(rng.choices(string.ascii_uppercase, k=5)) for _ in range(NUM_HOPS + 1)]
    value = rng.randrange(10000, 100000)
    facts = [f" VAR {names[0]} = {value}."]
    facts += [f" VAR {b} = VAR {a}." for a, b in zip(names, names[1:])]
    intro = ("Memorize and track the chains of variable assignment hidden in the following text.\n")
    question = f"\nFind all variables that are assigned the value {value} in the text above."
    lead = (f"According to the chains of variable assignment in the text above, {len(names)} "
            f"variables are assigned the value {value}, in this order, they are:")
    return Draft(intro, facts, question, lead, " " + listed(names), {"value": value})


class WordList:
    """A prompt whose context is a list of words; `count(n)` gives the list of n words."""

    def __init__(self, intro, make, separator, question, lead, answer, fewest):
        self.intro, self.make, self.separator = intro, make, separator
        self.question, self.lead, self.answer, self.fewest = question, lead, answer, fewest


def common_words(rng, hay):
    pool = rng.sample(hay.words, len(hay.words))
    common, rare = sorted(pool[:NUM_COMMON]), pool[NUM_COMMON:]
    seed = rng.random()

    def make(size):
        # As in RULER the common words come 30 times and the others at most three times; where the
        # text has too few words for a long list, both grow. Short lists make room for others.
        repeats = max(4, min(30, size // (2 * NUM_COMMON)))
        if size - NUM_COMMON * repeats > 3 * len(rare):
            repeats = 10 * -(-size // len(rare))
        words = common * repeats
        words += itertools.islice(itertools.cycle(rare), max(0, size - len(words)))
        random.Random(seed).shuffle(words)
        return words

    return WordList("Below is a list of words. In it some words appear more often than others. "
                    "Memorize the ones that appear most often.\n", make, " ",
                    f"\nWhat are the {NUM_COMMON} most common words in the above list?",
                    f"The {NUM_COMMON} most common words, in alphabetical order, are:",
                    " " + listed(common), 8 * NUM_COMMON)


def frequent_words(rng, _):
    words = list(dict.fromkeys(
        "".join(rng.choices(string.ascii_lowercase, k=6)) for _ in range(60)))[:50]
    seed = rng.random()

    def make(size):
        # Zipf with exponent 2: shares fall as 1 / rank^2.
        weights = [1 / rank**2 for rank in range(1, len(words) + 1)]
        total = sum(weights)
        counts = [max(1, int(size * weight / total)) for weight in weights]
        counts[0] += size - sum(counts)
        out = [word for word, count in zip(words, counts) for _ in range(max(0, count))]
        random.Random(seed).shuffle(out)
        return out

    return WordList("Read the following coded text and track the frequency of each coded word. Find "
                    "the three most frequently appearing coded words.\n", make, " ... ",
                    "\nWhat are the three words that appear most often in the above coded text?",
                    "The three words that appear most frequently, most frequent first, are:",
                    " " + listed(words[:3]), 100)


TASKS = {task.__name__: task for task in (
    niah_single, niah_multi_key, niah_multi_value, niah_multi_query, variable_tracking,
    common_words, frequent_words)}


# ---- from a draft to tokens ----

class Builder:
    """Prompts of one tokenizer and template."""

    def __init__(self, tokenizer, hay, bos, template):
        check_markers(tokenizer, template)
        self.tokenizer, self.hay = tokenizer, hay
        self.bos = [] if bos is None else [bos]
        before, self.middle = template.split("{prompt}", 1)
        self.middle, self.after = self.middle.split("{lead}", 1)
        if self.after:
            raise TaskError("--template: nothing may follow {lead}, where the answer goes")
        self.head = self.bos + encode_special(tokenizer, before)

    def ends(self, draft):
        """Tokens before and after the context, and of the answer."""
        head = self.head + self.tokenizer.encode(draft.intro)
        tail = self.tokenizer.encode(draft.question)
        tail += encode_special(self.tokenizer, self.middle + draft.lead)
        answer = self.tokenizer.encode(draft.answer)
        # A blank that is a token of its own says nothing about retrieval.
        while len(answer) > 1 and not self.tokenizer.decode(answer[:1]).strip():
            tail.append(answer.pop(0))
        return head, tail, answer

    def hide(self, draft, room, rng):
        """A passage of `room` tokens with the facts in it, at the ends of sentences."""
        facts = [self.tokenizer.encode(fact) for fact in draft.facts]
        room -= sum(len(fact) for fact in facts)
        if room < 32:
            return None
        passage, breaks = self.hay.passage(self.hay.random_start(rng), room)
        depths = sorted(rng.random() for _ in facts)
        context, done = [], 0
        for fact, depth in zip(facts, depths):
            wanted = int(depth * room)
            place = min(breaks or [wanted], key=lambda at: abs(at - wanted))
            context += passage[done:max(place, done)] + fact
            done = max(place, done)
        draft.meta["depths"] = [round(depth, 4) for depth in depths]
        return context + passage[done:]

    def fill(self, draft, room, _):
        """A list of words of `room` tokens, blank lines before it where it is shorter."""
        low, high, best = draft.fewest, room // 2, None  # a word and its separator: two tokens
        while low <= high:
            size = (low + high) // 2
            ids = self.tokenizer.encode(draft.separator.join(draft.make(size)))
            if len(ids) <= room:
                best, low = ids, size + 1
            else:
                high = size - 1
        if best is None:
            return None
        return self.tokenizer.encode("\n")[-1:] * (room - len(best)) + best

    def build(self, task, length, sample, seed):
        rng = random.Random(f"{seed}/{task}/{length}/{sample}")
        draft = TASKS[task](rng, self.hay)
        head, tail, answer = self.ends(draft)
        room = length - len(head) - len(tail) - len(answer)
        make = self.fill if isinstance(draft, WordList) else self.hide
        context = make(draft, room, rng)
        if context is None:
            raise TaskError(f"--lengths {length}: too short for {task}, whose question and answer "
                            f"take {length - room} tokens")
        ids = head + context + tail + answer
        meta = {"answer": draft.answer.strip(), **getattr(draft, "meta", {})}
        return {"task": task, "length": length, "sample": sample,
                "answer_start": length - len(answer), "answer_length": len(answer),
                "meta": meta, "input_ids": ids}


def find_bos(tokenizer, choice):
    if choice == "none":
        return None
    if choice != "auto":
        if not choice.isdecimal() or int(choice) >= tokenizer.vocab_size:
            raise TaskError(f"--bos {choice}: expected none, auto, or a token id below "
                            f"{tokenizer.vocab_size}")
        return int(choice)
    return next((tokenizer.special_ids[name] for name in BOS_NAMES if name in tokenizer.special_ids),
                None)


def find_template(text, system):
    if text in TEMPLATES:
        with_system, plain = TEMPLATES[text]
        return plain if system is None else with_system.replace("{system}", system)
    if system is not None:
        raise TaskError(f"--system: goes with a named template ({', '.join(TEMPLATES)})")
    if text.count("{prompt}") != 1 or "{lead}" not in text.split("{prompt}")[1]:
        raise TaskError(f"--template {text}: expected one of {', '.join(TEMPLATES)}, or a text with "
                        "{prompt} and {lead} after it")
    return text.replace("\\n", "\n")


def check_markers(tokenizer, template):
    """What looks like a special token is one; as plain text no model would take it for one."""
    names = re.findall(r"<\|[^|<>\s]+\|>", template)
    unknown = [name for name in names if name not in tokenizer.special_ids]
    if unknown:
        known = ", ".join(itertools.islice(tokenizer.special_ids, 8)) or "none"
        raise TaskError(f"--template: {unknown[0]} is no special token of this tokenizer, which has "
                        f"{known}")


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokenizer", required=True, type=pathlib.Path, help="tokenizer.json")
    parser.add_argument("--text", required=True, type=pathlib.Path,
                        help="plain text, or a .safetensors token file of the same tokenizer")
    parser.add_argument("--lengths", required=True, help="tokens of a prompt, with commas",
                        type=lambda text: [positive(part) for part in text.split(",")])
    parser.add_argument("--tasks", default=",".join(TASKS), help="with commas [all]")
    parser.add_argument("--samples", type=positive, default=20, help="of each task and length [20]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bos", default="auto", help="id of the first token, none, or auto")
    parser.add_argument("--template", default="plain",
                        help=f"{', '.join(TEMPLATES)}, or a text around {{prompt}} and {{lead}}, special "
                        "tokens by name, \\n for a new line [plain]")
    parser.add_argument("--system", help="system message of a named template, as the model's own chat "
                        "template has it [none]")
    parser.add_argument("--built-in", action="store_true", help="do not use the tokenizers package")
    parser.add_argument("--out", required=True, type=pathlib.Path, help="JSON lines")
    return parser.parse_args()


def make_all(arguments):
    tasks = arguments.tasks.split(",")
    unknown = [task for task in tasks if task not in TASKS]
    if unknown:
        raise TaskError(f"--tasks {unknown[0]}: expected some of {', '.join(TASKS)}")
    tokenizer = load_tokenizer(arguments.tokenizer, arguments.built_in)
    template = find_template(arguments.template, arguments.system)
    hay = Haystack(read_text(arguments.text, tokenizer), tokenizer)
    builder = Builder(tokenizer, hay, find_bos(tokenizer, arguments.bos), template)
    if max(arguments.lengths) > len(hay.ids):
        print(f"make_tasks: warning: {arguments.text} has {len(hay.ids)} tokens, so that prompts of "
              f"{max(arguments.lengths)} repeat it", file=sys.stderr)
    for length, sample, task in itertools.product(arguments.lengths, range(arguments.samples), tasks):
        yield builder.build(task, length, sample, arguments.seed)


def main():
    arguments = parse_arguments()
    partial = arguments.out.with_name(arguments.out.name + ".partial")
    try:
        count = 0
        with open(partial, "w", encoding="utf-8") as file:
            for prompt in make_all(arguments):
                file.write(json.dumps(prompt, ensure_ascii=False, separators=(",", ":")) + "\n")
                count += 1
        partial.replace(arguments.out)  # whole or not at all
    except OSError as error:
        sys.exit(f"make_tasks: {error.filename or arguments.out}: {error.strerror}")
    except (TaskError, TokenizerError, ValueError) as error:
        sys.exit(f"make_tasks: {error}")
    finally:
        with contextlib.suppress(OSError):  # the error above says more
            partial.unlink(missing_ok=True)  # also after Ctrl-C
    print(f"{count} prompts in {arguments.out}", file=sys.stderr)


if __name__ == "__main__":
    main()
