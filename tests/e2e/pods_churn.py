"""Four pods of one rank each train while ranks are killed, pods stopped, drained and let back, and
links cut: nobody waits for long, nothing counts twice, all stay alike, every merge can be made again,
and what is learnt is what pods learn that nobody disturbs.

  python3 pods_churn.py BINARY [--seconds 60] [--seed 1] [--mode streaming] [--cuts 3s]

The same seed draws the same harm; when it comes depends on the machine.
"""
import argparse
import collections
import json
import random
import shutil
import statistics
import string
import struct
import sys
import tempfile
import time

from harness import *
from cluster import Up
from pod_returns import MODES, Run, kill, stop, workers
from pods import of_pod
from train import good

PODS = 4
BOUND = {"exact": 5, "delayed": 5, "diloco": 2, "streaming": 2}  # seconds that others may idle
LEARNING = ["train.data.path=runs/language.txt", "train.schedule.kind=COSINE", "train.optimizer.adamw.lr=3e-3"]
MODES["delayed"] = ["train.exchange.delayed={}"]
MODES["diloco"] = ["train.exchange.diloco.every=4", "train.exchange.codec=INT8", "train.exchange.outer_lr=1",
                   "train.exchange.outer_momentum=0.5"]


def merges(directory):
    """(step, fragment, result, {pod: (weight, hash)}) of merges.log (core/io/merge_log.h)."""
    with open(os.path.join(directory, "merges.log"), "rb") as file:
        data = file.read()
    at = len(b"toroid merges 1\n")
    while at + 8 <= len(data):
        size, _ = struct.unpack_from("<II", data, at)
        step, view, result, fragment, count = struct.unpack_from("<qQQII", data, at + 8)
        inputs = [struct.unpack_from("<qdQ", data, at + 8 + 32 + 24 * i) for i in range(count)]
        check([pod for pod, _, _ in inputs] == sorted({pod for pod, _, _ in inputs}), "a pod twice in a merge:", inputs)
        yield step, fragment, result, {pod: (weight, hash) for pod, weight, hash in inputs}
        at += 8 + size


def check_merges(logs):
    """No contribution counts twice; all pods that made a merge made the same one."""
    newest = max(log[-1][0] for log in logs.values() if log)
    made = {}
    for pod, log in logs.items():
        if log and log[-1][0] < newest:  # lost: what it merged last may count for nobody
            log = [merge for merge in log if merge[0] < log[-1][0]]
        last = collections.defaultdict(int)
        for step, fragment, result, inputs in log:
            check(step > last[fragment], "pod", pod, "merged step", step, "after", last[fragment])
            last[fragment] = step
            check(made.setdefault((step, fragment), (result, inputs)) == (result, inputs), "unlike merges of step", step)
    seen = {}
    for key, (_, inputs) in made.items():
        for pod, (weight, text) in inputs.items():
            if weight > 0:
                check(seen.setdefault((pod, key[1], text), key) == key, "a share twice:", pod, key)
    return len(made), sum(len(inputs) < PODS for _, inputs in made.values())


def check_that_doctored_logs_are_seen(logs):
    """Control: a share in two merges, a merge made twice, one made otherwise by another pod."""
    (first, fragment, result, inputs), (second, _, _, others) = [merge for merge in logs[0] if merge[1] == logs[0][0][1]][:2]
    for doctored, pods in (((second, fragment, result, {**others, 0: inputs[0]}), range(PODS)),
                           ((first, fragment, result, inputs), [0]), ((second, fragment, result + 1, others), [0])):
        changed = {pod: [doctored if pod in pods and merge[:2] == (second, fragment) else merge for merge in log]
                   for pod, log in logs.items()}
        try:
            check_merges(changed)
        except Failed:
            continue
        raise Failed("nobody sees", doctored)


def write_language(path, words=32, follow=4, count=1000000):
    """Words of random letters, each followed by one of four: little to learn, and no end of it.

    Of a text that is learnt by heart each token counts, so that pods that are away for a quarter of
    the time cost ten percent in loss, whoever exchanges what; of this one half a percent.
    """
    draw = random.Random(1)
    names = ["".join(draw.choices(string.ascii_lowercase, k=draw.randint(2, 8))) for _ in range(words)]
    after = {name: draw.sample(names, follow) for name in names}
    text = [names[0]]
    while len(text) < count:
        text.append(draw.choice(after[text[-1]]))
    with open(path, "w") as file:
        file.write(" ".join(text))


class Harm:
    """What happens to the pods of a running job, drawn from a seed."""

    def __init__(self, job, seed):
        self.job, self.random, self.log, self.drained = job, random.Random(seed), [], {}
        self.next = time.monotonic() + self.random.uniform(3, 7)

    def note(self, how, pod):
        self.log.append((time.time(), how, pod))

    def look(self, status):
        now = time.monotonic()
        for name in [name for name, until in self.drained.items() if until <= now]:
            good(self.job.up.run("pod", "drain", "--undo", name))
            del self.drained[name]
            self.note("return", name)
        if now < self.next:
            return
        train = [pod["pod"] for pod in status["pods"] if pod["state"] == "TRAINING"]
        if len(train) < 3:  # two go on in any case
            return
        name, how = self.random.choice(train), self.random.choice(["kill", "stop", "leave"])
        pids = workers().get(name)
        if not pids:
            return
        if how == "leave":
            good(self.job.up.run("pod", "drain", name))
            self.drained[name] = now + self.random.uniform(2, 4)
        else:
            {"kill": kill, "stop": stop}[how](pids)
        self.note(how, name)
        self.next = now + self.random.uniform(3, 7)


def train(mode, steps, seed=None, cuts="0"):
    """A job of so many steps, disturbed if there is a seed: what it leaves, and what was done."""
    runs = tempfile.mkdtemp()
    write_language(os.path.join(runs, "language.txt"))
    with Up(PODS, 1, "--root", f"runs={runs}", "--link-cuts", cuts) as up:
        job = Run(up, runs, mode, PODS, f"train.steps={steps}", "max_restarts=1000", *LEARNING)
        harm = Harm(job, seed) if seed is not None else None
        while True:
            status = job.status()
            if status["state"] != "RUNNING":
                break
            if harm:
                harm.look(status)
            time.sleep(0.1)
        check(status["state"] == "SUCCEEDED", status)
        wait_for("all have ended", lambda: not workers(), 20)
        if harm:
            harm.events = good(up.run("job", "watch", job.id, "--from-sequence", 1, "-o", "jsonl")).out
            check(len(harm.log) >= 3, "hardly anything happened:", harm.log)
    return job, harm, runs


def idle(told):
    """The longest step of each pod above its usual one, but for those with which a launch begins."""
    longest = []
    for each in told:
        usual = statistics.median([line["step_s"] for line in each])
        epochs = zip(each, [None] + [line["epoch"] for line in each])
        longest.append(max(line["step_s"] - usual for line, before in epochs if line["epoch"] == before))
    return longest


def cuts_survived(told):
    """Streams between pods that were cut and went on, as the steps of all pods tell."""
    return sum(line["pods"]["reconnects"] for each in told for line in each)


def loss(told, steps):
    """Of the last eighth of so many steps."""
    last = [line["loss"] for each in told for line in each if steps - max(20, steps // 8) < line["step"] <= steps]
    return sum(last) / len(last)


def churn(seconds, seed, mode, cuts):
    pilot, _, runs = train(mode, 100)
    took = max(sum(line["step_s"] for line in each[20:]) / len(each[20:]) for each in pilot.lines())
    shutil.rmtree(runs)
    steps = max(200, int(seconds / took) // 20 * 20)
    fixed, _, runs = train(mode, steps)
    undisturbed = loss(fixed.lines(), steps)
    halfway = loss(fixed.lines(), steps // 2)
    check(halfway > 1.03 * undisturbed, "control: it learns nothing that could be missed:", halfway, undisturbed)
    uncut = cuts_survived(fixed.lines())  # a machine that stands still may lose a stream
    shutil.rmtree(runs)
    job, harm, runs = train(mode, steps, seed, cuts)
    told = job.lines()
    longest = idle(told)
    learnt = loss(told, steps)
    above = 100 * (learnt / undisturbed - 1)
    counts = collections.Counter(how for _, how, _ in harm.log)
    returns = sum(a["epoch"] != b["epoch"] for each in told for a, b in zip(each, each[1:]))
    survived = cuts_survived(told)
    size = sum(os.path.getsize(os.path.join(top, name)) for top, _, names in os.walk(runs) for name in names)
    print(f"mode {mode}, seed {seed}, {steps} steps of {took:.3f} s, links cut every {cuts}: {survived} streams went on; {dict(counts)}, {returns} returns, "
          f"{sum(line['step_s'] for line in max(told, key=len)):.0f} s; idle at most {max(longest):.2f} s; "
          f"loss {learnt:.4f}, undisturbed {undisturbed:.4f} ({above:+.2f}%); {size >> 20} MiB", flush=True)
    try:
        judge(job, told, mode, longest, above, returns)
        check(cuts == "0" or survived > 10 * uncut, "links cut every", cuts, "streams that went on:", survived, "uncut:", uncut)
    except Failed:
        events = [(event["time"], event["job"].get("message", "")) for event in map(json.loads, harm.events.splitlines())]
        noted = [(time.strftime("%H:%M:%S", time.gmtime(when)), how, pod) for when, how, pod in harm.log]
        print(f"what was done and said, the run is in {runs}:", *noted, *events, sep="\n  ", flush=True)
        raise
    shutil.rmtree(runs)
    no_orphans()


def judge(job, told, mode, longest, above, returns):
    job.check_alike(told, at_end=False)
    logs = {pod: list(merges(of_pod(job.job, pod))) for pod in range(PODS)}
    made, without = check_merges(logs)
    check_that_doctored_logs_are_seen(logs)
    print(f"{made} merges, {without} of them without a pod", flush=True)
    check(0 < without < made, "merges without a pod:", without)
    check(returns > 0, "nobody came back")
    check(max(longest) < BOUND[mode], "idle for", longest)
    check(abs(above) < 1, "another loss, by percent:", above)
    job.check_replay(timeout=120 + len(max(told, key=len)) // 50)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("binary")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--mode", choices=sorted(MODES), default="streaming")
    parser.add_argument("--cuts", default="3s")
    options = parser.parse_args()

    def test_churn():
        churn(options.seconds, options.seed, options.mode, options.cuts)

    sys.argv[2:] = ["test_churn"]
    main()
