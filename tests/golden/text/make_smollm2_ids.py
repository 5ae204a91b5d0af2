#!/usr/bin/env python3
"""Makes smollm2_ids.json: what the tokenizer of SmolLM2 makes of the golden texts.

Needs `pip install tokenizers gguf` and the path of SmolLM2-135M-Instruct.Q4_1.gguf, whose vocabulary
is put into the pipeline that the model's own tokenizer.json states: digits one by one, then GPT-2's
byte level.
"""
import json
import os
import sys

import gguf
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

import make_tokenizers

HERE = os.path.dirname(os.path.abspath(__file__))


def load(path):
    fields = gguf.GGUFReader(path).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    types = fields["tokenizer.ggml.token_type"].contents()
    merges = [tuple(m.split(" ")) for m in fields["tokenizer.ggml.merges"].contents()]
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False)
                                  for t, kind in zip(tokens, types) if kind == 3])
    return tokenizer


def main():
    tokenizer = load(sys.argv[1])
    texts = {**make_tokenizers.SCRIPTS, **make_tokenizers.OTHERS, **make_tokenizers.SPECIAL}
    golden = {name: tokenizer.encode(text, add_special_tokens=False).ids
              for name, text in texts.items()}
    with open(os.path.join(HERE, "smollm2_ids.json"), "w", encoding="utf-8") as f:
        json.dump(golden, f, separators=(",", ":"))
        f.write("\n")


if __name__ == "__main__":
    main()
