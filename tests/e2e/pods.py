"""A training job on several pods: worlds that are started one by one, and find each other."""
import contextlib
import json
import os
import random
import re
import shlex
import shutil
import signal
import socket
import tempfile

from cluster import Up
from harness import *
from tls import Pki
from train import JOB, good, lines, words

TEXT = "/usr/share/common-licenses"

KEEP = "train.exchange.keep_contributions=true"
EXACT = ["mesh.pods=2", "train.param_hash_every=1"]
STREAMING = ["mesh.pods=2", "train.exchange.streaming.every=4", "train.exchange.streaming.fragments=2",
             "train.exchange.streaming.tau=1", "train.exchange.codec=INT8"]


def addresses(host="127.0.0.1", count=2):
    """Free ports of this machine, in the order of pods: below those that Linux gives to who asks for any."""
    with contextlib.ExitStack() as stack:
        ports = []
        while len(ports) < count:
            port = random.randrange(10000, 30000)
            with contextlib.suppress(OSError):
                stack.enter_context(socket.socket()).bind(("", port))
                ports.append(port)
        return ",".join(f"{host}:{port}" for port in ports)


def begin(top, *settings, ranks=(2, 1), more=((), ()), steps=12, peers=None):
    """Starts two worlds."""
    peers = peers or addresses()
    return [start("launch", "-n", ranks[pod], "-q", *words(top, steps, *settings), "--pod", pod, "--pod-peers", peers,
                  "-o", "json", *more[pod]) for pod in range(2)]


def pods(*arguments, **options):
    """Runs two worlds to their end; their results."""
    return [finish(world, 60) for world in begin(*arguments, **options)]


def of_pod(top, pod):
    return os.path.join(top, f"pod-{pod}")


def test_unlike_worlds_take_the_same_exact_steps():
    with tempfile.TemporaryDirectory() as top, tempfile.TemporaryDirectory() as other:
        for pod, result in enumerate(pods(top, *EXACT, KEEP)):
            answer = good(result).json()
            check(answer["steps"] == 12 and answer["loss"] < answer["first_loss"], answer)
            check(answer["mesh"]["pods"] == 2 and answer["mesh"]["data"] == 2 - pod, answer["mesh"])
            check(answer["directory"] == of_pod(top, pod), answer["directory"])
        one, two = (lines(of_pod(top, pod)) for pod in range(2))
        check([line["step"] for line in one] == list(range(1, 13)), one)
        check([line["param_hash"] for line in one] == [line["param_hash"] for line in two], one, two)
        check(len({line["param_hash"] for line in one}) == 12, "weights that do not move:", one)
        check([line["loss"] for line in one] == [line["loss"] for line in two], "exact: the loss of the whole batch")
        for line in one + two:
            check(line["pods"]["taking_part"] == 2 and line["pods"]["staleness"] == 0, line)
            check(line["pods"]["bytes_sent"] > 0 and line["pods"]["wait_s"] >= 0, line)
        # One pod with the whole batch: the same run up to rounding; another seed is not.
        good(run(*words(other, 12, "train.param_hash_every=1"), "-q"))
        alone = [line["loss"] for line in lines(other)]
        check(max(abs(a - b["loss"]) / a for a, b in zip(alone, one, strict=True)) < 1e-4, alone, one)
        check(lines(other)[-1]["param_hash"] != one[-1]["param_hash"], "sums of other orders")
        # Both go on from step 12, and are the same again.
        for result in pods(top, *EXACT, KEEP, steps=14):
            good(result)
            check("resumed from" in result.err, result.err)
        one, two = (lines(of_pod(top, pod)) for pod in range(2))
        check(one[-1]["step"] == 14 and one[-1]["param_hash"] == two[-1]["param_hash"], one[-1], two[-1])
        # And can be made again from what they kept, weights and all.
        answer = good(run("verify", "--replay", top, "-o", "json")).json()
        for pod in answer["pods"]:
            check(pod["merges"] == pod["replayed"] == 14, answer)
            check(pod["weights"] == {"steps_compared": 14, "first_step": 1, "last_step": 14, "not_made": None,
                                     "param_hash": one[-1]["param_hash"]}, pod)
        metrics = os.path.join(of_pod(top, 1), "metrics.jsonl")
        with open(metrics) as file:
            text = file.read()
        with open(metrics, "w") as file:
            file.write(text.replace(two[6]["param_hash"], two[5]["param_hash"]))
        refused(run("verify", "--replay", top), 1, "pod-1: step 7: the weights had the hash " + two[5]["param_hash"])
        os.remove(metrics)
        check("compared with nothing" in good(run("verify", "--replay", of_pod(top, 1))).err, "no word of it")
    no_orphans()


def test_streaming_pods_agree_on_the_outer_weights():
    with tempfile.TemporaryDirectory() as top:
        for result in pods(top, *STREAMING, "train.param_hash_every=1"):
            answer = good(result).json()
            check(answer["steps"] == 12 and answer["loss"] < answer["first_loss"], answer)
        one, two = (lines(of_pod(top, pod)) for pod in range(2))
        check(one[-1]["param_hash"] != two[-1]["param_hash"], "each pod has weights of its own")
        check(one[-1]["pods"]["outer_hash"] == two[-1]["pods"]["outer_hash"], one[-1], two[-1])
        check(one[-1]["pods"]["outer_hash"] != one[0]["pods"]["outer_hash"], "outer weights that do not move")
        # Sent after each second step, applied after the one that follows.
        check([line["pods"]["staleness"] for line in one] == [0, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0], one)
        sent = sum(line["pods"]["bytes_sent"] for line in one)
        with tempfile.TemporaryDirectory() as other:
            for result in pods(other, *EXACT, ranks=(1, 1)):
                good(result)
            exact = sum(line["pods"]["bytes_sent"] for line in lines(of_pod(other, 0)))
            check(0 < 10 * sent < exact, sent, exact)  # 12 / 4 rounds of one byte against 12 steps of four
    no_orphans()


def test_merges_are_made_again():
    with tempfile.TemporaryDirectory() as top:
        for result in pods(top, *STREAMING, "train.param_hash_every=1", KEEP):
            good(result)
        answer = good(run("verify", "--replay", top, "-o", "json")).json()
        check(answer["pass"] and [pod["merges"] for pod in answer["pods"]] == [6, 6], answer)
        check(all(pod["replayed"] == 6 for pod in answer["pods"]), answer)
        check(len({pod["outer_hash"] for pod in answer["pods"]}) == 1, answer)
        check(not any("weights" in pod for pod in answer["pods"]), answer)
        good(run("verify", "--replay", of_pod(top, 1)))
        kept = os.path.join(of_pod(top, 1), "contributions", "from-00000000", "step-00000006-0.rank-0000")
        with open(kept, "r+b") as file:
            file.seek(-9, os.SEEK_END)
            byte = file.read(1)[0]
            file.seek(-9, os.SEEK_END)
            file.write(bytes([byte ^ 1]))
        changed = run("verify", "--replay", top)
        refused(changed, 3, "step-00000006-0.rank-0000", "not whole")
        os.remove(kept)
        refused(run("verify", "--replay", top), 3, "step-00000006-0.rank-0000", "keep_contributions")
        refused(run("verify", "--replay", os.path.join(top, "nowhere")), 3, "merges.log")
        refused(run("verify", "random:tiny-gqa", "--replay", top), 2, "--replay")
        refused(run(*words(top, 4, "mesh.pods=2", "train.exchange.policy=CONTINUE"), "--pod", 0, "--pod-peers",
                    addresses()), 3, "CONTINUE", "HALT")


def test_a_slow_link_that_breaks():
    """The same weights, later: what waits is shown."""
    def waited(*link):
        with tempfile.TemporaryDirectory() as top:
            for result in pods(top, *EXACT, ranks=(1, 1), more=(link, link)):
                good(result)
            one, two = (lines(of_pod(top, pod)) for pod in range(2))
            check([line["param_hash"] for line in one] == [line["param_hash"] for line in two], one, two)
            bytes_sent = sum(line["pods"]["bytes_sent"] for line in one)
            return one[-1]["param_hash"], sum(line["pods"]["wait_s"] for line in one), bytes_sent
    fast = waited()
    rate = fast[2] / 6  # of six seconds
    slow = waited("--link-rate", int(rate), "--link-latency", "5ms", "--link-cuts", "500ms")
    check(slow[0] == fast[0] and abs(slow[2] - fast[2]) < 0.01 * fast[2], slow, fast)
    check(slow[1] > 4 and slow[1] > 2 * fast[1], slow, fast)
    late = waited("--link-jitter", "200ms", "--link-seed", 7)  # the last of a step's messages: about 150 ms
    check(late[0] == fast[0] and late[1] > 1 + fast[1], late, fast)
    no_orphans()


def test_a_slow_link_takes_what_plan_says():
    """Steps on a thin link are as long as plan's formula has them (spec A9: within 10%), and what it says hides the
    exchange does. The link takes 0.6 s for a step's gradients, of a model that computes it in a fiftieth of that: what
    a busy machine adds is little beside it."""
    def run_pods(settings, steps, link):
        """Each step's seconds of the slower pod, and the share of them for which both waited: for the link. A pod that
        waits for one that is behind does so alone, whatever else the machine does."""
        with tempfile.TemporaryDirectory() as top:
            for result in pods(top, "mesh.pods=2", "train.checkpoint.every=0", *settings, ranks=(1, 1),
                               more=(link, link), steps=steps):  # a checkpoint waits for what is on its way
                good(result)
            both = list(zip(*(lines(of_pod(top, pod)) for pod in range(2)), strict=True))
        took = [max(line["step_s"] for line in step) for step in both]
        return took, sum(min(line["pods"]["wait_s"] for line in step) for step in both) / sum(took)

    def plan(settings, rate, step_s, *more):
        asked = run("plan", *words("unused", 20, "mesh.pods=2", *settings)[1:], "--mesh", "data=1", "--link-rate",
                    int(rate), "--step-seconds", step_s, *more)
        return good(asked)

    with tempfile.TemporaryDirectory() as top:
        good(launch(1, *words(top, 40)))
        alone = min(line["step_s"] for line in lines(top))  # whatever else the machine does
    rate = plan((), 1e9, alone, "-o", "json").json()["exchange"]["own"]["turn_bytes"] / 0.6
    link = ("--link-rate", int(rate))
    for settings, steps, every in (((), 6, 1), (("train.exchange.delayed={}",), 6, 1),
                                   (("train.exchange.diloco.every=2",), 10, 2)):
        exposed, doubled = (plan(settings, speed, alone, "-o", "json").json()["exchange"]["own"]["exposed_s"]
                            for speed in (rate, 2 * rate))
        took, waited = run_pods(settings, steps, link)
        # The least, as `alone` is: what a neighbour adds to a step is nobody's formula.
        took = min(sum(took[i:i + every]) / every for i in range(every, steps, every))
        check(abs((alone + exposed) / took - 1) < 0.1, settings, "planned", alone + exposed, "took", took)
        check(abs((alone + doubled) / took - 1) > 0.1, "negative control: a link twice as fast")
        check(waited > 0.8, settings, waited)

    text = plan((), rate, alone).out
    advice = re.search(r"hidden with (--set .*?): speed-up", text)
    check("it is not hidden" in text and advice, text)
    hidden = " ".join(word for word in shlex.split(advice.group(1)) if word != "--set")
    every, fragments, tau = (int(re.search(rf"streaming.{name}=(\d+)", hidden).group(1))
                             for name in ("every", "fragments", "tau"))
    check(tau > 2, "one step is to hide far less:", hidden)
    waited = run_pods(hidden.split(), 2 * every, link)[1]
    check(waited < 0.2, hidden, waited)
    short = hidden.replace(f"every={every}", f"every={2 * fragments}").replace(f"tau={tau}", "tau=1")
    waited = run_pods(short.split(), 6 * fragments, link)[1]
    check(waited > 0.3, "negative control: the same, applied too early:", short, waited)
    no_orphans()


def test_pods_that_do_not_fit_are_refused():
    """Both sides say what differs, with both values."""
    for settings, *said in [(["train.exchange.codec=INT8"], "exchange", "codec int8", "codec fp32"),
                            (["model.shape.preset=tiny-mha"], "model"),
                            (["train.steps=9"], "steps", "9", "8")]:
        with tempfile.TemporaryDirectory() as top:
            more = [word for setting in settings for word in ("--set", setting)]
            for result in pods(top, *EXACT, ranks=(1, 1), more=((), more), steps=8):
                refused(result, 3, *said)
    no_orphans()


def test_what_is_said_of_pods():
    line = "mpirun ... toroid train job.textproto --pod 0 --pod-peers hostA:7091,hostB:7091"
    with tempfile.TemporaryDirectory() as top:
        job = words(top, 4, "mesh.pods=2")
        refused(run(*job), 3, "mesh.pods: 2", line)
        refused(launch(2, *job), 3, "mesh.pods: 2", line)
        refused(run(*job, "--pod", 0), 2, "--pod-peers", line)
        refused(run(*job, "--pod-peers", "a:1,b:2"), 2, "--pod", line)
        for flag in (("--link-rate", "1MB"), ("--link-jitter", "1ms"), ("--link-seed", 3)):
            refused(run(*job, *flag), 2, flag[0], "--pod-peers")
        refused(run(*job, "--pod", 2, "--pod-peers", "a:1,b:2"), 2, "--pod", "0 to 1")
        refused(run(*job, "--pod", 0, "--pod-peers", "127.0.0.1:1,127.0.0.1:2,127.0.0.1:3"), 3, "mesh.pods: 2", "3")
        refused(run(*words(top, 4), "--pod", 0, "--pod-peers", "127.0.0.1:1,127.0.0.1:2"), 3, "mesh.pods: 1", "2")
        refused(run(*job, "--pod", 0, "--pod-peers", "127.0.0.1,127.0.0.1:2"), 3, "127.0.0.1", "host")
        refused(run(*job, "--pod", 0, "--pod-peers", "a:1,b:2", "--controller", "127.0.0.1:1"), 2, "--controller")
        refused(run(*job, "--set", "pod_mesh.pod=b", "--pod", 0, "--pod-peers", "127.0.0.1:1,127.0.0.1:2"), 3,
                "pod_mesh", "b", "0 to 1")
        refused(run(*job, "--pod", 0, "--pod-peers", "10.0.0.1:1,127.0.0.1:2"), 3, "10.0.0.1", "--tls-dir")
        check(not os.path.exists(os.path.join(top, "metrics.jsonl")), "a run that was refused")


def test_pods_over_tls():
    with tempfile.TemporaryDirectory() as top, Pki("localhost", "localhost") as pki, Pki("localhost") as other:
        peers = addresses("localhost")
        mine, _ = pki.folders
        tls = ("--tls-dir", mine)
        for result in pods(top, *EXACT, ranks=(1, 1), more=(tls, tls), peers=peers, steps=4):
            good(result)
        one, two = (lines(of_pod(top, pod)) for pod in range(2))
        check(one[-1]["param_hash"] == two[-1]["param_hash"], one, two)
        shutil.rmtree(of_pod(top, 0))
        shutil.rmtree(of_pod(top, 1))
        worlds = begin(top, *EXACT, ranks=(1, 1), more=(tls, ("--tls-dir", other.folders[0])), peers=peers, steps=4)
        wait_for("one refuses the other", lambda: any(world.poll() is not None for world in worlds), 30)
        for world in worlds:  # the other may not have heard of it, and waits
            if world.poll() is None:
                world.send_signal(signal.SIGINT)
        results = [finish(world) for world in worlds]
        check(any("not of the CA" in result.err for result in results), [result.err for result in results])
        check(all(result.code != 0 for result in results), [result.code for result in results])
    no_orphans()


def test_ctrl_c_while_a_pod_is_waited_for():
    with tempfile.TemporaryDirectory() as top:
        world = start("launch", "-n", 2, "-q", *words(top, 8, *EXACT), "--pod", 0, "--pod-peers", addresses())
        told = b""
        while b"waiting for pod 1" not in told:
            piece = world.stderr.readline()
            check(piece, "ended without a word:", told)
            told += piece
        world.send_signal(signal.SIGINT)
        result = finish(world, 30)
        check(result.code == 130, result.code, result.err)
    no_orphans()


def test_a_pod_started_by_hand_that_is_killed():
    """Policy HALT: the others wait for it; once it is started again they end with a word of what to do, and all, started
    again as it says, go on from the newest step that they have in common, alike."""
    settings = [*EXACT, "mesh.pods=3", "train.checkpoint.every=10"]
    steps, peers = 120, addresses(count=3)

    def world(top, pod):
        return start("launch", "-n", 1, "-q", *words(top, steps, *settings), "--pod", pod, "--pod-peers", peers)

    with tempfile.TemporaryDirectory() as top:
        worlds = [world(top, pod) for pod in range(3)]
        wait_for("steps are made", lambda: min(len(lines(of_pod(top, pod))) for pod in range(3)) >= 25, 60)
        (victim,) = processes(r"^\S*toroid train .*--pod 1 ")
        os.kill(victim, signal.SIGKILL)
        check(finish(worlds[1]).code != 0, "a world that was killed")
        done = lines(of_pod(top, 0))[-1]["step"]
        check(done < steps - 20, "it was killed too late:", done)
        worlds[1] = world(top, 1)
        for pod in (0, 2):
            refused(finish(worlds[pod], 60), 1, "pod 1 was started anew", "start all pods again")
            check(lines(of_pod(top, pod))[-1]["step"] <= done + 1, "steps without pod 1")
        worlds[1].send_signal(signal.SIGINT)
        finish(worlds[1])
        worlds = [world(top, pod) for pod in range(3)]
        resumed = set()
        for each in worlds:
            result = finish(each, 40)
            good(result)
            resumed.add(re.search(r"resumed from \S*step-(\d+)", result.err).group(1))
        check(len(resumed) == 1 and 20 <= int(resumed.pop()) <= done, resumed, done)
        of_pods = [lines(of_pod(top, pod)) for pod in range(3)]
        for each in of_pods:
            check([line["step"] for line in each] == list(range(1, steps + 1)), "a step twice, or none")
            check([line["param_hash"] for line in each] == [line["param_hash"] for line in of_pods[0]], "other weights")
    no_orphans()


def test_a_controller_starts_a_job_on_two_pods():
    """Killed on one of them, both start again, and end with the weights of a run that nobody disturbed."""
    with tempfile.TemporaryDirectory() as runs, tempfile.TemporaryDirectory() as alone:
        with Up(1, 2, "--root", f"text={TEXT}", "--root", f"runs={runs}") as up:
            id = good(up.run("job", "submit", JOB, "--set", "mesh.pods=2")).out.strip()
            wait_for("it says why it waits", lambda: "needs 2 pods" in up.run("job", "get", id).out)
            good(up.run("job", "cancel", id))
        with Up(2, 1, "--root", f"text={TEXT}", "--root", f"runs={runs}") as up:
            settings = ["mesh.pods=2", "train.steps=300", "train.schedule.kind=CONSTANT", "train.checkpoint.every=10",
                        "train.param_hash_every=10"]
            sets = [word for setting in settings for word in ("--set", setting)]
            job = os.path.join(runs, "licence")
            id = good(up.run("job", "submit", JOB, *sets)).out.strip()
            wait_for("steps are made", lambda: len(lines(of_pod(job, 1))) >= 25, 60)
            os.kill(processes(r"^\S*toroid worker ")[-1], signal.SIGKILL)
            watched = good(up.run("job", "watch", id, "--from-sequence", 1, "-o", "jsonl", timeout=120))
            states = [json.loads(line)["job"]["state"] for line in watched.out.splitlines()]
            check("RESTARTING" in states and states[-1] == "SUCCEEDED", states)
            status = good(up.run("job", "get", id, "-o", "json")).json()
            check(sorted(status["pod"].split(",")) == ["a", "b"] and status["restarts"] == 1, status)
            check(status["result"]["mesh"]["pods"] == 2 and status["result"]["steps"] == 300, status["result"])
            told = good(up.run("job", "logs", id)).out
            for said in ("pod 0: step 300/300", "pod 1: step 300/300", "pod 0: resumed from", "pod 1: resumed from"):
                check(said in told, said, "is missing in", told)
            check(all(pod["state"] == "READY" for pod in up.run("pods", "-o", "json").json()["pods"]), "pods")
        one, two = (lines(of_pod(job, pod)) for pod in range(2))
        check([line["step"] for line in one] == list(range(1, 301)), [line["step"] for line in one])
        check([line.get("param_hash") for line in one] == [line.get("param_hash") for line in two], "other weights")
        check(one[-1]["epoch"] > one[0]["epoch"], one[-1])
        peers = addresses()
        worlds = [start("train", JOB, *sets, "--set", f"output.dir={alone}", "--pod", pod, "--pod-peers", peers, "-q")
                  for pod in range(2)]
        for world in worlds:
            good(finish(world, 60))
        check(lines(of_pod(alone, 0))[-1]["param_hash"] == one[-1]["param_hash"], "another run's weights")
    no_orphans()


def test_a_controller_gives_pods_unlike_meshes_and_tells_of_each():
    with tempfile.TemporaryDirectory() as runs:
        spec = os.path.join(runs, "unlike.textproto")
        with open(JOB) as job, open(spec, "w") as file:
            file.write(job.read() + '\npod_mesh { pod: "b" tensor: 2 }\n')
        sets = [word for setting in (*EXACT, "mesh.data=1", "mesh.ring=2", "train.steps=12", "train.checkpoint.every=4")
                for word in ("--set", setting)]
        link = ("--link-latency", "1ms", "--link-jitter", "2ms", "--link-seed", 9)
        with Up(2, 2, "--root", f"text={TEXT}", "--root", f"runs={runs}", *link) as up:
            check(len(processes("toroid agent .*" + ".*".join(map(str, link)))) == 2, "agents are told of the link")
            refused(up.run("job", "submit", JOB, "--set", "mesh.ring=2", "--set", "pod_mesh.pod=b"), 3, "pod_mesh")
            id = good(up.run("job", "submit", spec, *sets)).out.strip()
            watched = good(up.run("job", "watch", id, timeout=60))
            check("loss b " in watched.out and ", a " in watched.out and " waited " in watched.out, watched.out)
            status = good(up.run("job", "get", id, "-o", "json")).json()
            check(status["state"] == "SUCCEEDED", status)
            a, b = sorted(status["pods"], key=lambda pod: pod["pod"])
            check(a["mesh"]["ring"] == 2 and a["mesh"]["tensor"] == 1, a)
            check(b["mesh"]["ring"] == 1 and b["mesh"]["tensor"] == 2, b)
            for pod in (a, b):
                progress, exchange = pod["progress"], pod["progress"]["exchange"]
                check(progress["done"] == 12 and progress["loss"] > 0, pod)
                check(exchange["bytes_sent"] > 0 and 0 <= exchange["wait_share"] <= 1, pod)
                check(exchange["taking_part"] == 2 and exchange["staleness"] == 0 and exchange["hash_step"] == 12, pod)
                check(exchange["dropped"] == exchange["hurried"] == exchange["reconnects"] == 0, pod)
                check(pod["checkpoint"]["step"] == 12 and "runs/" in pod["checkpoint"]["path"], pod)
            check(a["progress"]["exchange"]["hash"] == b["progress"]["exchange"]["hash"], a, b)
            agreement = status["agreement"]
            check(agreement == {"checkpoint_step": 12, "hash_step": 12, "hashes_differ": False,
                                "hash": a["progress"]["exchange"]["hash"]}, agreement)
        job = os.path.join(runs, "licence")
        one, two = (lines(of_pod(job, pod)) for pod in range(2))
        check([line["param_hash"] for line in one] == [line["param_hash"] for line in two], one, two)
        check(one[-1]["param_hash"] == agreement["hash"], one[-1], agreement)
    no_orphans()


def test_pods_go_on_without_one_that_is_killed():
    """No restart: the two that are left end the job, alike, and their merges can be made again."""
    for mode in (["train.exchange.exact={}"], ["train.exchange.streaming.every=4", "train.exchange.streaming.tau=1",
                                                "train.exchange.streaming.fragments=2", "train.exchange.codec=INT8"]):
        with tempfile.TemporaryDirectory() as runs, Up(3, 1, "--root", f"text={TEXT}", "--root", f"runs={runs}") as up:
            settings = ["mesh.pods=3", "train.steps=300", "train.schedule.kind=CONSTANT", "train.param_hash_every=1",
                        "train.exchange.policy=CONTINUE", KEEP, "max_restarts=0", *mode]
            sets = [word for setting in settings for word in ("--set", setting)]
            job = os.path.join(runs, "licence")
            id = good(up.run("job", "submit", JOB, *sets)).out.strip()
            wait_for("steps are made", lambda: len(lines(of_pod(job, 2))) >= 25, 60)
            os.kill(processes(r"^\S*toroid worker ")[0], signal.SIGKILL)
            watched = good(up.run("job", "watch", id, "--from-sequence", 1, "-o", "jsonl", timeout=120))
            events = [json.loads(line)["job"] for line in watched.out.splitlines()]
            check(all(event["state"] != "RESTARTING" for event in events) and events[-1]["state"] == "SUCCEEDED", events)
            check(any("1 of 3 pods lost" in event.get("message", "") for event in events), events)
            left = [pod for pod in range(3) if lines(of_pod(job, pod))[-1]["step"] == 300]
            check(len(left) == 2, "two pods end:", left)
            one, two = (lines(of_pod(job, pod)) for pod in left)
            name = "param_hash" if "exact" in mode[0] else "outer_hash"
            hashes = [[{**line, **line["pods"]}.get(name) for line in pod] for pod in (one, two)]
            check(len(hashes[0]) == 300 and hashes[0] == hashes[1], "other weights")
            check(one[0]["pods"]["taking_part"] == 3 and one[-1]["pods"]["taking_part"] == 2, one[0], one[-1])
            waits = max(line["step_s"] for line in one[10:])
            check(waits < 3, "idle for", waits)  # mpirun takes two seconds to say that a rank was killed
            for pod in left:
                answer = good(run("verify", "--replay", of_pod(job, pod), "-o", "json")).json()
                check(answer["pass"], answer)
    no_orphans()


if __name__ == "__main__":
    main()
