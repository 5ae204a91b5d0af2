#!/usr/bin/env python3
"""Two pods over a thin link against two that train alone, and against what `toroid plan` says.

python3 tests/bench/pods_speed.py --toroid build/toroid --model $(deploy/get_model.sh) [--tokens 2048]

One rank a pod, each on a core of its own, --tokens tokens a pod a step of one long document, BF16 on the wire. In turns:
  alone      two worlds of one pod each, at the same time: the baseline, the sum of their rates
  exact      with overlap, on a link of 1.3 times the need at 97% of blocking exchange, P b / (0.03 t)
  streaming  a round of --every steps in --fragments, applied --tau steps later, on a link a hundred times thinner
  control    exact on that thin link: what a link that is not hidden looks like
t: seconds of a step alone; P b: bytes that a rank sends, as planned. A row: median seconds of a step (the slower
pod's), rate of both pods against the baseline (1 is the best there is), the same by plan's formula, MB sent a
step, share of time waited. A run takes --steps steps, streaming --rounds rounds of its own; the first --skip are left
out besides (page faults, connections).

The link is made by numbers (--link-rate of train); the streams run over loopback on the pods' own cores, as do
codecs and outer steps. CPU numbers are worth something on an idle machine only: the load before each run is shown.
"""
import argparse
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile

TEXTS = "/usr/share/common-licenses"


def say(*words):
    print(*words, file=sys.stderr, flush=True)


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def texts_in(folder):
    """Its files; links only name what is there already."""
    paths = [os.path.join(folder, name) for name in sorted(os.listdir(folder))]
    return [path for path in paths if os.path.isfile(path) and not os.path.islink(path)]


class Bench:
    def __init__(self, arguments, top):
        self.a, self.top, self.runs = arguments, top, 0
        self.job = os.path.join(top, "speed.textproto")
        shape = f'path: "{arguments.model}"'
        # One document: where another begins attention has less to do, and the pods' steps differ.
        text = os.path.join(top, "text.txt")
        with open(text, "w") as file:
            for path in texts_in(arguments.texts):
                with open(path) as part:
                    file.write(part.read())
        with open(self.job, "w") as file:
            file.write(f"""name: "speed"  seed: 1  output {{ dir: "{top}/run" }}
mesh {{ data: 1 }}
model {{ {shape} }}
train {{
  data {{ path: "{text}"  sequence_length: {arguments.tokens}  batch_tokens: {arguments.tokens}  cache: "{top}/tokens" }}
  optimizer {{ adamw {{ lr: 1e-4 }} }}
  steps: 1
  peak_flops: 1
}}
""")

    def words(self, settings):
        return [word for setting in settings for word in ("--set", setting)]

    def together(self, commands):
        """Runs one command on each core at the same time."""
        load = os.getloadavg()[0]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TOROID_")}
        worlds = [subprocess.Popen(["taskset", "-c", str(core), *command], stdin=subprocess.DEVNULL, env=environment,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE)
                  for core, command in zip(self.a.cores, commands)]
        for world in worlds:
            _, err = world.communicate()
            if world.returncode != 0:
                raise SystemExit(f"{world.args}: {err.decode()}")
        return load

    def measure(self, name, settings=(), link=()):
        """Medians of both pods' steps: (seconds of the slower, bytes a step, share waited, load)."""
        self.runs += 1
        top = os.path.join(self.top, f"{self.runs}-{name}")
        if link or settings:
            peers = ",".join(f"127.0.0.1:{port}" for port in free_ports(2))
            directories = [os.path.join(top, f"pod-{pod}") for pod in range(2)]
            more = [["--set", f"output.dir={top}", "--pod", str(pod), "--pod-peers", peers, *link] for pod in range(2)]
            settings = ["mesh.pods=2", f"train.data.batch_tokens={2 * self.a.tokens}", *settings]
        else:
            directories = [os.path.join(top, f"alone-{pod}") for pod in range(2)]
            more = [["--set", f"output.dir={directory}"] for directory in directories]
        measured = self.a.rounds * self.a.every if "streaming" in name else self.a.steps
        settings = [f"train.steps={self.a.skip + measured}", *settings]
        command = [self.a.toroid, "train", self.job, "-q", "--threads", "1", *self.words(settings)]
        load = self.together([command + words for words in more])
        pods = []
        for directory in directories:
            with open(os.path.join(directory, "metrics.jsonl")) as file:
                lines = [json.loads(line) for line in file][self.a.skip:]
            seconds = [line["step_s"] for line in lines]
            waited = sum(line.get("pods", {}).get("wait_s", 0) for line in lines)
            sent = sum(line.get("pods", {}).get("bytes_sent", 0) for line in lines) / len(lines)
            # Rounds have dear steps and cheap ones: their mean. Steps that are alike: their median.
            typical = statistics.mean if "streaming" in name else statistics.median
            pods.append((typical(seconds), sent, waited / sum(seconds)))
        slower = max(pods)
        say(f"{name}: {slower[0]:.3f} s a step, load {load:.1f}")
        return {"seconds": slower[0], "sent": slower[1], "waited": max(pod[2] for pod in pods), "load": load}

    def plan(self, settings, rate, step_s):
        command = [self.a.toroid, "plan", self.job, "--mesh", "data=1", "--link-rate", str(int(rate)), "--step-seconds",
                   str(step_s), "-o", "json", *self.words(["mesh.pods=2", f"train.data.batch_tokens={2 * self.a.tokens}",
                                                           *settings])]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=True)
        return json.loads(done.stdout)["exchange"]["own"]

    def rows(self):
        a = self.a
        codec = f"train.exchange.codec={a.codec}"
        exact = ["train.exchange.exact={}", codec]
        streaming = [f"train.exchange.streaming.every={a.every}", f"train.exchange.streaming.fragments={a.fragments}",
                     f"train.exchange.streaming.tau={a.tau}", codec]
        alone = [self.measure("alone")]
        t = alone[0]["seconds"]
        payload = self.plan(exact, 1e9, t)["turn_bytes"]
        rate = 1.3 * payload / (0.03 * t)
        say(f"{payload / 1e6:.1f} MB a step, link of {rate / 1e6:.2f} MB/s, and {rate / 1e8:.3f} MB/s")
        measured = []
        for name, settings, link in (("exact", exact, rate), ("streaming", streaming, rate / 100),
                                     ("control: exact, thin link", exact, rate / 100)):
            if name.partition(":")[0] not in a.rows:
                continue
            measured.append((name, link, self.plan(settings, link, t), self.measure(name, settings, ("--link-rate", str(int(link))))))
            alone.append(self.measure("alone"))  # in turns: neighbours slow both sides alike
        t = statistics.median(run["seconds"] for run in alone)
        yield {"case": "alone", "seconds": t, "share": 1, "formula": 1, "sent": 0, "waited": 0, "link": None,
               "load": max(run["load"] for run in alone), "spread": [run["seconds"] for run in alone]}
        for name, link, plan, run in measured:
            yield {"case": name, "seconds": run["seconds"], "share": t / run["seconds"], "formula": plan["speed_up"] / 2,
                   "sent": run["sent"], "waited": run["waited"], "link": link, "load": run["load"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--toroid", required=True, type=os.path.abspath)
    parser.add_argument("--model", required=True, help="as toroid train takes it: SmolLM2's file, random:NAME")
    parser.add_argument("--texts", default=TEXTS, help="folder of texts, which are trained on as one document")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--skip", type=int, default=2)
    parser.add_argument("--codec", default="BF16")
    parser.add_argument("--every", type=int, default=20)
    parser.add_argument("--fragments", type=int, default=4)
    parser.add_argument("--tau", type=int, default=2)
    parser.add_argument("--cores", default="0,1", type=lambda text: text.split(","))
    parser.add_argument("--rows", default="exact,streaming,control", type=lambda text: text.split(","))
    parser.add_argument("--json", help="rows are added to this file too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="toroid-pods-speed-") as top:
        rows = list(Bench(arguments, top).rows())
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {arguments.model}, {arguments.tokens} tokens "
          f"a pod a step, {arguments.codec}, {arguments.steps} steps, {arguments.rounds} rounds\n")
    print("| case | link MB/s | s a step | of the baseline | by the formula | MB sent a step | waited | load |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        link = "" if row["link"] is None else f"{row['link'] / 1e6:.3f}"
        print(f"| {row['case']} | {link} | {row['seconds']:.3f} | {row['share']:.3f} | {row['formula']:.3f} | "
              f"{row['sent'] / 1e6:.3f} | {100 * row['waited']:.1f}% | {row['load']:.1f} |")
    if arguments.json:
        with open(arguments.json, "a") as file:
            for row in rows:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
