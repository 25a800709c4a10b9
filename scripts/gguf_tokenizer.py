"""tokenizer.json and tokenizer_config.json from the metadata of a GGUF file, for gguf_to_hf.py."""

import math

from gguf import TokenType

from gguf_file import Refused

# Pre-tokenisers by tokenizer.ggml.pre: a pattern, or digits split off before the pattern of GPT-2
# that the byte-level step has. `nfc`: text is normalised before.
LLAMA3_PATTERN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
                  r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
PRE_TOKENIZERS = {
    "gpt-2": {},
    "smollm": {"digits": True},
    "llama-bpe": {"pattern": LLAMA3_PATTERN, "ignore_merges": True},
    "qwen2": {"pattern": LLAMA3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}"), "nfc": True},
    # Mistral NeMo and later (tekken).
    "tekken": {"pattern": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*"
                          r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?"
                          r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}|"
                          r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
               "ignore_merges": True},
}


# Whose texts begin with the BOS token where a file does not say, as llama.cpp has it.
BOS_PRE_TOKENIZERS = ("llama-bpe", "tekken")


def adds_bos(meta):
    usual = (meta.optional("tokenizer.ggml.model", str) == "llama" or
             meta.optional("tokenizer.ggml.pre", str) in BOS_PRE_TOKENIZERS)
    has_bos = "tokenizer.ggml.bos_token_id" in meta.fields
    return meta.optional("tokenizer.ggml.add_bos_token", bool, usual and has_bos)


def make_tokenizer(meta):
    kind = meta.get("tokenizer.ggml.model", kind=str)
    pieces = meta.get("tokenizer.ggml.tokens", kind=list)
    types = meta.get("tokenizer.ggml.token_type", kind=list)
    if len(types) != len(pieces):
        raise Refused(f"tokenizer.ggml.token_type: {len(types)} values for {len(pieces)} tokens")
    known, ids = {int(kind) for kind in TokenType}, {}
    for i, (piece, piece_kind) in enumerate(zip(pieces, types)):
        if piece_kind not in known:
            raise Refused(f"tokenizer.ggml.token_type: found {piece_kind} for token {i}, expected one "
                          f"of {sorted(known)}")
        if piece_kind != TokenType.UNUSED and ids.setdefault(piece, i) != i:
            raise Refused(f"tokenizer.ggml.tokens: {piece[:60]!r} is token {ids[piece]} and token {i}, "
                          "expected each once")
    if kind == "gpt2":
        result = byte_level_tokenizer(meta, pieces, types)
    elif kind == "llama":
        result = sentencepiece_tokenizer(meta, pieces, types)
    else:
        raise Refused(f"tokenizer.ggml.model: found '{kind}', supported: gpt2 (byte-level BPE), "
                      "llama (SentencePiece BPE)")
    result["added_tokens"] = [
        {"id": i, "content": piece, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": kind == TokenType.CONTROL}
        for i, (piece, kind) in enumerate(zip(pieces, types))
        if kind in (TokenType.CONTROL, TokenType.USER_DEFINED)]
    if adds_bos(meta):
        bos = meta.get("tokenizer.ggml.bos_token_id", kind=int)
        if not 0 <= bos < len(pieces):
            raise Refused(f"tokenizer.ggml.bos_token_id: found {bos}, expected one of {len(pieces)} "
                          "tokens, since texts begin with it")
        result["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": pieces[bos], "type_id": 0}},
                       {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}},
                     {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {pieces[bos]: {"id": pieces[bos], "ids": [bos],
                                             "tokens": [pieces[bos]]}}}
    return result


def tokenizer_frame(model, **parts):
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [],
            "normalizer": parts.get("normalizer"), "pre_tokenizer": parts.get("pre_tokenizer"),
            "post_processor": None, "decoder": parts["decoder"], "model": model}


def bpe_model(vocab, merges, **extra):
    return {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
            "ignore_merges": False, "vocab": vocab, "merges": merges, **extra}


def byte_level_tokenizer(meta, pieces, types):
    pre = meta.get("tokenizer.ggml.pre", kind=str)
    rule = PRE_TOKENIZERS.get(pre)
    if rule is None:
        raise Refused(f"tokenizer.ggml.pre: found '{pre}', supported: {', '.join(PRE_TOKENIZERS)}")
    merges = [merge.split(" ", 1) for merge in meta.get("tokenizer.ggml.merges", kind=list)]
    # Special tokens too: a reader gives one that the vocabulary lacks the next free id.
    vocab = {piece: i for i, (piece, kind) in enumerate(zip(pieces, types))
             if kind != TokenType.UNUSED}
    for merge in merges:
        if len(merge) != 2 or any(part not in vocab for part in [*merge, "".join(merge)]):
            raise Refused(f"tokenizer.ggml.merges: {merge} is no pair of tokens that makes a token")
    steps = []
    if rule.get("digits"):
        steps.append({"type": "Digits", "individual_digits": True})
    if "pattern" in rule:
        steps.append({"type": "Split", "pattern": {"Regex": rule["pattern"]},
                      "behavior": "Isolated", "invert": False})
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                  "use_regex": "pattern" not in rule}
    return tokenizer_frame(
        bpe_model(vocab, merges, ignore_merges=rule.get("ignore_merges", False)),
        normalizer={"type": "NFC"} if rule.get("nfc") else None,
        pre_tokenizer={"type": "Sequence", "pretokenizers": [*steps, byte_level]},
        decoder=dict(byte_level, use_regex=True))


def sentencepiece_tokenizer(meta, pieces, types):
    """Llama 2 and the first Mistral: a merge for every split of a piece into two pieces, the piece
    of best score first; bytes for what is left."""
    scores = meta.get("tokenizer.ggml.scores", kind=list)
    vocab = {piece: i for i, piece in enumerate(pieces)}
    if len(scores) != len(pieces) or not all(map(math.isfinite, scores)):
        raise Refused(f"tokenizer.ggml.scores: {len(scores)} values, expected a finite one for each of "
                      f"{len(pieces)} tokens")
    if not all(f"<0x{byte:02X}>" in vocab for byte in range(256)):
        raise Refused("tokenizer.ggml.tokens: SentencePiece without its 256 byte pieces, "
                      "supported: with them")
    merges = []
    for piece, kind in zip(pieces, types):
        if kind != TokenType.NORMAL:
            continue
        for at in range(1, len(piece)):
            if piece[:at] in vocab and piece[at:] in vocab:
                merges.append((-scores[vocab[piece]], vocab[piece[:at]], vocab[piece[at:]],
                               [piece[:at], piece[at:]]))
    merges.sort(key=lambda merge: merge[:3])
    prefix = meta.get("tokenizer.ggml.add_space_prefix", True)
    steps = [{"type": "Prepend", "prepend": "\u2581"}] if prefix else []
    steps.append({"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"})
    decoder = [{"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
               {"type": "ByteFallback"}, {"type": "Fuse"}]
    if prefix:
        decoder.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    unknown = [piece for piece, kind in zip(pieces, types) if kind == TokenType.UNKNOWN]
    return tokenizer_frame(
        bpe_model(vocab, [merge[3] for merge in merges], byte_fallback=True, fuse_unk=True,
                  unk_token=unknown[0] if unknown else None),
        normalizer={"type": "Sequence", "normalizers": steps},
        decoder={"type": "Sequence", "decoders": decoder})


def make_tokenizer_config(meta):
    pieces = meta.get("tokenizer.ggml.tokens", kind=list)
    result = {"tokenizer_class": "PreTrainedTokenizerFast",
              "model_max_length": meta.size("context_length"),
              "add_bos_token": adds_bos(meta)}
    for name, key in (("bos_token", "bos"), ("eos_token", "eos"), ("unk_token", "unknown"),
                      ("pad_token", "padding")):
        token = meta.optional(f"tokenizer.ggml.{key}_token_id", int)
        if token is not None and 0 <= token < len(pieces):
            result[name] = pieces[token]
    template = meta.optional("tokenizer.chat_template", str)
    if template:
        result["chat_template"] = template
    return result
