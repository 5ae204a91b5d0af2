"""A job on pods of different hosts: controller on one, an agent on each of two others, certificates
everywhere, a slow cable between the pods, a cable that is pulled and put back.

Hosts are namespaces (hosts.py); every two of them have a cable of their own, so that what
becomes of the pods' cable concerns neither the controller nor its clients. Exits 77 (skipped) where
namespaces are not allowed.
"""
import os
import signal
import subprocess
import tempfile
import time

from harness import *
from hosts import Hosts, only_with_hosts, succeeded
from tls import Pki
from train import JOB, good, lines

TEXT = "/usr/share/common-licenses"
HEAD, FIRST, SECOND = range(3)
NAMES = ("toroid-head", "toroid-p1", "toroid-p2")
OTHER = "toroid-other"  # the head too, by a name that is in no certificate
CABLES = ((HEAD, FIRST), (HEAD, SECOND), (FIRST, SECOND))


def address(end, other):
    """Of `end` on its cable to `other`."""
    cable = CABLES.index((min(end, other), max(end, other)))
    return f"198.18.{cable}.{1 if end < other else 2}"


class PodHosts(Hosts):
    """Three hosts, a cable between every two; the cable of host i to host j is `to-j` there."""

    def lay(self):
        for own, name in enumerate(NAMES):
            table = "127.0.0.1 localhost\n"
            for other, its in enumerate(NAMES):
                table += f"{address(other, own) if other != own else address(own, (own + 1) % 3)} {its}\n"
            table += f"{address(HEAD, own) if own != HEAD else '127.0.0.1'} {OTHER}\n"
            self.add_host(name, table)
        for one, two in CABLES:
            self.lay_cable((one, f"to-{two}", address(one, two)), (two, f"to-{one}", address(two, one)))

    def start(self, host, *words, env=None):
        """toroid on that host."""
        return subprocess.Popen(self.inside(host) + [TOROID, *map(str, words)], stdin=subprocess.DEVNULL,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(env))

    def run(self, host, *words, env=None, timeout=60):
        return finish(self.start(host, *words, env=env), timeout)

    def slow(self, rate):
        """Between the pods, in both directions."""
        for end, other in ((FIRST, SECOND), (SECOND, FIRST)):
            succeeded(*self.inside(end), "tc", "qdisc", "add", "dev", f"to-{other}", "root", "tbf", "rate", rate, "burst",
                      "32kbit", "latency", "400ms")

    def cable(self, state):
        succeeded(*self.inside(FIRST), "ip", "link", "set", f"to-{SECOND}", state)


class Cluster:
    """A controller on the head, an agent on each other host."""

    def __init__(self, hosts, pki, runs):
        self.hosts, self.client = hosts, {"TOROID_TLS_DIR": pki.folders[HEAD]}
        self.services = []
        self.controller = self.serve(HEAD, "controller", "--listen", "0.0.0.0:0", "--state", os.path.join(runs, "state"),
                                     "--tls-dir", pki.folders[HEAD])
        self.port = self.controller.split()[1].rpartition(":")[2]
        self.address = f"{NAMES[HEAD]}:{self.port}"
        for host, pod in ((FIRST, "a"), (SECOND, "b")):
            self.serve(host, "agent", "--pod", pod, "--controller", self.address, "--slots", 1, "--root", f"text={TEXT}",
                       "--root", f"runs={runs}", "--tls-dir", pki.folders[host])

    def serve(self, host, *words):
        process = self.hosts.start(host, *words)
        self.services.append(process)
        line = process.stdout.readline().decode()
        check(line.startswith("READY"), "no READY but", line, line or process.stderr.read().decode())
        return line

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in reversed(self.services):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            finish(process)

    def run(self, *words, **options):
        return self.hosts.run(HEAD, *words, "--controller", self.address, env=self.client, **options)


def pods_of(runs, name="licence"):
    return [lines(os.path.join(runs, name, f"pod-{pod}")) for pod in range(2)]


def submit(cluster, name, steps):
    settings = [f"name={name}", "mesh.pods=2", f"train.steps={steps}", "train.param_hash_every=1", "train.checkpoint.every=0"]
    sets = [word for setting in settings for word in ("--set", setting)]
    return good(cluster.run("job", "submit", JOB, *sets)).out.strip()


def ended(cluster, runs, id, name, steps):
    """Succeeded, on both hosts, with the same weights after each step; the status."""
    good(cluster.run("job", "watch", id, timeout=120))
    status = good(cluster.run("job", "get", id, "-o", "json")).json()
    check(status["state"] == "SUCCEEDED" and status["restarts"] == 0, status)
    one, two = pods_of(runs, name)
    check([line["step"] for line in one] == list(range(1, steps + 1)), one)
    check([line["param_hash"] for line in one] == [line["param_hash"] for line in two], one, two)
    agreement = status["agreement"]
    check(agreement["hash_step"] == steps and not agreement["hashes_differ"], agreement)
    check(agreement["hash"] == one[-1]["param_hash"], agreement, one[-1])
    return status


def test_pods_on_two_hosts_over_a_slow_cable_that_is_pulled():
    with PodHosts() as hosts, Pki(*NAMES) as pki, tempfile.TemporaryDirectory() as runs:
        with Cluster(hosts, pki, runs) as cluster:
            fast = ended(cluster, runs, submit(cluster, "fast", 10), "fast", 10)
            names = {pod["host"] for pod in cluster.run("pods", "-o", "json").json()["pods"]}
            check(names == set(NAMES[1:]), names)

            # The same steps at a rate at which they take six seconds.
            sent = sum(line["pods"]["bytes_sent"] for line in pods_of(runs, "fast")[0])
            hosts.slow(f"{int(8 * sent / 6)}bit")
            begin = time.monotonic()
            slow = ended(cluster, runs, submit(cluster, "slow", 10), "slow", 10)
            check(time.monotonic() - begin > 5, "the cable is not slow")
            waited = [status["pods"][0]["progress"]["exchange"]["wait_share"] for status in (fast, slow)]
            check(waited[1] > 0.5 and waited[1] > waited[0], waited)
            check(slow["agreement"]["hash"] == fast["agreement"]["hash"], "other weights over a slow cable")

            id = submit(cluster, "pulled", 10)
            wait_for("steps are made", lambda: len(pods_of(runs, "pulled")[1]) >= 3, 60)
            hosts.cable("down")
            time.sleep(1)  # what was on its way has come
            before = len(pods_of(runs, "pulled")[0])
            time.sleep(4)
            check(len(pods_of(runs, "pulled")[0]) - before <= 1, "steps without a cable")
            check(cluster.run("job", "get", id, "-o", "json").json()["state"] == "RUNNING", "the controller is reached")
            hosts.cable("up")
            pulled = ended(cluster, runs, id, "pulled", 10)
            check(pulled["agreement"]["hash"] == fast["agreement"]["hash"], "other weights over a pulled cable")
    no_orphans()


def test_hosts_that_are_refused():
    with PodHosts() as hosts, Pki(*NAMES) as pki, Pki(*NAMES) as other, tempfile.TemporaryDirectory() as runs:
        with Cluster(hosts, pki, runs) as cluster:
            agent = ["agent", "--pod", "z", "--slots", 1, "--controller"]
            refused(hosts.run(FIRST, *agent, cluster.address, "--tls-dir", other.folders[FIRST]), 3, "not of the CA")
            refused(hosts.run(FIRST, *agent, cluster.address), 3, "takes no plaintext", "--tls-dir")
            wrong = f"{OTHER}:{cluster.port}"
            refused(hosts.run(FIRST, *agent, wrong, "--tls-dir", pki.folders[FIRST]), 3, OTHER, NAMES[HEAD])
            refused(hosts.run(SECOND, "pods", "--controller", cluster.address), 3, "takes no plaintext")
            # Control: with its own certificate the same host is served.
            good(hosts.run(FIRST, "pods", "--controller", cluster.address, "--tls-dir", pki.folders[FIRST]))
    no_orphans()


def make_hosts():
    with PodHosts() as hosts:
        hosts.slow("8mbit")


if __name__ == "__main__":
    only_with_hosts(make_hosts)
    main()
