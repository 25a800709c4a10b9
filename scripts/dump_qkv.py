#!/usr/bin/env python3
"""Writes the post-RoPE Q, K and V of a transformers model to a file that `s2o eval` reads.

  python3 scripts/dump_qkv.py --model meta-llama/Llama-3.1-8B-Instruct --text book.txt \\
      --seqlen 131072 --layers 0,8,16,24,31 --out llama.safetensors
  s2o eval --config ...   with {"source": "dump", "path": "llama.safetensors"}

Needs torch and transformers; any model whose attention goes through transformers' attention
interface. The file holds "layer.<i>.q" [heads, seqlen, head_dim], ".k" and ".v" [kv_heads, seqlen,
head_dim], as `s2o capture` writes them.

Long prompts: each tensor goes to its place in the file as soon as its layer has run and is freed;
the layers after the last one asked for, and the logits, are not computed; MLPs run over --chunk
tokens at a time; there is no KV cache. What stays is the residual stream, one layer's Q, K, V and
the weights: some 21 GB for Llama-3.1-8B in bf16 at 131,072 tokens.
"""

import argparse
import json
import os
import pathlib
import struct
import sys

try:
    import torch
    from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
except ImportError as error:
    sys.exit(f"dump_qkv.py needs torch and transformers ({error})")

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
NAMES = {"bf16": "BF16", "fp16": "F16", "fp32": "F32"}


class Finished(Exception):
    """The last layer asked for has been written."""


class CaptureFile:
    """A safetensors file whose tensors arrive one by one; it appears under its name when whole."""

    def __init__(self, path, shapes, dtype, metadata):
        self.path, self.dtype = path, DTYPES[dtype]
        self.partial = path.with_name(path.name + ".partial")
        header, self.places, end = {"__metadata__": metadata}, {}, 0
        for name, shape in shapes.items():
            size = self.dtype.itemsize
            for extent in shape:
                size *= extent
            header[name] = {"dtype": NAMES[dtype], "shape": shape, "data_offsets": [end, end + size]}
            self.places[name] = (end, shape)
            end += size
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        self.start = 8 + len(text)
        self.file = open(self.partial, "wb")
        self.file.write(struct.pack("<Q", len(text)) + text)
        self.file.truncate(self.start + end)  # a full disk is known now, where the system tells

    def write(self, name, tensor):
        place, shape = self.places.pop(name)
        if list(tensor.shape) != shape:
            raise SystemExit(f"dump_qkv: {name} has shape {list(tensor.shape)}, expected {shape} "
                             "(from the model's config)")
        self.file.seek(self.start + place)
        for head in tensor:  # one head at a time on the host
            rounded = head.to(self.dtype).contiguous()
            if not bool(torch.isfinite(rounded).all()):
                raise SystemExit(f"dump_qkv: {name} holds NaN or infinity")
            self.file.write(rounded.view(torch.uint8).cpu().numpy().tobytes())

    def close(self):
        if self.places:
            raise SystemExit(f"dump_qkv: never saw {', '.join(self.places)}; this model's attention "
                             "does not go through transformers' attention interface")
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        os.replace(self.partial, self.path)

    def discard(self):
        self.file.close()
        self.partial.unlink(missing_ok=True)


def read_ids(arguments):
    if arguments.tokens is None:
        tokenizer = AutoTokenizer.from_pretrained(arguments.model)
        text = arguments.text.read_text(encoding="utf-8", errors="replace")
        return tokenizer(text, return_tensors="pt").input_ids[0]
    if arguments.tokens.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(arguments.tokens)["input_ids"].flatten().long()
    return torch.tensor([int(word) for word in arguments.tokens.read_text().split()])


def chunk_mlps(model, chunk):
    """MLPs work on each token alone: a part of them at a time is exact."""
    for layer in model.layers:
        whole = layer.mlp.forward

        def by_parts(x, whole=whole):
            return torch.cat([whole(part) for part in x.split(chunk, dim=1)], dim=1)

        layer.mlp.forward = by_parts


def register_recorder(file, layers):
    """Attention named "recording" that writes what it reads."""
    last = max(layers)

    def recording(module, query, key, value, *args, **kwargs):
        if module.layer_idx in layers:
            for tensor, name in ((query, "q"), (key, "k"), (value, "v")):
                file.write(f"layer.{module.layer_idx}.{name}", tensor[0])
            print(f"layer {module.layer_idx} written", file=sys.stderr)
            if module.layer_idx == last:
                raise Finished
        return sdpa_attention_forward(module, query, key, value, *args, **kwargs)

    AttentionInterface.register("recording", recording)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="folder or name of a transformers model")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--text", type=pathlib.Path, help="plain text, for the model's tokenizer")
    source.add_argument("--tokens", type=pathlib.Path, help="token file (safetensors or text ids)")
    parser.add_argument("--seqlen", type=int, required=True)
    parser.add_argument("--offset", type=int, default=0, help="first token that is used")
    parser.add_argument("--layers", help="with commas [all]")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16", help="of the forward pass")
    parser.add_argument("--store", choices=DTYPES, default="bf16", help="of the file")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--chunk", type=int, default=16384, help="tokens of an MLP call")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="a .safetensors file")
    return parser.parse_args()


def plan_file(config, arguments, layers):
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    q = [config.num_attention_heads, arguments.seqlen, head_dim]
    kv = [config.num_key_value_heads, arguments.seqlen, head_dim]
    shapes = {f"layer.{i}.{name}": q if name == "q" else kv for i in layers for name in "qkv"}
    source = arguments.tokens or arguments.text
    metadata = {"model": pathlib.Path(arguments.model).name, "tokens": source.name,
                "offset": str(arguments.offset), "seqlen": str(arguments.seqlen),
                "dtype": arguments.store}
    return CaptureFile(arguments.out, shapes, arguments.store, metadata)


def main():
    arguments = parse_arguments()
    config = AutoConfig.from_pretrained(arguments.model)
    layers = (sorted({int(i) for i in arguments.layers.split(",")}) if arguments.layers
              else list(range(config.num_hidden_layers)))
    if layers[0] < 0 or layers[-1] >= config.num_hidden_layers:
        sys.exit(f"dump_qkv: --layers: expected layers in [0, {config.num_hidden_layers})")
    ids = read_ids(arguments)
    if len(ids) < arguments.offset + arguments.seqlen:
        sys.exit(f"dump_qkv: {len(ids)} tokens, expected at least offset {arguments.offset} + seqlen "
                 f"{arguments.seqlen}")
    ids = ids[arguments.offset : arguments.offset + arguments.seqlen]
    file = plan_file(config, arguments, layers)
    try:
        register_recorder(file, layers)
        model = AutoModelForCausalLM.from_pretrained(
            arguments.model, dtype=DTYPES[arguments.dtype], attn_implementation="recording")
        model = model.model.to(arguments.device).eval()
        chunk_mlps(model, arguments.chunk)
        try:
            with torch.inference_mode():
                model(ids[None].to(arguments.device), use_cache=False)
        except Finished:
            pass
        file.close()
    except BaseException:
        file.discard()
        raise
    print(f"{arguments.out}: layers {','.join(map(str, layers))}, {arguments.seqlen} tokens",
          file=sys.stderr)


if __name__ == "__main__":
    main()
