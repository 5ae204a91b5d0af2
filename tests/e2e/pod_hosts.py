"""A job on pods of different hosts: controller on one, an agent on each of two others, one of them with
a pod that spans a fourth; certificates everywhere, slow cables between the pods, a cable that is
pulled and put back.

Hosts are namespaces (hosts.py); every two of them have a cable of their own, so that what
becomes of the pods' cables concerns neither the controller nor its clients. Exits 77 (skipped) where
namespaces are not allowed.
"""
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import time

from harness import *
from hosts import Hosts, only_with_hosts, succeeded
from tls import Pki
from train import JOB, good, lines, words

TEXT = "/usr/share/common-licenses"
HEAD, FIRST, SECOND, THIRD = range(4)
NAMES = ("toroid-head", "toroid-p1", "toroid-p2", "toroid-p3")
OTHER = "toroid-other"  # the head too, by a name that is in no certificate
CABLES = tuple(itertools.combinations(range(len(NAMES)), 2))


def address(end, other):
    """Of `end` on its cable to `other`."""
    cable = CABLES.index((min(end, other), max(end, other)))
    return f"198.18.{cable}.{1 if end < other else 2}"


class PodHosts(Hosts):
    """Four hosts, a cable between every two; the cable of host i to host j is `to-j` there. `tls` and `scratch` are
    paths under which each has its own certificate and files."""

    def lay(self):
        self.tls, self.scratch = (os.path.join(self.top, name) for name in ("tls", "scratch"))
        for path in (self.tls, self.scratch):
            os.mkdir(path)
        for own, name in enumerate(NAMES):
            table = "127.0.0.1 localhost\n"
            for other, its in enumerate(NAMES):
                table += f"{address(other, own) if other != own else address(own, (own + 1) % len(NAMES))} {its}\n"
            table += f"{address(HEAD, own) if own != HEAD else '127.0.0.1'} {OTHER}\n"
            self.add_host(name, table, [(path, self.own(own, path)) for path in (self.tls, self.scratch)])
        for one, two in CABLES:
            self.lay_cable((one, f"to-{two}", address(one, two)), (two, f"to-{one}", address(two, one)))

    def own(self, host, path):
        """What lies under that path on that host."""
        place = os.path.join(self.top, NAMES[host], os.path.basename(path))
        os.makedirs(place, exist_ok=True)
        return place

    def certify(self, pki):
        """Each host has its certificate where all have theirs."""
        for host, folder in enumerate(pki.folders):
            shutil.copytree(folder, self.own(host, self.tls), dirs_exist_ok=True)

    def spanning(self, host, other):
        """What mpirun on `host` needs to reach the other: in place of ssh, and the cable that leads there."""
        agent = self.rsh_agent(other, NAMES[other], self.scratch)
        cable = f"198.18.{CABLES.index((host, other))}.0/30"
        return {"TMPDIR": self.scratch, "OMPI_MCA_plm_rsh_agent": agent, "OMPI_MCA_btl_tcp_if_include": cable,
                "OMPI_MCA_oob_tcp_if_include": cable}

    def start(self, host, *words, env=None):
        """toroid on that host."""
        return subprocess.Popen(self.inside(host) + [TOROID, *map(str, words)], stdin=subprocess.DEVNULL,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(env))

    def run(self, host, *words, env=None, timeout=60):
        return finish(self.start(host, *words, env=env), timeout)

    def slow(self, rate, one=FIRST, two=SECOND):
        """Between two hosts, in both directions."""
        for end, other in ((one, two), (two, one)):
            succeeded(*self.inside(end), "tc", "qdisc", "add", "dev", f"to-{other}", "root", "tbf", "rate", rate, "burst",
                      "32kbit", "latency", "400ms")

    def cable(self, state, one=FIRST, two=SECOND):
        succeeded(*self.inside(one), "ip", "link", "set", f"to-{two}", state)


class Cluster:
    """A controller on the head, pod a on the first host, pod b on the second, or on it and the third."""

    def __init__(self, hosts, pki, runs, spans=False):
        self.hosts, self.client = hosts, {"TOROID_TLS_DIR": pki.folders[HEAD]}
        self.services = []
        self.controller = self.serve(HEAD, "controller", "--listen", "0.0.0.0:0", "--state", os.path.join(runs, "state"),
                                     "--tls-dir", pki.folders[HEAD])
        self.port = self.controller.split()[1].rpartition(":")[2]
        self.address = f"{NAMES[HEAD]}:{self.port}"
        hosts.certify(pki)
        agent = ["agent", "--controller", self.address, "--root", f"text={TEXT}", "--root", f"runs={runs}", "--tls-dir",
                 hosts.tls, "--pod"]
        self.serve(FIRST, *agent, "a", "--slots", 1)
        if spans:
            self.serve(SECOND, *agent, "b", "--hosts", f"{NAMES[SECOND]}:1,{NAMES[THIRD]}:1",
                       env=hosts.spanning(SECOND, THIRD))
        else:
            self.serve(SECOND, *agent, "b", "--slots", 1)

    def serve(self, host, *words, env=None):
        process = self.hosts.start(host, *words, env=env)
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


def submit(cluster, name, steps, spec=JOB, more=()):
    settings = [f"name={name}", "mesh.pods=2", f"train.steps={steps}", "train.param_hash_every=1", "train.checkpoint.every=0",
                *more]
    sets = [word for setting in settings for word in ("--set", setting)]
    return good(cluster.run("job", "submit", spec, *sets)).out.strip()


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
            check(names == {NAMES[FIRST], NAMES[SECOND]}, names)

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


def test_a_pod_behind_a_pulled_cable_is_left_out_and_returns():
    """Policy CONTINUE: neither pod hears the other; the controller, which hears both, lets one go on."""
    with PodHosts() as hosts, Pki(*NAMES) as pki, tempfile.TemporaryDirectory() as runs:
        with Cluster(hosts, pki, runs) as cluster:
            id = submit(cluster, "left", 100000, more=["train.exchange.policy=CONTINUE", "max_restarts=100"])

            def status():
                return good(cluster.run("job", "get", id, "-o", "json")).json()

            def last():
                return max((own[-1] for own in pods_of(runs, "left")), key=lambda line: line["step"])

            wait_for("steps are made", lambda: min(map(len, pods_of(runs, "left"))) >= 10, 60)
            check(last()["pods"]["taking_part"] == 2, last())
            hosts.cable("down")
            wait_for("one goes on alone", lambda: last()["pods"]["taking_part"] == 1, 20)
            step = last()["step"]
            wait_for("and on", lambda: last()["step"] > step + 20, 30)
            away = status()
            check(away["state"] == "RUNNING" and sorted(pod["state"] == "TRAINING" for pod in away["pods"]) == [False, True],
                  away)
            hosts.cable("up")
            wait_for("both train", lambda: last()["pods"]["taking_part"] == 2 and
                     all(pod["state"] == "TRAINING" for pod in status()["pods"]), 60)
            step = last()["step"]
            wait_for("both go on", lambda: min(own[-1]["step"] for own in pods_of(runs, "left")) > step + 10, 30)
            good(cluster.run("job", "cancel", id))
            hashes = [{line["step"]: line["param_hash"] for line in own} for own in pods_of(runs, "left")]
            common = set(hashes[0]) & set(hashes[1])
            check(max(common) > step and all(hashes[0][at] == hashes[1][at] for at in common), "other weights")
            check(len(set(hashes[0].values())) > 20, "control: weights change")
            wait_for("it has ended", lambda: not processes(r"^\S*toroid worker "), 20)
    no_orphans()


def test_a_pod_that_spans_two_hosts_beside_one_on_a_third():
    """The pod's world is one mpirun over two hosts; each of its ranks speaks to the other pod over its own cable."""
    with PodHosts() as hosts, Pki(*NAMES) as pki, tempfile.TemporaryDirectory() as runs:
        spec = os.path.join(runs, "spans.textproto")
        with open(JOB) as job, open(spec, "w") as file:
            file.write(job.read() + '\npod_mesh { pod: "b" data: 2 }\n')
        with Cluster(hosts, pki, runs, spans=True) as cluster:
            fast = ended(cluster, runs, submit(cluster, "fast", 10, spec), "fast", 10)
            a, b = sorted(fast["pods"], key=lambda pod: pod["pod"])
            check(a["mesh"]["data"] == 1 and b["mesh"]["data"] == 2, fast)

            sent = sum(line["pods"]["bytes_sent"] for line in pods_of(runs, "fast")[1])  # by both ranks
            for other in (SECOND, THIRD):
                hosts.slow(f"{int(8 * sent / 2 / 4)}bit", FIRST, other)
            id = submit(cluster, "pulled", 10, spec)
            wait_for("steps are made", lambda: len(pods_of(runs, "pulled")[1]) >= 3, 60)
            check([len(hosts.ranks_on(host, "worker")) for host in (FIRST, SECOND, THIRD)] == [1, 1, 1], ours())
            hosts.cable("down", FIRST, THIRD)  # of the pod's second rank alone
            time.sleep(1)  # what was on its way has come
            before = len(pods_of(runs, "pulled")[0])
            time.sleep(3)
            check(len(pods_of(runs, "pulled")[0]) - before <= 1, "steps without a cable")
            hosts.cable("up", FIRST, THIRD)
            pulled = ended(cluster, runs, id, "pulled", 10)
            waited = [status["pods"][0]["progress"]["exchange"]["wait_share"] for status in (fast, pulled)]
            check(waited[1] > 0.5 and waited[1] > waited[0], waited)
            check(pulled["agreement"]["hash"] == fast["agreement"]["hash"], "other weights over a pulled cable")
    no_orphans()


def test_a_pod_whose_certificate_is_another_hosts_is_refused():
    """The controller takes it, the other pod does not: it dials a name that the certificate lacks."""
    with PodHosts() as hosts, Pki(*NAMES) as pki, tempfile.TemporaryDirectory() as runs:
        with Cluster(hosts, pki, runs) as cluster:
            shutil.copytree(pki.folders[HEAD], hosts.own(SECOND, hosts.tls), dirs_exist_ok=True)
            id = submit(cluster, "refused", 10)
            watched = cluster.run("job", "watch", id, timeout=60)
            status = cluster.run("job", "get", id, "-o", "json").json()
            check(status["state"] == "FAILED" and status["restarts"] == 0, status)
            for word in ("no line to pod 1 rank 0", NAMES[SECOND], NAMES[HEAD], "toroid pki issue"):
                check(word in watched.err, word, "is missing in", watched.err, watched.out, status)
            check(pods_of(runs, "refused") == [[], []], "steps of pods that do not know each other")
            # Control: with its own certificate again.
            hosts.certify(pki)
            ended(cluster, runs, submit(cluster, "again", 10), "again", 10)
    no_orphans()


def test_peers_that_are_refused():
    """Without a controller, `--pod-peers`: what a pod says of another host's pod with a wrong certificate, or none."""
    peers = f"{NAMES[FIRST]}:7091,{NAMES[SECOND]}:7092"

    def begin(hosts, runs, pod, *more):
        return hosts.start((FIRST, SECOND)[pod], *words(runs, 6, "mesh.pods=2", "train.param_hash_every=1"), "--pod", pod,
                           "--pod-peers", peers, *more)

    with PodHosts() as hosts, Pki(*NAMES) as pki, Pki(*NAMES) as other, tempfile.TemporaryDirectory() as runs:
        mine = ("--tls-dir", pki.folders[FIRST])
        refused(finish(begin(hosts, runs, 0)), 3, NAMES[FIRST], "plaintext", "--tls-dir")
        # Of two CAs each refuses the other: whoever is first says so, and may be gone before the other has seen why.
        worlds = [begin(hosts, runs, 0, *mine), begin(hosts, runs, 1, "--tls-dir", other.folders[SECOND])]
        wait_for("one refuses the other", lambda: any(world.poll() is not None for world in worlds), 30)
        time.sleep(1)
        for world in worlds:
            if world.poll() is None:
                world.send_signal(signal.SIGINT)
        results = [finish(world) for world in worlds]
        check(sorted(result.code for result in results) in ([3, 3], [3, 130]), [result.err for result in results])
        for result, name in zip(results, (f"{NAMES[SECOND]}:7092", f"{NAMES[FIRST]}:7091")):
            if result.code == 3:
                refused(result, 3, name, "not of the CA", "toroid pki issue")
        # Of one CA the host's name decides, on the side that dials it.
        there = begin(hosts, runs, 1, "--tls-dir", pki.folders[HEAD])
        refused(finish(begin(hosts, runs, 0, *mine)), 3, f"{NAMES[SECOND]}:7092", NAMES[HEAD], f"not {NAMES[SECOND]}",
                "toroid pki issue")
        there.send_signal(signal.SIGINT)
        check(finish(there).code == 130, there.returncode)
        # Control: each with its own.
        for world in [begin(hosts, runs, 0, *mine), begin(hosts, runs, 1, "--tls-dir", pki.folders[SECOND])]:
            good(finish(world))
        one, two = (lines(os.path.join(runs, f"pod-{pod}")) for pod in range(2))
        check(len(one) == 6 and one[-1]["param_hash"] == two[-1]["param_hash"], one, two)
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
