#!/usr/bin/env python3
"""Attention on one GPU, forward or backward: toroid's own kernels beside torch's best backend, in one process.

python tests/bench/peers/attention_gpu.py LIBRARY... [--backward] [--samples 15] [--only TEXT] [--json FILE]

LIBRARY: attention_hopper_library.cc and kernels/attention_hopper*.cu as a shared library; several
(variants of the kernel) are timed in the same turns. Peers: torch's scaled_dot_product_attention with
cuDNN and with flash, tensors stored [batch, token, head, dim] and [batch, head, token, dim]; the best
one is named. Ours writes o as float32 and lse; the peers write o as bf16. "+carry": ours, reading o and
lse of an earlier round too. --backward: gradients of q, k and v; ours zeroes its float32 sums, computes
delta and adds, all timed; the peers write bf16; causal cases only, FLOPs 2.5 times the forward's.

Inputs are random and rotate among sets that together exceed the L2 cache. Each contender is warmed
up, then all take turns in random order; times are medians of CUDA events around enough calls for 2 ms. Errors: rows
sampled from every head against float64, Frobenius. FLOPs: 4 S^2 H K per sequence, half of it if causal.
The limit is a bf16 matrix product 8192^3 on random data by torch in the same run.
"""

import argparse
import ctypes
import json
import math
import random
import statistics
import sys

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

# name, batch, tokens, heads, kv_heads, head_dim, causal
CASES = [
    *[(f"hd128 h32:8 causal {s}", max(1, 16384 // s), s, 32, 8, 128, True)
      for s in (4096, 8192, 16384, 32768)],
    *[(f"hd128 h32 causal {s}", max(1, 16384 // s), s, 32, 32, 128, True)
      for s in (4096, 8192, 16384, 32768)],
    *[(f"hd128 h32:8 full {s}", max(1, 16384 // s), s, 32, 8, 128, False) for s in (4096, 16384)],
    ("hd128 h32:8 causal 4096 b1", 1, 4096, 32, 8, 128, True),
    *[(f"hd256 h16:1 causal {s}", max(1, 16384 // s), s, 16, 1, 256, True)
      for s in (4096, 8192, 16384, 32768)],
    *[(f"hd64 h32:8 causal {s}", max(1, 16384 // s), s, 32, 8, 64, True) for s in (4096, 16384)],
    ("hd64 h32:8 causal 8192 b1", 1, 8192, 32, 8, 64, True),
]
L2_BYTES = 64 << 20


def check(condition, message):
    if not condition:
        sys.exit(message)


class Own:
    def __init__(self, path, fresh):
        self.name = path.rsplit("/", 1)[-1].removesuffix(".so") + ("" if fresh else "+carry")
        self.library, self.fresh = ctypes.CDLL(path), fresh

    def prepare(self, case, sets):
        _, batch, tokens, heads, kv_heads, dim, causal = case
        rows = (ctypes.c_int32 * (5 * batch * (tokens // 64 + 1)))()
        count = self.library.toroid_tiles(batch, tokens, int(causal), dim, 0, rows, len(rows) // 5)
        self.tiles = torch.tensor(rows[: 5 * count], dtype=torch.int32, device="cuda")
        self.kv_index = (torch.arange(heads, device="cuda") * kv_heads // heads).int()
        self.counters = torch.zeros(2, dtype=torch.int32, device="cuda")
        before = math.nan if self.fresh else 0.0
        self.o = [torch.full((batch, tokens, heads, dim), before, device="cuda") for _ in sets]
        self.lse = [torch.full((batch, tokens, heads), before, device="cuda") for _ in sets]
        stream, p = torch.cuda.current_stream().cuda_stream, lambda t: ctypes.c_void_p(t.data_ptr())
        self.calls = [
            (ctypes.c_void_p(stream), p(q), p(k), p(v), ctypes.c_int64(batch * tokens), heads,
             kv_heads, dim, ctypes.c_float(dim**-0.5), p(self.kv_index), p(self.tiles), count, p(o),
             p(lse), int(self.fresh), p(self.counters))
            for (q, k, v), o, lse in zip(sets, self.o, self.lse)
        ]

    def run(self, i):
        error = self.library.toroid_attention(*self.calls[i])
        check(error == 0, f"{self.name}: CUDA error {error}")
        return self.o[i]


class Peer:
    def __init__(self, name, backend, head_major):
        self.name, self.backend, self.head_major = name, backend, head_major

    def prepare(self, case, sets):
        _, _, _, heads, kv_heads, _, causal = case
        layout = (lambda x: x.transpose(1, 2).contiguous()) if self.head_major else (
            lambda x: x.transpose(1, 2))
        self.sets = [tuple(map(layout, s)) for s in sets]
        self.options = dict(is_causal=causal, enable_gqa=heads != kv_heads)

    def run(self, i):
        with sdpa_kernel(self.backend):
            return F.scaled_dot_product_attention(*self.sets[i], **self.options).transpose(1, 2)


class OwnBackward(Own):
    def prepare(self, case, sets):
        super().prepare(case, [s[:3] for s in sets])
        _, batch, tokens, heads, kv_heads, dim, causal = case
        for i in range(len(sets)):
            super().run(i)
        rows = (ctypes.c_int32 * (5 * batch * (tokens // 64 + 1)))()
        count = self.library.toroid_tiles(batch, tokens, int(causal), dim, 1, rows, len(rows) // 5)
        self.key_tiles = torch.tensor(rows[: 5 * count], dtype=torch.int32, device="cuda")
        self.rows = torch.empty(heads, batch * tokens, 2, device="cuda")
        self.gradients = [[torch.full(x.shape, math.nan, device="cuda") for x in s[:3]] for s in sets]
        stream, p = torch.cuda.current_stream().cuda_stream, lambda t: ctypes.c_void_p(t.data_ptr())
        self.backward_calls = [
            (ctypes.c_void_p(stream), *map(p, s), ctypes.c_int64(batch * tokens), heads, kv_heads,
             dim, ctypes.c_float(dim**-0.5), p(self.kv_index), p(self.key_tiles), count, p(o),
             p(lse), p(self.rows), *map(p, gradients), p(self.counters))
            for s, o, lse, gradients in zip(sets, self.o, self.lse, self.gradients)
        ]

    def run(self, i):
        error = self.library.toroid_attention_backward(*self.backward_calls[i])
        check(error == 0, f"{self.name}: CUDA error {error}")
        return self.gradients[i]


class PeerBackward(Peer):
    def prepare(self, case, sets):
        super().prepare(case, sets)
        self.graphs = []
        for i, (q, k, v, d_o) in enumerate(self.sets):
            leaves = [x.detach().requires_grad_() for x in (q, k, v)]
            with sdpa_kernel(self.backend):
                out = F.scaled_dot_product_attention(*leaves, **self.options)
            self.graphs.append((out, leaves, d_o))

    def run(self, i):
        out, leaves, d_o = self.graphs[i]
        gradients = torch.autograd.grad(out, leaves, d_o, retain_graph=True)
        return [x.transpose(1, 2) for x in gradients]


def gradient_error(case, inputs, gradients):
    """Frobenius, all of dq, dk, dv of the last sequence's last KV head, query blocks in float64."""
    _, _, tokens, heads, kv_heads, dim, causal = case
    group = heads // kv_heads
    q, k, v, d_o = ([x[-1, :, h].double() for h in range(x.shape[2])] for x in inputs)
    dq = [torch.zeros_like(x) for x in q[-group:]]
    dk, dv = torch.zeros_like(k[-1]), torch.zeros_like(v[-1])
    for head in range(group):
        q_h, d_o_h = q[heads - group + head], d_o[heads - group + head]
        for begin in range(0, tokens, 2048):
            rows = slice(begin, min(tokens, begin + 2048))
            scores = q_h[rows] @ k[-1].T * dim**-0.5
            if causal:
                position = torch.arange(tokens, device="cuda")
                scores.masked_fill_(position[None, :] > position[rows, None], -math.inf)
            p = scores.softmax(-1)
            dp = d_o_h[rows] @ v[-1].T
            ds = p * (dp - (p * dp).sum(-1, keepdim=True)) * dim**-0.5
            dq[head][rows] = ds @ k[-1]
            dk += ds.T @ q_h[rows]
            dv += p.T @ d_o_h[rows]
    got = [gradients[0][-1, :, heads - group + h] for h in range(group)] + [
        gradients[1][-1, :, -1], gradients[2][-1, :, -1]]
    return max(((g.double() - w).norm() / w.norm()).item() for g, w in zip(got, [*dq, dk, dv]))


def reference_error(case, inputs, out, rows):
    _, batch, tokens, heads, kv_heads, dim, causal = case
    q, k, v = inputs
    difference = norm = 0.0
    for row in rows:
        seen = row + 1 if causal else tokens
        k_seen = k[:, :seen].double().repeat_interleave(heads // kv_heads, 2)
        v_seen = v[:, :seen].double().repeat_interleave(heads // kv_heads, 2)
        scores = torch.einsum("bhd,bshd->bhs", q[:, row].double(), k_seen) * dim**-0.5
        want = torch.einsum("bhs,bshd->bhd", scores.softmax(-1), v_seen)
        difference += (out[:, row].double() - want).square().sum().item()
        norm += want.square().sum().item()
    return math.sqrt(difference / norm)


def time_turns(contenders, sets, samples):
    """Seconds per call of each contender: median over turns."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def timed(contender, calls):
        begin.record()
        for i in range(calls):
            contender.run(i % sets)
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) * 1e-3 / calls

    calls = {c.name: max(sets, math.ceil(2e-3 / timed(c, sets))) for c in contenders}
    times = {c.name: [] for c in contenders}
    for _ in range(samples):
        for c in random.sample(contenders, len(contenders)):  # none always follows the coolest
            times[c.name].append(timed(c, calls[c.name]))
    return {name: statistics.median(t) for name, t in times.items()}


def product_limit():
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))

    class Product:
        name = "product"

        def run(self, _):
            return a @ b

    Product().run(0)
    return 2 * 8192**3 / time_turns([Product()], 1, 15)["product"] * 1e-12


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("libraries", nargs="+")
    parser.add_argument("--samples", type=int, default=15)
    parser.add_argument("--only", default="")
    parser.add_argument("--json")
    parser.add_argument("--backward", action="store_true")
    parser.add_argument("--no-carry", action="store_true", help="only fresh carries")
    options = parser.parse_args()
    options.fresh = (True,) if options.no_carry or options.backward else (True, False)
    own_class, peer_class = (OwnBackward, PeerBackward) if options.backward else (Own, Peer)
    owns = [own_class(path, fresh) for path in options.libraries for fresh in options.fresh]
    limit = product_limit()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, cuDNN "
          f"{torch.backends.cudnn.version()}; bf16 product 8192^3 {limit:.0f} TFLOP/s", flush=True)
    rows = []
    for case in CASES:
        name, batch, tokens, heads, kv_heads, dim, causal = case
        if options.only not in name or (options.backward and not causal):
            continue
        set_bytes = 2 * batch * tokens * dim * (heads + 2 * kv_heads)
        count = max(2, math.ceil(3 * L2_BYTES / set_bytes))
        shape = lambda h: (batch, tokens, h, dim)
        normal = lambda h: torch.randn(shape(h), device="cuda", dtype=torch.bfloat16)
        parts = (heads, kv_heads, kv_heads) + (heads,) * options.backward
        sets = [tuple(map(normal, parts)) for _ in range(count)]
        peers = [peer_class("cudnn", SDPBackend.CUDNN_ATTENTION, False),
                 peer_class("cudnn head-major", SDPBackend.CUDNN_ATTENTION, True),
                 peer_class("flash", SDPBackend.FLASH_ATTENTION, False)]
        contenders, errors = [], {}
        checked = [0, tokens - 1, *random.sample(range(tokens), 24)]
        for c in [*owns, *peers]:
            try:
                c.prepare(case, sets)
                out = c.run(0)
            except (RuntimeError, SystemExit) as error:
                print(f"{name}: {c.name} not run: {str(error).splitlines()[0]}", flush=True)
                continue
            torch.cuda.synchronize()
            if options.backward:
                errors[c.name] = gradient_error(case, sets[0], out)
            elif getattr(c, "fresh", True):
                errors[c.name] = reference_error(case, sets[0], out, checked)
            contenders.append(c)
            del out
        if not any(isinstance(c, Own) for c in contenders):
            continue
        seconds = time_turns(contenders, count, options.samples)
        flops = 4 * batch * tokens**2 * heads * dim / (2 if causal else 1)
        flops *= 2.5 if options.backward else 1
        rates = {n: flops / s * 1e-12 for n, s in seconds.items()}
        best = max((p.name for p in peers if p.name in rates), key=lambda n: rates[n])
        row = dict(case=name, batch=batch, rates=rates, errors=errors, best_peer=best,
                   ratio={o.name: rates[o.name] / rates[best] for o in owns if o.name in rates},
                   limit_share={n: r / limit for n, r in rates.items()})
        rows.append(row)
        print(f"{name:28s} " + "  ".join(f"{n} {r:.0f}" for n, r in rates.items())
              + f"  best {best}; ratio " + " ".join(f"{r:.3f}" for r in row["ratio"].values())
              + "; errors " + " ".join(f"{e:.1e}" for e in errors.values()), flush=True)
        del sets, contenders
        for c in [*owns, *peers]:
            c.__dict__ = {k: v for k, v in c.__dict__.items()
                          if k in ("name", "library", "fresh", "backend", "head_major")}
        torch.cuda.empty_cache()
    if options.json:
        with open(options.json, "w") as file:
            json.dump(dict(device=torch.cuda.get_device_name(), torch=torch.__version__,
                           cudnn=torch.backends.cudnn.version(), limit=limit, rows=rows), file,
                      indent=1)


if __name__ == "__main__":
    main()
