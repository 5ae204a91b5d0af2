"""Pods of a job that are killed, stopped or drained while the others train, and come back."""
import json
import os
import signal
import statistics
import tempfile
import time

from cluster import Up
from harness import *
from jobs import Services
from pods import TEXT, of_pod
from train import JOB, good, lines

MODES = {
    "exact": ["train.exchange.exact={}"],
    "streaming": ["train.exchange.streaming.every=4", "train.exchange.streaming.tau=1",
                  "train.exchange.streaming.fragments=2", "train.exchange.codec=INT8"],
}
STEPS = 100000  # the tests end the job when they have seen what they want


def workers():
    """Processes of ranks, by the pod that runs them."""
    found = {}
    for pid, line in sorted(ours().items()):
        file = re.search(r"^\S*toroid worker --launch (\S+)", line)
        try:
            if file:
                with open(file[1]) as launch:
                    found.setdefault(json.load(launch)["pod"], []).append(pid)
        except (OSError, ValueError):  # it has ended
            continue
    return found


class Run:
    """A job on several pods of one rank each, policy CONTINUE."""

    def __init__(self, up, runs, mode, pods=3, *settings, begin=None):
        """begin: of the pods, so many begin it."""
        settings = [f"mesh.pods={pods}", f"train.steps={STEPS}", "train.schedule.kind=CONSTANT",
                    "train.optimizer.adamw.lr=3e-4", "train.param_hash_every=1", "train.checkpoint.every=100",
                    "train.exchange.policy=CONTINUE", "train.exchange.keep_contributions=true", *MODES[mode], *settings]
        self.up, self.job, self.pods = up, os.path.join(runs, "licence"), pods
        self.hash = "param_hash" if mode == "exact" else "outer_hash"
        self.id = good(up.run("job", "submit", JOB, *(word for each in settings for word in ("--set", each)))).out.strip()
        wait_for("steps are made", lambda: min(map(len, self.lines()[:begin])) >= 25, 60)

    def lines(self):
        return [lines(of_pod(self.job, pod)) for pod in range(self.pods)]

    def status(self):
        return good(self.up.run("job", "get", self.id, "-o", "json")).json()

    def state_of(self, pod):
        return self.status()["pods"][pod]["state"]

    def step(self):
        return max(each[-1]["step"] for each in self.lines() if each)

    def comes_back(self, pod, restarts=1):
        """Waits until the pod of the job that was lost trains again, and 20 steps more."""
        def there():
            status = self.status()
            check(status["state"] == "RUNNING", status)
            return status["restarts"] == restarts and status["pods"][pod]["state"] == "TRAINING"
        wait_for("it trains again", there, 60)
        step = self.step()
        wait_for("all go on", lambda: min(each[-1]["step"] for each in self.lines()) >= step + 20, 60)

    def end(self):
        """Cancels it; what each pod has told of each step."""
        good(self.up.run("job", "cancel", self.id))
        wait_for("it has ended", lambda: not workers(), 20)
        return self.lines()

    def hashes(self, told):
        """By pod and step."""
        of_pods = [{line["step"]: {**line, **line["pods"]}.get(self.hash) for line in each} for each in told]
        return [{step: text for step, text in each.items() if text} for each in of_pods]

    def check_alike(self, told, at_end=True):
        """All that were told of one step are the same; at the end all pods are there."""
        hashes = self.hashes(told)
        for step in set().union(*hashes):
            check(len({each[step] for each in hashes if step in each}) == 1, "other weights after step", step)
        common = set.intersection(*map(set, hashes))
        check(not at_end or common and max(common) > max(map(max, hashes)) - 20, "no common steps at the end")

    def check_replay(self, timeout=120):
        for pod in range(self.pods):
            answer = good(run("verify", "--replay", of_pod(self.job, pod), "-o", "json", timeout=timeout)).json()
            check(answer["pass"], answer)
            weights = answer["pods"][0].get("weights")  # of gradients
            check(not weights or weights["steps_compared"] >= 25, answer)


def idle(told, first, last):
    """The longest step of these lines that began after step `first`, and the usual one."""
    taken = [line["step_s"] for line in told if first < line["step"] <= last]
    return max(taken), statistics.median(taken)


def returns(mode, harm, bound, ranks=1, said=""):
    """harm(pids of the ranks): by then the pod is lost; it comes back and all are alike. said: in the job's log."""
    with tempfile.TemporaryDirectory() as runs, \
            Up(3, ranks, "--root", f"text={TEXT}", "--root", f"runs={runs}") as up:
        job = Run(up, runs, mode)
        name = job.status()["pods"][1]["pod"]
        begin = job.step()
        harm(workers()[name])
        job.comes_back(1)
        status = job.status()
        check(status["agreement"]["hash_step"] > begin and not status["agreement"]["hashes_differ"], status)
        told = job.end()
        log = good(up.run("job", "logs", job.id)).out
        check(said in log, repr(said), "is missing in:", log)
        job.check_alike(told)
        taking_part = [line["pods"]["taking_part"] for line in told[0]]
        check(2 in taking_part and taking_part[0] == taking_part[-1] == 3, set(taking_part))
        check(told[1][-1]["epoch"] > told[1][0]["epoch"], told[1][-1])
        for pod in (0, 2):
            check([line["step"] for line in told[pod]] == list(range(1, len(told[pod]) + 1)), "a step twice, or none")
            longest, usual = idle(told[pod], begin, told[pod][-1]["step"])
            print(f"{mode}: pod {pod} idle for {longest - usual:.2f} s, usual step {usual:.3f} s")
            check(longest - usual < bound, "idle for", longest - usual)
        job.check_replay()
    no_orphans()


def kill(pids):
    os.kill(pids[0], signal.SIGKILL)


def stop(pids):
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)


def test_a_killed_pod_comes_back_in_exact_mode():
    returns("exact", kill, 5)


def test_a_killed_pod_comes_back_in_streaming_mode():
    returns("streaming", kill, 2)


def test_a_stopped_pod_is_left_out_and_comes_back():
    returns("streaming", stop, 2)


def test_a_stopped_rank_that_is_not_the_first_is_seen_too():
    def second(pids):
        for pid in pids:
            with open(f"/proc/{pid}/environ") as file:
                if "OMPI_COMM_WORLD_RANK=1\0" in file.read():
                    return stop([pid])
        raise Failed("no second rank", pids)
    returns("streaming", second, 2, ranks=2)


def test_a_stopped_mpirun_is_ended_too():
    def all_of_it(pids):
        with open(f"/proc/{pids[0]}/stat") as file:
            mpirun = int(file.read().rpartition(")")[2].split()[1])
        stop([mpirun, *pids])
    returns("exact", all_of_it, 5)


def test_a_drained_pod_leaves_and_comes_back():
    with tempfile.TemporaryDirectory() as runs, \
            Up(3, 1, "--root", f"text={TEXT}", "--root", f"runs={runs}") as up:
        job = Run(up, runs, "streaming")
        name = job.status()["pods"][2]["pod"]
        begin = job.step()
        good(up.run("pod", "drain", name))
        wait_for("it is away", lambda: name not in workers(), 20)
        check(job.state_of(2) == "LOST" and "drains" in job.status()["message"], job.status())
        step = job.step()
        wait_for("the others go on", lambda: job.step() > step + 20, 60)
        check(name not in workers(), "a pod that drains takes nothing")
        good(up.run("pod", "drain", "--undo", name))
        job.comes_back(2, restarts=0)
        told = job.end()
        job.check_alike(told)
        longest, usual = idle(told[0], begin, told[0][-1]["step"])
        check(longest - usual < 2, "idle for", longest - usual)
        job.check_replay()
    no_orphans()


def test_a_pod_joins_a_job_that_began_without_it():
    """A job on two pods starts on the one there is; another agent comes while it trains."""
    for mode in MODES:
        with tempfile.TemporaryDirectory() as runs, tempfile.TemporaryDirectory() as state, \
                Services(state, "--root", f"text={TEXT}", "--root", f"runs={runs}", pods="a", slots=1) as services:
            job = Run(services, runs, mode, 2, begin=1)
            status = job.status()
            check([pod["state"] for pod in status["pods"]] == ["TRAINING", "WAITING"], status)
            check("1 of 2 pods had no place" in status["message"] and not workers().get("b"), status)
            services.start_agent("b")
            job.comes_back(1, restarts=0)
            status = job.status()
            check(status["message"] == "pod 1 has joined: all 2 train", status)
            told = job.end()
            events = services.run("job", "watch", job.id, "--from-sequence", 1, "-o", "jsonl").out
            check("pod 1 is launched on b, to join those that train" in events, events)
            job.check_alike(told)
            first, joined = job.hashes(told)
            begin = min(joined)
            check(begin > 20 and first[begin] == joined[begin] != first[min(first)], begin, "it has the other's weights")
            check([line["pods"]["taking_part"] for line in told[0]][::len(told[0]) - 1] == [1, 2], told[0][-1])
            check([line["step"] for line in told[0]] == list(range(1, len(told[0]) + 1)), "a step twice, or none")
            job.check_replay()
        no_orphans()


def test_a_controller_that_dies_knows_afterwards_who_is_away():
    with tempfile.TemporaryDirectory() as runs, tempfile.TemporaryDirectory() as state, \
            Services(state, "--root", f"text={TEXT}", "--root", f"runs={runs}", pods="abc", slots=1) as services:
        job = Run(services, runs, "streaming")
        first, second = (job.status()["pods"][pod]["pod"] for pod in (0, 1))
        kill(workers()[second])
        wait_for("it is away", lambda: job.state_of(1) != "TRAINING")
        services.kill_controller()
        step = job.step()
        wait_for("the others go on without a controller", lambda: job.step() > step + 20, 60)
        services.start_controller()
        job.comes_back(1)
        # One that is killed while there is no controller is waited for, until there is one again.
        services.kill_controller()
        kill(workers()[first])
        time.sleep(1)
        services.start_controller()
        job.comes_back(0, restarts=2)
        told = job.end()
        job.check_alike(told)
        job.check_replay()
    no_orphans()


if __name__ == "__main__":
    main()
