#!/usr/bin/env python3
"""Times the peers of toroid's CPU benchmarks on this machine, and toroid beside them.

python tests/bench/peers.py [--toroid build/toroid] [--pairs 7] [--only CASE] [--json FILE]

Cases, all with --threads threads (2): prefill of SmolLM2 by torch (float32) and by llama.cpp (Q4_1) at
512 and 4,000 tokens of GPL-3, decode by llama.cpp after them, causal attention (9 heads of 64, float32)
by torch, matrix product 2048^3 by torch, ring=2 of one thread each against one rank with two threads.

Each case warms both sides up, then times them in turn, peer and toroid, --pairs times. A row gives both
medians and the median of the pairs' ratios: neighbours on the machine then slow both sides alike. Without
--toroid only the peers are timed. Output: a markdown table on stdout, everything else on stderr.

toroid's side: rates of prefill and decode are `timing` of `toroid generate -o json`; of kernels, the row
of `toroid bench ... -o json` whose "case" is named in KERNEL_CASES, field "rate" in GF/s. FLOPs of causal
attention count the half that the mask leaves: 2 S^2 H K.

Needs torch, transformers, gguf; llama-cpp-python where it is installed. CPU numbers are worth something
on an idle machine only: the load average before each case is in its row (the benchmark itself adds its threads).
"""

import argparse
import contextlib
import datetime
import importlib.util
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "golden"))

LENGTHS = (512, 4000)
DECODE_TOKENS = 32
# our case -> (workload of toroid bench, "case" of the row)
KERNEL_CASES = {
    "attention/2048": ("attention", "causal f32 h9 k64 s2048"),
    "attention/8192": ("attention", "causal f32 h9 k64 s8192"),
    "sgemm/2048": ("ops", "matmul f32 2048x2048x2048"),
}


class Skipped(Exception):
    """Why a side cannot be timed here."""


def say(*words):
    print(*words, file=sys.stderr, flush=True)


# ---- torch -------------------------------------------------------------------------------------------


class TorchPeer:
    name = "torch"

    def __init__(self, threads, clock):
        import torch

        self.torch = torch
        self.clock = clock
        torch.set_num_threads(threads)
        self.name = f"torch {torch.__version__.split('+')[0]} fp32"
        self.model = None

    def prefill(self, ids):
        """Tokens/s of one forward pass that fills the cache and makes the last position's logits."""
        import oracle

        if self.model is None:
            self.model = oracle.load_smollm2("sdpa")
        tokens = self.torch.tensor([ids])
        with self.torch.no_grad():
            begin = time.perf_counter()
            self.model(tokens, use_cache=True, logits_to_keep=1)
            return len(ids) / (time.perf_counter() - begin)

    def attention(self, length, heads=9, head_dim=64):
        """GF/s of causal scaled_dot_product_attention, its default backend."""
        q, k, v = (self.torch.randn(1, heads, length, head_dim) for _ in range(3))
        begin = self.clock()
        self.torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return 2e-9 * length * length * heads * head_dim / (self.clock() - begin)

    def sgemm(self, size):
        a, b = (self.torch.randn(size, size) for _ in range(2))
        begin = self.clock()
        self.torch.mm(a, b)
        return 2e-9 * size**3 / (self.clock() - begin)


# ---- llama.cpp ---------------------------------------------------------------------------------------


class LlamaCppPeer:
    """llama.cpp through llama-cpp-python, the faster of flash attention on and off."""

    name = "llama.cpp Q4_1"

    def __init__(self, threads, model_path):
        if importlib.util.find_spec("llama_cpp") is None:
            raise Skipped("llama-cpp-python not installed")
        import llama_cpp

        self.name = f"llama.cpp (llama-cpp-python {llama_cpp.__version__}) Q4_1"
        self.models = {
            flash: llama_cpp.Llama(model_path=str(model_path), n_ctx=max(LENGTHS) + DECODE_TOKENS + 64, n_batch=512,
                                   n_threads=threads, n_threads_batch=threads, flash_attn=flash, verbose=False)
            for flash in (False, True)
        }
        self.best = {}

    def _fastest(self, key, measure):
        """The setting that won the first time (both were warm) is kept for the pairs."""
        if key not in self.best:
            rates = {flash: max(measure(model) for _ in range(2)) for flash, model in self.models.items()}
            self.best[key] = max(rates, key=rates.get)
            say(f"  llama.cpp {key}: flash_attn={self.best[key]} is the faster")
        return measure(self.models[self.best[key]])

    def prefill(self, ids):
        def measure(model):
            model.reset()
            begin = time.perf_counter()
            model.eval(ids)
            return len(ids) / (time.perf_counter() - begin)

        return self._fastest(f"prefill/{len(ids)}", measure)

    def decode(self, ids):
        """Tokens/s of greedy steps after `ids`, prefill not counted."""

        def measure(model):
            model.reset()
            model.eval(ids)
            begin = time.perf_counter()
            for _ in range(DECODE_TOKENS):
                model.eval([model.sample(temp=0.0)])
            return DECODE_TOKENS / (time.perf_counter() - begin)

        return self._fastest(f"decode/{len(ids)}", measure)


# ---- toroid ------------------------------------------------------------------------------------------


class Toroid:
    def __init__(self, binary, threads, model_path, clock_name):
        self.clock_name = clock_name
        self.binary, self.threads, self.model_path = str(binary), threads, str(model_path)

    def _json(self, arguments):
        done = subprocess.run([self.binary, *arguments, "-o", "json"], capture_output=True, text=True, timeout=900)
        if done.returncode != 0:
            raise Skipped(f"toroid {' '.join(arguments[:3])}: {(done.stderr.strip() or 'failed').splitlines()[-1]}")
        return json.loads(done.stdout)

    def _generate(self, ids, tokens, launch=(), threads=None):
        with tempfile.NamedTemporaryFile("w", suffix=".ids") as file:
            file.write(",".join(map(str, ids)))
            file.flush()
            return self._json([*launch, "generate", self.model_path, "--prompt-ids", f"@{file.name}", "--max-tokens",
                               str(tokens), "--threads", str(threads or self.threads)])["timing"]

    def prefill(self, ids):
        return self._generate(ids, 1)["prefill_tokens_per_s"]

    def ring_prefill(self, ids):
        """Two ranks on the ring share the cores that one rank has otherwise."""
        launch = ("launch", "-n", "2")
        return self._generate(ids, 1, launch, max(1, self.threads // 2))["prefill_tokens_per_s"]

    def decode(self, ids):
        """The first token comes from prefill's logits: DECODE_TOKENS passes make the others."""
        return DECODE_TOKENS / self._generate(ids, DECODE_TOKENS + 1)["decode_s"]

    def kernel(self, case):
        workload, wanted = KERNEL_CASES[case]
        rows = self._json(["bench", workload, "--only", wanted, "--samples", "1", "--clock", self.clock_name,
                           "--threads", str(self.threads)])["rows"]
        for row in rows:
            if row.get("case") == wanted:
                return row["rate"]
        raise Skipped(f"toroid bench {workload} has no row {wanted!r}")


# ---- measuring ---------------------------------------------------------------------------------------


def build_cases(torch_peer, llama, toroid, ids):
    """[(name, unit, peer's name, peer's timer, toroid's timer, the ratio that is wanted)]"""
    cases = []

    def add(name, unit, peer, method, ours, target):
        timer = (lambda: getattr(peer, method[0])(*method[1:])) if not isinstance(peer, Skipped) else peer
        cases.append((name, unit, getattr(peer, "name", "llama.cpp"), timer, ours, target))

    def of(method, *arguments):
        return (lambda: getattr(toroid, method)(*arguments)) if toroid else None

    for n in LENGTHS:
        add(f"prefill/{n}", "tokens/s", torch_peer, ("prefill", ids[:n]), of("prefill", ids[:n]), 0.7)
    for n in LENGTHS:
        add(f"prefill-q4/{n}", "tokens/s", llama, ("prefill", ids[:n]), of("prefill", ids[:n]), 1.0)
    for n in LENGTHS:
        add(f"decode/{n}", "tokens/s", llama, ("decode", ids[:n]), of("decode", ids[:n]), 0.7)
    for n in (2048, 8192):
        add(f"attention/{n}", "GF/s", torch_peer, ("attention", n), of("kernel", f"attention/{n}"), 0.8)
    add("sgemm/2048", "GF/s", torch_peer, ("sgemm", 2048), of("kernel", "sgemm/2048"), None)
    if toroid:
        long = ids[: max(LENGTHS)]
        cases.append((f"ring=2 prefill/{len(long)}", "tokens/s", "toroid, one rank", lambda: toroid.prefill(long),
                      lambda: toroid.ring_prefill(long), 0.8))
    return cases


def measure(case, pairs):
    """Times one case; a side that is skipped has no rates."""
    name, unit, peer_name, peer, ours, target = case
    sides = {"peer": peer, "toroid": ours}
    result = {"case": name, "unit": unit, "peer_name": peer_name, "target": target, "peer": [], "toroid": [],
              "load_average": round(os.getloadavg()[0], 2)}
    for side, timer in sides.items():  # warm up; learn which sides there are
        if timer is None:
            continue
        try:
            if isinstance(timer, Skipped):
                raise timer
            timer()
        except Skipped as why:
            say(f"{name}: {side} skipped: {why}")
            result[f"{side}_skipped"] = str(why)
            sides[side] = None
    for _ in range(pairs):
        for side, timer in sides.items():
            if timer is not None and not isinstance(timer, Skipped):
                result[side].append(timer())
    for side in ("peer", "toroid"):
        result[f"{side}_median"] = statistics.median(result[side]) if result[side] else None
    ratios = [ours / peer for ours, peer in zip(result["toroid"], result["peer"])]
    result["ratio"] = statistics.median(ratios) if ratios else None
    say(f"{name}: peer {result['peer_median']} toroid {result['toroid_median']} ratio {result['ratio']}")
    return result


def table(results):
    lines = ["| case | unit | peer | peer, median | toroid, median | toroid / peer | wanted | load |",
             "|---|---|---|---|---|---|---|---|"]

    def show(value, digits):
        return "-" if value is None else f"{value:.{digits}f}"

    for r in results:
        sides = [f"skipped: {r[f'{s}_skipped']}" if f"{s}_skipped" in r else show(r[f"{s}_median"], 1)
                 for s in ("peer", "toroid")]
        lines.append(f"| {r['case']} | {r['unit']} | {r['peer_name']} | {sides[0]} | {sides[1]} | "
                     f"{show(r['ratio'], 2)} | {show(r['target'], 2)} | {r['load_average']} |")
    return "\n".join(lines)


def machine(threads):
    model = platform.processor()
    with contextlib.suppress(OSError):
        names = [l.split(":")[1].strip() for l in open("/proc/cpuinfo") if l.startswith("model name")]
        model = names[0] if names else model
    return {"date": datetime.date.today().isoformat(), "cpu": model, "cores": os.cpu_count(), "threads": threads,
            "load_average": round(os.getloadavg()[0], 2)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--toroid", type=pathlib.Path, help="the toroid binary; without it only peers are timed")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="", help="cases whose name begins so")
    parser.add_argument("--json", type=pathlib.Path, help="write every measurement here")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall",
                        help="cpu: kernels by the CPU time of one thread, for a machine that others keep busy")
    arguments = parser.parse_args()
    if arguments.clock == "cpu":
        arguments.threads = 1

    import oracle
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    where = machine(arguments.threads)
    ids = oracle.load_smollm2_tokenizer().encode(oracle.gpl3()).ids
    torch_peer = TorchPeer(arguments.threads, time.process_time if arguments.clock == "cpu" else time.perf_counter)
    llama = Skipped("not asked for")
    if any(name.startswith(arguments.only) for n in LENGTHS for name in (f"prefill-q4/{n}", f"decode/{n}")):
        try:
            llama = LlamaCppPeer(arguments.threads, oracle.smollm2_path())
        except Skipped as why:
            llama = why
    toroid = None
    if arguments.toroid:
        toroid = Toroid(arguments.toroid, arguments.threads, oracle.smollm2_path(), arguments.clock)
    cases = [c for c in build_cases(torch_peer, llama, toroid, ids) if c[0].startswith(arguments.only)]
    if arguments.clock == "cpu":
        cases = [c for c in cases if c[0] in KERNEL_CASES]
    results = [measure(case, arguments.pairs) for case in cases]
    print(f"{where['cpu']}, {where['cores']} cores, {arguments.threads} threads, load {where['load_average']}, "
          f"{where['date']}, {arguments.clock} time, "
          f"medians of {arguments.pairs} pairs\n")
    print(table(results))
    if arguments.json:
        body = {"schema": 1, "machine": where, "command": " ".join(sys.argv), "pairs": arguments.pairs,
                "results": results}
        arguments.json.write_text(json.dumps(body, indent=1) + "\n")


if __name__ == "__main__":
    main()
