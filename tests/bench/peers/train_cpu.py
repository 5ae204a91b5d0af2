"""Training of GPT-2's 124M shape on a CPU: toroid beside torch + transformers, in one run.

python tests/bench/peers/train_cpu.py --toroid build/toroid [--only CASE] [--pairs 5] [--threads 2]

  speed    tokens/s of one step of 1,024 tokens, float32: forward, backward, clip of the norm, AdamW. torch:
           the fastest of eager and torch.compile, of all threads and half of them. In pairs, peer and toroid
           in turns; the ratio is the median of the pairs' ratios
  memory   largest resident set of a process that does such steps of 4,096 tokens, torch with gradient
           checkpointing, toroid with --remat block
  longest  the longest text that trains one step with a resident set of at most --limit GiB (4), in steps of 64
           tokens (torch) or 512 (toroid). The shape has as many learned positions as the text, on both sides.
           With --toroid-tokens N one step of toroid's is tried, of N tokens
  data     tokens/s of two ranks of one thread, each with a text of 1,024 tokens, beside one rank with two
           threads that has both texts (toroid alone, pairs of toroid bench)

Both sides begin with random weights and train random tokens; nobody drops out. torch makes its moments in a
first step of 128 tokens. Every resident set is what the system says of the process when it ends, Python and
libraries included. Needs torch and transformers. Output: markdown rows on stdout, all else on stderr.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import peers  # noqa: E402

STEP, SHORT, SPEED, MEMORY = 64, 128, 1024, 4096
ROUGH = (2048, 4096)  # resident sets at these lengths tell where to look for the longest


# ---- torch -------------------------------------------------------------------------------------------


class TorchTrainer:
    """GPT2LMHeadModel and AdamW, a step of one text at a time."""

    def __init__(self, threads, positions, checkpoint):
        import torch
        import transformers

        self.torch = torch
        torch.manual_seed(0)
        torch.set_num_threads(threads)
        self.threads = threads
        config = transformers.GPT2Config(n_positions=max(1024, positions), resid_pdrop=0.0, embd_pdrop=0.0,
                                         attn_pdrop=0.0, use_cache=False)
        self.vocab = config.vocab_size
        self.model = transformers.GPT2LMHeadModel._from_config(config, attn_implementation="sdpa").train()
        if checkpoint:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        self.call = self.model
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, betas=(0.9, 0.95), eps=1e-8,
                                           weight_decay=0.0, fused=True)
        self.name = f"torch {torch.__version__.split('+')[0]}"
        self.setting = "eager"

    def step(self, tokens):
        """Seconds."""
        ids = self.torch.randint(self.vocab, (1, tokens))
        begin = time.perf_counter()
        loss = self.call(input_ids=ids, labels=ids).loss
        loss.backward()
        self.torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        assert bool(loss.isfinite())
        return time.perf_counter() - begin

    def choose_fastest(self, tokens):
        """The setting that wins now (each once warm) is kept; torch.compile with the threads that eager likes."""
        torch = self.torch
        settings = []

        def measure(name, threads, call):
            torch.set_num_threads(threads)
            self.call = call
            self.step(tokens)
            settings.append((self.step(tokens), name, threads, call))
            peers.say(f"  {self.name} {name}, {threads} threads: {settings[-1][0]:.2f} s")

        for threads in sorted({self.threads, max(1, self.threads // 2)}):
            measure("eager", threads, self.model)
        try:
            measure("compiled", min(settings, key=lambda s: s[0])[2], torch.compile(self.model))
        except Exception as error:  # whatever the compiler lacks here
            peers.say(f"torch.compile does not work here: {type(error).__name__}: {str(error)[:200]}")
        _, name, threads, self.call = min(settings, key=lambda s: s[0])
        torch.set_num_threads(threads)
        self.setting = f"{name}, {threads} threads"


def torch_memory_child(threads, tokens):
    trainer = TorchTrainer(threads, tokens, checkpoint=True)
    trainer.step(SHORT)
    print(f"{trainer.name}: {tokens} tokens in {trainer.step(tokens):.1f} s", file=sys.stderr)


# ---- both ----------------------------------------------------------------------------------------------


def resident(command):
    """(largest resident set in bytes, standard output) of a command that must succeed."""
    with tempfile.TemporaryFile("w+") as out:
        child = subprocess.Popen([str(word) for word in command], stdout=out)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode != 0:
            raise peers.Skipped(f"{' '.join(map(str, command[:4]))} ended with {child.returncode}")
        out.seek(0)
        return usage.ru_maxrss * 1024, out.read()


class Both:
    def __init__(self, binary, threads):
        self.binary, self.threads = binary, threads

    def toroid(self, tokens, remat, samples=1, launch=(), threads=None):
        return resident([self.binary, *launch, "bench", "train", "preset:gpt2-124m", "--tokens", tokens, "--remat",
                         remat, "--threads", threads or self.threads, "--samples", samples, "-o", "json"])

    def toroid_memory(self, tokens):
        size, out = self.toroid(tokens, "block")
        peers.say(f"  toroid {tokens} tokens: {size / 2**20:.0f} MiB, {json.loads(out)['rows'][0]['seconds']:.1f} s")
        return size

    def torch_memory(self, tokens):
        size, _ = resident([sys.executable, __file__, "--torch-memory", tokens, "--threads", self.threads])
        peers.say(f"  torch {tokens} tokens: {size / 2**20:.0f} MiB")
        return size


def speed(both, pairs):
    trainer = TorchTrainer(both.threads, SPEED, checkpoint=False)
    trainer.choose_fastest(SPEED)
    both.toroid(SPEED, "none")
    theirs, ours = [], []
    for _ in range(pairs):
        theirs.append(SPEED / trainer.step(SPEED))
        ours.append(json.loads(both.toroid(SPEED, "none")[1])["rows"][0]["rate"])
        peers.say(f"  {theirs[-1]:.1f} {ours[-1]:.1f} tokens/s")
    return (f"step of {SPEED:,} tokens", "tokens/s", f"{trainer.name} {trainer.setting}", statistics.median(theirs),
            statistics.median(ours), statistics.median(b / a for a, b in zip(theirs, ours)), ">= 0.9, better 1.2")


def memory(both):
    theirs, ours = both.torch_memory(MEMORY) / 2**20, both.toroid_memory(MEMORY) / 2**20
    return (f"resident set, {MEMORY:,} tokens, checkpointing", "MiB", "torch", theirs, ours, ours / theirs, "<= 0.6")


def longest_that_fits(measure, limit, step):
    """A line through two lengths says which one to try first; from there in strides that double, then by halves."""
    sizes = [measure(tokens) for tokens in ROUGH]
    slope = (sizes[1] - sizes[0]) / (ROUGH[1] - ROUGH[0])
    tokens = max(1, int((limit - sizes[0]) / slope + ROUGH[0]) // step)  # in steps
    fits, too_long, stride = 0, None, 1
    while too_long is None or too_long - fits > 1:
        if measure(tokens * step) <= limit:
            fits = tokens
        else:
            too_long = tokens
        if fits and too_long:
            tokens = (fits + too_long) // 2
        else:
            tokens = max(fits + 1, tokens + stride if fits else tokens - stride)
            stride *= 2
    return fits * step


def longest(both, gib, tokens):
    theirs = longest_that_fits(both.torch_memory, gib * 2**30, STEP)
    if tokens:
        ours = tokens if both.toroid_memory(tokens) <= gib * 2**30 else 0
    else:
        ours = longest_that_fits(both.toroid_memory, gib * 2**30, 8 * STEP)
    return (f"longest text in {gib:g} GiB, checkpointing", "tokens", "torch", theirs, ours, ours / theirs,
            ">= 4, better 8")


def data(both, pairs):
    _, out = both.toroid(SPEED, "none", pairs, ("launch", "-n", 2), max(1, both.threads // 2))
    one, two = (row["rate"] for row in json.loads(out)["rows"])
    return (f"data=2, {SPEED:,} tokens each", "tokens/s", "toroid, one rank", one, two, two / one, ">= 0.9")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--toroid", type=pathlib.Path, default=pathlib.Path("build/toroid"))
    parser.add_argument("--only", default="", help="cases whose name begins so")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit", type=float, default=4, help="GiB of the case longest")
    parser.add_argument("--toroid-tokens", type=int, default=0, help="of the case longest: 0 searches")
    parser.add_argument("--torch-memory", type=int, metavar="TOKENS", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.torch_memory:
        torch_memory_child(arguments.threads, arguments.torch_memory)
        return
    both = Both(arguments.toroid.resolve(), arguments.threads)
    cases = {"speed": lambda: speed(both, arguments.pairs), "memory": lambda: memory(both),
             "longest": lambda: longest(both, arguments.limit, arguments.toroid_tokens), "data": lambda: data(both, arguments.pairs)}
    where = peers.machine(arguments.threads)
    print(f"{where['cpu']}, {where['cores']} cores, {where['threads']} threads, load {where['load_average']}, "
          f"{where['date']}\n")
    print("| case | unit | peer | peer's | toroid's | toroid / peer | wanted |\n|---|---|---|---|---|---|---|")
    for name, case in cases.items():
        if name.startswith(arguments.only):
            title, unit, peer, theirs, ours, ratio, wanted = case()
            print(f"| {title} | {unit} | {peer} | {theirs:.1f} | {ours:.1f} | {ratio:.2f} | {wanted} |", flush=True)


if __name__ == "__main__":
    main()
