"""long_context.py FOLDER: the table and the claims of long_context.sh, out of its JSON files."""
import json
import sys

TOLERANCE = 1e-4  # of a log-probability


def load(ring, prompt):
    with open(f"{sys.argv[1]}/ring-{ring}-{prompt}.json") as file:
        return json.load(file)


def per_rank(numbers):
    """The largest of all ranks, in MiB."""
    return f"{max(numbers) / 2**20:.2f}"


def table(runs):
    head = ["ring", "tokens", "prefill s", "tokens/s", "scratch", "block scratch", "KV", "peak", "ring bytes sent"]
    rows = [head]
    for run in runs:
        memory, timing = run["memory"], run["timing"]
        sent = run["comm"]["by_axis"].get("ring", {"bytes_sent": [0]})["bytes_sent"]
        rows.append([str(run["mesh"]["ring"]), str(run["prompt_tokens"]), f"{timing['prefill_s']:.1f}",
                     f"{timing['prefill_tokens_per_s']:.0f}", per_rank(memory["scratch_bytes"]),
                     per_rank(memory["block_scratch_bytes"]), per_rank(memory["kv_bytes"]),
                     per_rank(memory["peak_bytes"]), per_rank(sent)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    print("MiB per rank, the largest of all ranks:")
    for row in rows:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths)))


def worst_difference(a, b):
    """Largest difference of two lists of (position, log p), and where."""
    assert [p for p, _ in a] == [p for p, _ in b], "other positions"
    return max((abs(x - y), p) for (p, x), (_, y) in zip(a, b))


failures = 0


def claim(holds, text):
    global failures
    failures += not holds
    print(f"{'ok' if holds else 'FAILED'}: {text}")


one, two, four = load(1, 65536), load(2, 65536), load(4, 65536)
short, middle, replaced = load(4, 16384), load(4, 32768), load(4, "replaced")
table([one, two, four, middle, short])

block = [max(run["memory"]["block_scratch_bytes"]) for run in (short, middle, four)]
claim(max(block) <= 1.02 * min(block), f"block scratch on ring 4 is equal within 2% at 16k, 32k and 64k: {block} bytes")
scratch = [max(run["memory"]["scratch_bytes"]) for run in (four, one)]
claim(scratch[0] < 0.5 * scratch[1], f"scratch at 64k on ring 4 is less than half of ring 1's: {scratch[0] / scratch[1]:.3f}")
kv = [max(run["memory"]["kv_bytes"]) for run in (four, one)]
claim(abs(kv[0] / kv[1] - 0.25) < 0.01, f"KV per rank on ring 4 is a quarter of ring 1's: {kv[0] / kv[1]:.4f}")
for run in (two, four):
    difference, where = worst_difference(one["prompt_logprobs"], run["prompt_logprobs"])
    claim(len(run["prompt_logprobs"]) == 64 and difference < TOLERANCE,
          f"64 log-probabilities on ring {run['mesh']['ring']} are those of one rank: {difference:.1e} at {where}")

# Negative control: the comparison sees one page that holds other tokens, and only behind it.
pairs = list(zip(short["prompt_logprobs"], replaced["prompt_logprobs"]))
before = max(abs(x - y) for (p, x), (_, y) in pairs if p < 8192)
after = max(abs(x - y) for (p, x), (_, y) in pairs if p >= 8208)
claim(before == 0 and after > 10 * TOLERANCE,
      f"a page of 16 other tokens shows behind it, not before it: {after:.1e} and {before:.1e}")
sys.exit(1 if failures else 0)
