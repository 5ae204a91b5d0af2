#!/usr/bin/env python3
"""What streaming exchange costs in loss: two pods that exchange weights now and then, beside the same two pods that
exchange each step's gradients.

python3 tests/bench/pods_loss.py --toroid build/toroid --model $(deploy/get_model.sh) --texts /usr/share/common-licenses

Both train --steps steps of --tokens tokens a pod on the same batches, no text twice; streaming: INT8, rounds of
--every steps, with the outer optimizer of deploy/two_pods.sh. A row: mean loss of both pods over the last --last steps, and bytes that a pod sent. Exit code 1 if
streaming is more than --bound nat above.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile

from pods_speed import free_ports, texts_in


def train(arguments, job, top, name, settings):
    """Means of the last steps' losses, by pod, and bytes that pod 0 sent."""
    directory = os.path.join(top, name)
    peers = ",".join(f"127.0.0.1:{port}" for port in free_ports(2))
    command = [arguments.toroid, "train", job, "-q", "--threads", "1", "--pod-peers", peers]
    for setting in [f"output.dir={directory}", *settings]:
        command += ["--set", setting]
    pods = [subprocess.Popen([*command, "--pod", str(pod)], stdin=subprocess.DEVNULL) for pod in range(2)]
    if any([pod.wait() for pod in pods]):
        raise SystemExit(f"{name}: a pod failed")
    losses, sent = [], 0
    for pod in range(2):
        with open(os.path.join(directory, f"pod-{pod}", "metrics.jsonl")) as file:
            lines = [json.loads(line) for line in file]
        assert len(lines) == arguments.steps, f"{name}: {len(lines)} steps"
        losses.append(sum(line["loss"] for line in lines[-arguments.last:]) / arguments.last)
        sent = sum(line["pods"]["bytes_sent"] for line in lines)
    return losses, sent


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--toroid", required=True, type=os.path.abspath)
    parser.add_argument("--model", required=True)
    parser.add_argument("--texts", required=True, help="folder of texts, all of which are trained on")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--every", type=int, default=20)
    parser.add_argument("--last", type=int, default=20)
    parser.add_argument("--rate", type=float, default=1e-4)
    parser.add_argument("--outer-rate", type=float, default=1)
    parser.add_argument("--outer-momentum", type=float, default=0.6)
    parser.add_argument("--alpha", type=float, default=0.25)
    parser.add_argument("--bound", type=float, default=0.03)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="toroid-pods-loss-") as top:
        job = os.path.join(top, "loss.textproto")
        paths = "\n".join(f'    path: "{text}"' for text in texts_in(arguments.texts))
        with open(job, "w") as file:
            file.write(f"""name: "loss"  seed: 1
mesh {{ data: 1  pods: 2 }}
model {{ path: "{arguments.model}" }}
train {{
  data {{
{paths}
    sequence_length: {arguments.tokens}  batch_tokens: {2 * arguments.tokens}  cache: "{top}/tokens"
  }}
  optimizer {{ adamw {{ lr: {arguments.rate} }} }}
  schedule {{ kind: CONSTANT  warmup: 10 }}
  steps: {arguments.steps}
}}
""")
        rows = {}
        for name, settings in (
                ("exact", ["train.exchange.exact={}", "train.exchange.codec=FP32"]),
                ("streaming", [f"train.exchange.streaming.every={arguments.every}", "train.exchange.streaming.fragments=2",
                               "train.exchange.streaming.tau=2", f"train.exchange.streaming.alpha={arguments.alpha}",
                               f"train.exchange.outer_lr={arguments.outer_rate}",
                               f"train.exchange.outer_momentum={arguments.outer_momentum}", "train.exchange.codec=INT8"])):
            losses, sent = train(arguments, job, top, name, settings)
            rows[name] = sum(losses) / 2
            print(f"{name:10} loss {rows[name]:.4f} (pods {losses[0]:.4f} {losses[1]:.4f}), sent {sent / 1e6:.1f} MB",
                  flush=True)
    above = rows["streaming"] - rows["exact"]
    print(f"streaming is {above:+.4f} nat from exact, at most {arguments.bound:+} wanted")
    return 0 if above <= arguments.bound else 1


if __name__ == "__main__":
    sys.exit(main())
