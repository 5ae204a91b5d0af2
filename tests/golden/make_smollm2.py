"""Makes models/smollm2/*: what transformers in float32 (and float64) computes with SmolLM2's weights.

python make_smollm2.py [score] [chat] [retrieval] [greedy] [layers]     (nothing named: all)
README.md says what each file holds.
"""

import sys

import numpy as np
import torch
import transformers

import oracle

OUT = oracle.MODELS / "smollm2"

CHAT_PROMPTS = [
    "What is the capital of France?",
    "How many days are in a week?",
    "Explain in simple words why the sky is blue.",
    "List three fruits and their colours.",
    "Translate 'good morning' into Spanish, and say when people use it.",
]

# The retrieval prompt: NOTE after line NOTE_AFTER of the first LINES lines of GPL-3, then QUESTION.
NOTE = "Note: the secret password of the red house is 'marmalade-47'.\n"
NOTE_AFTER, LINES = 180, 360
QUESTION = "\nWhat is the secret password of the red house? Answer in one sentence."
ANSWER = 'The secret password of the red house is "marmalade-47".'

# Tried in order for greedy.json; the first three with every margin above MIN_MARGIN and no end are kept.
MIN_MARGIN = 4e-3
GREEDY_LENGTH = 256


def greedy_candidates():
    text = oracle.gpl3()
    yield "Once upon a time"
    yield "def fibonacci(n):\n"
    yield "The three laws of thermodynamics are:\n\n1."
    yield text[:1500]
    yield "In the beginning God created the heaven and the earth. And the earth was without form,"
    yield "Water is made of hydrogen and oxygen. When water freezes it"
    yield "import numpy as np\n\nclass Matrix:\n    def __init__(self, rows, cols):\n"
    yield text[3000:3400]
    yield "The history of the Roman Empire begins"
    yield "Dear Sir or Madam,\n\nI am writing to you about"
    yield text[10000:13000]
    yield "Chapter 1\n\nIt was a dark and stormy night, and the old lighthouse keeper"
    for begin in range(14000, 30000, 1700):
        yield text[begin : begin + 700]
    yield "A recipe for pancakes: mix flour, eggs and milk,"
    yield "The planets of the solar system are Mercury, Venus, Earth,"
    yield "#include <stdio.h>\n\nint main(void) {\n"
    yield "Photosynthesis is the process by which"


@torch.no_grad()
def score(model, tokenizer):
    """Loss of the first 1,021 tokens of GPL-3, and the last position's logits."""
    ids = tokenizer.encode(oracle.gpl3()).ids[:1021]
    logits = model(torch.tensor([ids])).logits[0]
    logprobs = torch.log_softmax(logits.double(), -1)[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    with oracle.float64():
        model64 = oracle.load_smollm2("eager", torch.float64)
        logits64 = model64(torch.tensor([ids])).logits[0]
    logprobs64 = torch.log_softmax(logits64, -1)[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    top = logits[-1].topk(512)
    top64 = logits64[-1].topk(512)
    print("score: float32 - float64:", (logits - logits64).abs().max(), (logprobs - logprobs64).abs().max())
    oracle.write_golden(
        OUT / "score",
        {
            "text": "the first 1,021 tokens of /usr/share/common-licenses/GPL-3; nothing is added",
            "text_sha256": oracle.GPL3_SHA256,
            "text_tokens": len(tokenizer.encode(oracle.gpl3()).ids),
            "tokens": len(ids),
            "ids_sha256": oracle.ids_sha256(ids),
            "mean_nll": float(-logprobs.mean()),
            "mean_nll_f64": float(-logprobs64.mean()),
            "last_logsumexp": float(torch.logsumexp(logits[-1].double(), 0)),
            "last_logsumexp_f64": float(torch.logsumexp(logits64[-1], 0)),
            "last_top_ids": top.indices.tolist(),
            "last_top_ids_f64": top64.indices.tolist(),
            "float32_error": {
                "logits": float((logits - logits64).abs().max()),
                "last_logits": float((logits[-1] - logits64[-1]).abs().max()),
                "logprobs": float((logprobs - logprobs64).abs().max()),
            },
            "ids": ids,
        },
        {
            "logprobs": logprobs.float(),
            "last_top_logits": top.values,
            "logprobs_f64": logprobs64,
            "last_top_logits_f64": top64.values,
        },
    )


def chat(model, tokenizer):
    """Greedy answers to short chat prompts."""
    cases = []
    for content in CHAT_PROMPTS:
        prompt = tokenizer.encode(oracle.chat_prompt(content)).ids
        ids, margins = oracle.greedy(model, prompt, 48)
        text = tokenizer.decode(ids, skip_special_tokens=True)
        cases.append({"content": content, "prompt_ids": prompt, "ids": ids, "text": text,
                      "finish_reason": "stop" if ids[-1] == 2 else "length",
                      "min_margin": min(margins), "margins": [round(m, 6) for m in margins]})
        print("chat:", repr(text), min(margins))
    oracle.write_golden(OUT / "chat", {"max_tokens": 48, "cases": cases}, {})


def retrieval(model, tokenizer):
    """One sentence hidden in the middle of about 4,000 tokens."""
    lines = oracle.gpl3().splitlines(keepends=True)
    content = "".join(lines[:NOTE_AFTER]) + NOTE + "".join(lines[NOTE_AFTER:LINES]) + QUESTION
    prompt = tokenizer.encode(oracle.chat_prompt(content)).ids
    ids, margins = oracle.greedy(model, prompt, 40)
    text = tokenizer.decode(ids, skip_special_tokens=True)
    print("retrieval:", len(prompt), repr(text), min(margins))
    assert text == ANSWER, text
    oracle.write_golden(
        OUT / "retrieval",
        {
            "text_sha256": oracle.GPL3_SHA256,
            "lines": LINES,
            "note_after_line": NOTE_AFTER,
            "note": NOTE,
            "question": QUESTION,
            "content_bytes": len(content.encode()),
            "prompt_tokens": len(prompt),
            "prompt_ids_sha256": oracle.ids_sha256(prompt),
            "ids": ids,
            "text": text,
            "min_margin": min(margins),
            "margins": [round(m, 6) for m in margins],
            "prompt_ids": prompt,
        },
        {},
    )


def greedy(model, tokenizer):
    """Three prompts whose 256 greedy tokens all have a margin that a mesh's rounding cannot cross."""
    cases = []
    for prompt_text in greedy_candidates():
        prompt = tokenizer.encode(prompt_text).ids
        ids, margins = oracle.greedy(model, prompt, GREEDY_LENGTH, stop=(0, 1, 2))
        print("greedy:", repr(prompt_text[:40]), len(prompt), len(ids), min(margins), flush=True)
        if len(ids) < GREEDY_LENGTH or ids[-1] in (0, 1, 2) or min(margins) <= MIN_MARGIN:
            continue
        cases.append({"prompt": prompt_text, "prompt_ids": prompt, "ids": ids,
                      "text": tokenizer.decode(ids, skip_special_tokens=True),
                      "min_margin": min(margins), "margins": [round(m, 6) for m in margins]})
        if len(cases) == 3:
            break
    assert len(cases) == 3
    oracle.write_golden(OUT / "greedy", {"max_tokens": GREEDY_LENGTH, "cases": cases}, {})


@torch.no_grad()
def layers(model, tokenizer):
    """The residual stream after the first four layers, float64, at a few of the first 257 tokens."""
    ids = tokenizer.encode(oracle.gpl3()).ids[:257]
    rows = [0, 1, 63, 64, 127, 128, 255, 256]
    with oracle.float64():
        model64 = oracle.load_smollm2("eager", torch.float64)
        hidden = model64.model(torch.tensor([ids]), output_hidden_states=True).hidden_states
        assert hidden[4].dtype == torch.float64
    norms = torch.linalg.vector_norm(hidden[4][0], dim=1)
    oracle.write_golden(
        OUT / "layers",
        {"tokens": 257, "layers": 4, "rows": rows, "ids_sha256": oracle.ids_sha256(ids), "ids": ids},
        {"embedding": hidden[0][0, rows], "hidden": hidden[4][0, rows], "norms": norms},
    )


def main():
    transformers.utils.logging.set_verbosity_error()
    OUT.mkdir(parents=True, exist_ok=True)
    steps = {"score": score, "chat": chat, "retrieval": retrieval, "greedy": greedy, "layers": layers}
    names = sys.argv[1:] or list(steps)
    tokenizer = oracle.load_smollm2_tokenizer()
    model = oracle.load_smollm2()
    for name in names:
        np.random.seed(0)
        steps[name](model, tokenizer)


if __name__ == "__main__":
    main()
