"""What two_pods.sh sees of its runs: `watch` shows a job and may kill one of its worlds, `compare`
judges what came of both."""
import glob
import json
import os
import signal
import subprocess
import sys
import time

EVERY = 40  # steps between lines


def steps_of(run, pod):
    """The lines of a pod's metrics.jsonl, whole ones only."""
    try:
        with open(f"{run}/pod-{pod}/metrics.jsonl") as file:
            return [json.loads(line) for line in file if line.endswith("\n")]
    except FileNotFoundError:
        return []


def pods_of(run):
    return [steps_of(run, pod) for pod in range(2)]


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def sent(lines):
    return sum(line["pods"]["bytes_sent"] for line in lines)


def progress(pods, total, step):
    """One line of a step, and of the EVERY before it; of the pods that have made some of them."""
    recent = [[line for line in lines if step - EVERY < line["step"] <= step] for lines in pods]
    losses = "  ".join(f"pod {pod} loss {mean(line['loss'] for line in lines):.3f}"
                       for pod, lines in enumerate(recent) if lines)
    waited = sum(line["pods"]["wait_s"] for lines in recent for line in lines)
    took = sum(line["step_s"] for lines in recent for line in lines)
    staleness = max(line["pods"]["staleness"] for lines in recent for line in lines)
    return (f"step {step:4}/{total}  {losses}  sent {sum(map(sent, pods)) / 1e6:7.2f} MB  "
            f"waiting for the link {100 * waited / took:2.0f}%  staleness {staleness}")


def worlds(up):
    """The processes of ranks that `toroid up` of this pid has started, through agents and mpirun."""
    parents, workers = {}, []
    for folder in glob.glob("/proc/[0-9]*"):
        pid = int(folder.split("/")[2])
        try:
            with open(f"{folder}/stat") as file:
                parents[pid] = int(file.read().rsplit(")", 1)[1].split()[1])
            with open(f"{folder}/cmdline", "rb") as file:
                words = file.read().split(b"\0")
        except OSError:  # ended meanwhile
            continue
        if os.path.basename(words[0]) == b"toroid" and words[1:2] == [b"worker"]:
            workers.append(pid)

    def is_ours(pid):
        while pid in parents and pid != up:
            pid = parents[pid]
        return pid == up

    return sorted(filter(is_ours, workers))


def say(text):
    print(f"== {text}", file=sys.stderr, flush=True)


def watch(toroid, id, run, total, up):
    """Shows the job until it has ended; a third of the way kills one of the ranks below `up`, unless that is 0."""
    told, kill_at, states, late = 0, total // 3 if up else total + 1, {}, 0
    while True:
        job = json.loads(subprocess.run([toroid, "job", "get", id, "-o", "json"], check=True,
                                        capture_output=True).stdout)
        state, pods = job["state"], pods_of(run)
        now = {pod: each["state"] for pod, each in enumerate(job["pods"])}
        for pod in now:
            if now[pod] == "LOST" and states.get(pod) != "LOST":
                say(f"pod {pod} is lost, the other goes on")
            elif now[pod] == "TRAINING" and states.get(pod) in ("LOST", "JOINING"):
                say(f"pod {pod} is back: it has taken the state of the other and goes on with it")
        states = now
        done = min([lines[-1]["step"] if lines else 0 for pod, lines in enumerate(pods)
                    if now.get(pod) in ("TRAINING", "DONE")] or [0])
        if done >= told + EVERY or (done == total and told < total):
            told = done
            print(progress(pods, total, done), flush=True)
        if done >= kill_at and worlds(up):
            victim = worlds(up)[-1]
            os.kill(victim, signal.SIGKILL)
            say(f"killed process {victim}, the only rank of a pod, after step {done}")
            kill_at = total + 1
        if state in ("SUCCEEDED", "FAILED", "CANCELLED"):
            if told < total and state == "SUCCEEDED" and late < 20:
                late += 1  # the last lines have come meanwhile
            else:
                return state == "SUCCEEDED"
        time.sleep(0.3)


def last_hash(pods):
    """The newest step of which both pods tell the hash of what they have in common, and both hashes; None: there is
    no such step."""
    tables = []
    for lines in pods:
        found = {}
        for line in lines:
            text = line["pods"].get("outer_hash") or line.get("param_hash")
            if text:
                found[line["step"]] = text
        tables.append(found)
    step = max(tables[0].keys() & tables[1].keys(), default=None)
    return None if step is None else (step, [table[step] for table in tables])


def compare(synchronous, late, total):
    """The last lines of two_pods.sh; whether all is as it should be."""
    good = True
    base, pods = pods_of(synchronous), pods_of(late)
    for run, each in ((synchronous, base), (late, pods)):
        for pod, lines in enumerate(each):
            if not lines:
                print(f"there is nothing to compare: {run}/pod-{pod}/metrics.jsonl has no step")
                return False
    missed = [sorted(set(range(1, total + 1)) - {line["step"] for line in lines}) for lines in pods]
    for lines in pods:
        steps = [line["step"] for line in lines]
        good &= steps == sorted(set(steps)) and steps[-1] == total
    good &= min(map(len, missed)) == 0 < max(map(len, missed))  # one has made every step, one was away
    print(f"steps that a pod was away: {max(map(len, missed))} of {total}")
    common = last_hash(pods)
    if common is None:
        print("there is no step of which both pods have told the hash: see metrics.jsonl of both, train with "
              "param_hash_every")
        good = False
    else:
        step, hashes = common
        name = "the outer parameters" if "outer_hash" in pods[0][-1]["pods"] else "the parameters"
        for pod, text in enumerate(hashes):
            print(f"pod {pod}: hash of {name} after step {step}: {text}")
        good &= hashes[0] == hashes[1]
    bytes_ = [sum(map(sent, each)) for each in (base, pods)]
    print(f"bytes sent by both pods: {bytes_[1]:,}; by gradients of each step in bf16: {bytes_[0]:,} "
          f"({bytes_[0] / bytes_[1]:.1f} times as many)")
    last = max(1, total // 8)
    losses = [mean(line["loss"] for lines in each for line in lines[-last:]) for each in (base, pods)]
    above = 100 * (losses[1] / losses[0] - 1)
    print(f"loss, mean of the last {last} steps: {losses[1]:.4f}; synchronous: {losses[0]:.4f} ({above:+.2f}%, "
          "at most 1% above is good)")
    return good and above <= 1


if __name__ == "__main__":
    verb, *words = sys.argv[1:]
    if verb == "watch":
        toroid, id, run, total, up = words
        sys.exit(not watch(toroid, id, run, int(total), int(up)))
    sys.exit(not compare(words[0], words[1], int(words[2])))
