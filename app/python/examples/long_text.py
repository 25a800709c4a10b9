#!/usr/bin/env python3
"""A model of transformers on a long text: held-out loss, prefill time and one generated answer, by
its own attention and by methods of s2o.

  python3 app/python/examples/long_text.py --model FOLDER --tokens BOOK.safetensors --seqlen 32768 \\
      --attention sdpa s2o:dense s2o --tau 0.01 --question "What did Dolokhov bet?"

"s2o" is S2O+ with --tau, "s2o:<method>" a method at its defaults. The loss is the mean in nats of
predicting token i + 1 from the first i. Needs torch, transformers and safetensors; a GPU in practice.
"""

import argparse
import json
import time

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import s2o.transformers

CHUNK = 2048  # positions whose logits exist at a time


@torch.inference_mode()
def held_out_loss(model, ids):
    hidden = model.model(ids[None], use_cache=False).last_hidden_state[0]
    total = 0.0
    for begin in range(0, len(ids) - 1, CHUNK):
        targets = ids[begin + 1:begin + 1 + CHUNK]
        logits = model.lm_head(hidden[begin:begin + len(targets)]).float()
        total += torch.nn.functional.cross_entropy(logits, targets, reduction="sum").item()
    return total / (len(ids) - 1)


@torch.inference_mode()
def prefill_ms(model, ids):
    """Of the layers alone, the second time."""
    for _ in range(2):
        wait(model)
        begin = time.perf_counter()
        model.model(ids[None], use_cache=False)
        wait(model)
        elapsed = time.perf_counter() - begin
    return 1e3 * elapsed


def wait(model):
    if model.device.type == "cuda":
        torch.cuda.synchronize()


@torch.inference_mode()
def answer(model, tokenizer, ids, question, num_tokens):
    """To a question about the text, in ChatML."""
    begin = tokenizer("<|im_start|>user\nA text:\n\n", add_special_tokens=False).input_ids
    end = tokenizer(f"\n\nEnd of the text. {question}<|im_end|>\n<|im_start|>assistant\n",
                    add_special_tokens=False).input_ids
    prompt = torch.cat([ids.new_tensor(begin), ids[:len(ids) - len(begin) - len(end)], ids.new_tensor(end)])
    stop = tokenizer("<|im_end|>", add_special_tokens=False).input_ids
    made = model.generate(prompt[None], attention_mask=torch.ones_like(prompt)[None], do_sample=False,
                          max_new_tokens=num_tokens, eos_token_id=stop, pad_token_id=stop[0])
    return tokenizer.decode(made[0, len(prompt):], skip_special_tokens=True).strip()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", required=True, help="a Hugging Face folder")
    parser.add_argument("--tokens", required=True, help="safetensors with input_ids of that model")
    parser.add_argument("--seqlen", type=int, default=32768)
    parser.add_argument("--attention", nargs="+", default=["sdpa", "s2o:dense", "s2o"])
    parser.add_argument("--tau", type=float, default=0.01, help="of s2o")
    parser.add_argument("--question", help="to answer about the text")
    parser.add_argument("--answer-tokens", type=int, default=48)
    options = parser.parse_args()

    s2o.transformers.register(tau=options.tau)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.bfloat16)
    model = model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
    ids = load_file(options.tokens)["input_ids"].reshape(-1)[:options.seqlen].long().to(model.device)
    tokenizer = AutoTokenizer.from_pretrained(options.model) if options.question else None
    for attention in options.attention:
        model.set_attn_implementation(attention)
        row = {"attention": attention, "seqlen": len(ids), "held_out_loss": round(held_out_loss(model, ids), 4),
               "prefill_ms": round(prefill_ms(model, ids), 1)}
        if options.question:
            row["answer"] = answer(model, tokenizer, ids, options.question, options.answer_tokens)
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
