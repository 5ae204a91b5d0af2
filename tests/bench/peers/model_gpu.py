#!/usr/bin/env python3
"""torch's side of gpu_rows model and train: a Llama of random weights, compiled, on one GPU.

python tests/bench/peers/model_gpu.py [--rows train,prefill,decode] [--tokens 8192,32768] [--samples 5] [--shape llama-1.2b]
                                      [--attention cudnn,flash]

Shape: llama-1.2b (16 layers, D 2048, F 8192, 32 heads of 64 on 8 KV heads, V 128256, tied) or llama3-8b (32 layers, D
4096, F 14336, heads of 128; its head is tied here, which changes no product). train: forward,
backward and a fused AdamW step of one sequence, torch.compile, without recomputation; weights and moments in float32
under bf16 autocast ("f32 master", what toroid keeps), and all in bf16. prefill: the same model in bf16, logits of the
last position. decode: one token after so many, a static cache, torch.compile, captured as one CUDA graph, with and
without coordinate_descent_tuning. Attention: scaled_dot_product_attention with those of cuDNN and flash that are asked for, the better one is named.
Random ids; medians of CUDA events after three warm-ups, of 32,768 tokens and more one. model_tflops counts 6 N + 12 L H
K T per token, as toroid does (core/train/flops.h); prefill a third. One JSON object a line.
"""

import argparse
import json
import statistics

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

SHAPES = {"llama-1.2b": (16, 2048, 8192, 32, 8, 64, 128256), "llama3-8b": (32, 4096, 14336, 32, 8, 128, 128256)}
NAME = "llama-1.2b"
L, D, FF, H, G, K, V = SHAPES[NAME]
BACKENDS = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}


def rope(x, cos, sin):
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(D), nn.RMSNorm(D)
        self.qkv = nn.Linear(D, (H + 2 * G) * K, bias=False)
        self.out = nn.Linear(H * K, D, bias=False)
        self.gate_up = nn.Linear(D, 2 * FF, bias=False)
        self.down = nn.Linear(FF, D, bias=False)

    def forward(self, x, cos, sin, cache=None, at=None):
        t = x.shape[1]
        q, k, v = self.qkv(self.norm1(x)).view(1, t, H + 2 * G, K).transpose(1, 2).split((H, G, G), dim=1)
        q, k = rope(q, cos, sin).to(v.dtype), rope(k, cos, sin).to(v.dtype)
        if cache is None:
            o = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        else:
            cache[0].index_copy_(2, at, k)
            cache[1].index_copy_(2, at, v)
            seen = torch.arange(cache[0].shape[2], device=x.device) <= at
            o = F.scaled_dot_product_attention(q, cache[0], cache[1], attn_mask=seen[None, None, None], enable_gqa=True)
        x = x + self.out(o.transpose(1, 2).reshape(1, t, H * K))
        gate, up = self.gate_up(self.norm2(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


class Llama(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(V, D)
        self.blocks = nn.ModuleList(Block() for _ in range(L))
        self.norm = nn.RMSNorm(D)
        for p in self.parameters():
            if p.dim() == 2:
                nn.init.normal_(p, std=0.02)

    def angles(self, positions):
        inv = 500000.0 ** (-torch.arange(0, K, 2, device=positions.device).float() / K)
        angle = positions[:, None].float() * inv
        return angle.cos(), angle.sin()

    def hidden(self, ids, positions, caches=None):
        x = self.embed(ids)
        cos, sin = self.angles(positions)
        for i, block in enumerate(self.blocks):
            x = block(x, cos, sin, None if caches is None else caches[i], positions)
        return self.norm(x)

    def forward(self, ids, labels):
        h = self.hidden(ids, torch.arange(ids.shape[1], device=ids.device))
        return F.cross_entropy(F.linear(h, self.embed.weight)[0].float(), labels[0])

    def last(self, ids):
        h = self.hidden(ids, torch.arange(ids.shape[1], device=ids.device))
        return F.linear(h[:, -1], self.embed.weight)

    def step(self, ids, at, caches):
        return F.linear(self.hidden(ids, at, caches)[:, -1], self.embed.weight)


def new_model(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    with torch.device("cuda"):
        model = Llama()
    torch.set_default_dtype(before)
    return model


def seconds(samples, call, warm=3):
    for _ in range(warm):
        call()
    times = []
    for _ in range(samples):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        call()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(times)


def flops(tokens):
    weights = L * (D * (H + 2 * G) * K + H * K * D + 3 * D * FF) + V * D
    return tokens * (6 * weights + 12 * L * H * K * tokens)


def best(run, names):
    """The better attention: (seconds, name)."""
    results = []
    for name in names:
        torch.compiler.reset()
        with sdpa_kernel(BACKENDS[name]):
            results.append((run(), name))
    return min(results)


def train(tokens, samples, names, master):
    ids = torch.randint(V, (1, tokens), device="cuda")
    labels = torch.randint(V, (1, tokens), device="cuda")

    def run():
        model = new_model(torch.float32 if master else torch.bfloat16)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
        compiled = torch.compile(model)

        def step():
            with torch.autocast("cuda", torch.bfloat16, enabled=master):
                loss = compiled(ids, labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return seconds(samples, step)

    time, name = best(run, names)
    return {"row": "torch train " + NAME + " " + ("f32 master" if master else "all bf16"), "attention": name,
            "tokens": tokens, "step_s": time, "tokens_s": tokens / time, "model_tflops": flops(tokens) / time / 1e12}


def prefill(model, tokens, samples, names):
    ids = torch.randint(V, (1, tokens), device="cuda")

    def run():
        last = torch.compile(model.last)
        with torch.no_grad():
            return seconds(samples, lambda: last(ids), warm=3 if tokens < 32768 else 1)

    time, name = best(run, names)
    return {"row": "torch prefill " + NAME + " bf16", "attention": name, "tokens": tokens, "prefill_s": time,
            "tokens_s": tokens / time, "model_tflops": flops(tokens) / 3 / time / 1e12}


def decode(model, tokens, samples):
    """One token's step as one CUDA graph, captured here: with mode="reduce-overhead" Inductor skips graphs ("mutated inputs"),
    since a step writes the caches. With and without the search that gpt-fast turns on, the faster is named."""
    caches = [[torch.randn(1, G, tokens + 128, K, device="cuda", dtype=torch.bfloat16) for _ in range(2)] for _ in range(L)]
    ids = torch.randint(V, (1, 1), device="cuda")
    at = torch.tensor([tokens], device="cuda")

    def run(searched):
        torch.compiler.reset()
        torch._inductor.config.coordinate_descent_tuning = searched
        step = torch.compile(model.step, fullgraph=True)
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(3):
                step(ids, at, caches)
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step(ids, at, caches)

        def call():
            for _ in range(32):
                graph.replay()

        return seconds(samples, call) / 32

    with torch.no_grad():
        times = {searched: run(searched) for searched in (False, True)}
    torch._inductor.config.coordinate_descent_tuning = False
    searched = min(times, key=times.get)
    return {"row": "torch decode " + NAME + " bf16, one graph", "tokens": tokens, "tokens_s": 1 / times[searched],
            "coordinate_descent": searched, "tokens_s_other": 1 / times[not searched]}


def main():
    global NAME, L, D, FF, H, G, K, V
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", default="train,prefill,decode")
    parser.add_argument("--tokens", default="8192")
    parser.add_argument("--samples", type=int, default=5)
    parser.add_argument("--shape", default=NAME, choices=sorted(SHAPES))
    parser.add_argument("--attention", default="cudnn,flash")
    arguments = parser.parse_args()
    NAME = arguments.shape
    L, D, FF, H, G, K, V = SHAPES[NAME]
    torch.set_float32_matmul_precision("high")
    rows, names, samples = arguments.rows.split(","), arguments.attention.split(","), arguments.samples
    lengths = [int(tokens) for tokens in arguments.tokens.split(",")]

    def show(row):
        print(json.dumps({k: round(v, 5) if isinstance(v, float) else v for k, v in row.items()}), flush=True)
        torch.cuda.empty_cache()

    for tokens in lengths:
        if "train" in rows:
            show(train(tokens, samples, names, True))
            show(train(tokens, samples, names, False))
    if "prefill" in rows or "decode" in rows:
        model = new_model(torch.bfloat16)
        for tokens in lengths:
            if "decode" in rows:
                show(decode(model, tokens, samples))
            if "prefill" in rows:
                show(prefill(model, tokens, samples, names))


if __name__ == "__main__":
    main()
