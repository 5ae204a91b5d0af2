"""Jobs as a client sees them: the files of deploy/jobs run, are watched, repeated, cancelled, and go on."""
import glob
import json
import os
import re
import shutil
import signal
import tempfile

from cluster import Up
from harness import *

DIRECTORY = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "deploy", "jobs")
GENERATE = os.path.join(DIRECTORY, "generate.textproto")
ENDLESS = ["--set", "generate.max_tokens=30000"]
TRAIN = os.path.join(DIRECTORY, "train.textproto")
TEXT = "/usr/share/common-licenses"


def good(result):
    check(result.code == 0, result.code, result.err)
    return result


def lines(result):
    return [json.loads(line) for line in good(result).out.splitlines()]


def state(up, id):
    return good(up.run("job", "get", id, "-o", "json")).json()["state"]


def training_up(runs):
    """A pod that knows where the text is, and where runs are to be written."""
    return Up(1, 2, "--root", f"text={TEXT}", "--root", f"runs={runs}")


def losses(directory):
    """(step, loss) of each whole line of metrics.jsonl."""
    try:
        with open(os.path.join(directory, "metrics.jsonl")) as file:
            return [(s["step"], s["loss"]) for s in (json.loads(line) for line in file if line.endswith("\n"))]
    except FileNotFoundError:
        return []


def test_every_file_runs():
    files = sorted(glob.glob(os.path.join(DIRECTORY, "*.textproto")))
    check([os.path.basename(f) for f in files] ==
          ["generate.textproto", "pool.textproto", "score.textproto", "train.textproto"], files)
    files = [file for file in files if not file.endswith("pool.textproto")]  # it ends when it is told to: pools.py
    with tempfile.TemporaryDirectory() as runs, training_up(runs) as up:
        submitted = {}
        for file in files:
            id = good(up.run("job", "submit", file)).out.strip()
            states = [event["job"]["state"] for event in lines(up.run("job", "watch", id, "-o", "jsonl"))]
            check(states[-1] == "SUCCEEDED", states)
            events = lines(up.run("job", "watch", id, "--from-sequence", 1, "-o", "jsonl"))
            whole = up.run("job", "watch", id, "--from-sequence", 1, "-o", "json").json()
            check(whole["events"] == events, whole)
            check([e["sequence"] for e in events] == list(range(1, len(events) + 1)), events)
            check([e["job"]["state"] for e in events][0] == "QUEUED", events)
            job = up.run("job", "get", id, "-o", "json").json()
            axis = "data" if file == TRAIN else "ring"
            check(job["state"] == "SUCCEEDED" and job["mesh"][axis] == 2, job)
            submitted[id] = job
            said = lines(up.run("job", "logs", id, "-o", "jsonl"))
            check(up.run("job", "logs", id, "-o", "json").json()["lines"] == said, said)
            detail = good(up.run("job", "get", id, "-v")).err
            check(file == TRAIN or ("prefill: " in detail and "memory per rank: " in detail), detail)
            check(good(up.run("job", "get", id)).err == "", "detail without -v")
        generated, scored, trained = submitted.values()
        check(len(generated["result"]["ids"]) == 16, generated)
        check(scored["result"]["tokens"] > 10 and scored["result"]["mean_nll"] > 0, scored)
        result = trained["result"]
        check(result["steps"] == 40 and result["loss"] < result["first_loss"], result)
        check(result["checkpoint"] == "runs/licence/checkpoints/step-00000040", result)
        check(os.path.isfile(os.path.join(runs, "licence", "checkpoints", "step-00000040", "manifest.json")), result)
        check([step for step, _ in losses(os.path.join(runs, "licence"))] == list(range(1, 41)), "metrics")
        listed = up.run("job", "list", "-o", "json").json()["jobs"]
        check([job["id"] for job in listed] == list(reversed(submitted)), listed)
        check(up.run("job", "list", "--state", "RUNNING", "-o", "json").json()["jobs"] == [], "list")
    no_orphans()


def test_what_is_commented_out_is_a_spec_too():
    for name in ("generate", "pool", "score", "train"):
        with open(os.path.join(DIRECTORY, f"{name}.textproto")) as file:
            text = file.read()
        shown = re.sub(r"^( *)# (\w+(:| \{) )", r"\1\2", text, flags=re.MULTILINE)
        check(shown != text, name)
        for twice in ("mesh { ring: -1", "prompt { text: \"Hello\"", "mesh { data: 1", "model { path: \"models",
                      "optimizer { adafactor"):
            field = twice.split()[0]
            if twice in shown:  # instead of the line before it
                shown = re.sub(rf"^ *{field} .*\n( *{field} )", r"\1", shown, flags=re.MULTILINE)
        with tempfile.NamedTemporaryFile("w", suffix=".textproto") as file:
            file.write(shown)
            file.flush()
            with Up(1, 2) as up:
                good(up.run("job", "submit", file.name))
                refused(up.run("job", "submit", file.name, "--set", "generate.sede=1"), 3, "sede")


def test_json_and_yaml_say_the_same():
    spec = {"seed": 1, "mesh": {"ring": 2}, "model": {"path": MODEL},
            "generate": {"prompt": {"text": "The ring turns."}, "max_tokens": 16, "ignore_eos": True}}
    yaml = f"""
seed: 1
mesh: {{ring: 2}}
model:
  path: {MODEL!r}
generate:
  prompt:
    text: The ring turns.
  max_tokens: 16
  ignore_eos: true
"""
    with Up(1, 2) as up, tempfile.TemporaryDirectory() as top:
        want = up.run("job", "submit", GENERATE, "--wait", "-o", "json").json()["result"]["ids"]
        for name, text in (("job.json", json.dumps(spec)), ("job.yaml", yaml)):
            path = os.path.join(top, name)
            with open(path, "w") as file:
                file.write(text)
            got = good(up.run("job", "submit", path, "--wait", "-o", "json")).json()
            check(got["result"]["ids"] == want, name, got, want)
        other = up.run("job", "submit", path, "--set", "seed=2", "--wait", "-o", "json").json()
        check(other["result"]["ids"] != want, "another seed must give other tokens")


def test_several_answers_are_in_the_result():
    with Up(1, 2) as up:
        job = up.run("job", "submit", GENERATE, "--set", "generate.n=2", "--set", "generate.sampling.temperature=1",
                     "--set", "generate.more_prompts.text=abc", "--wait", "-o", "json").json()
        check("result" not in job, job)
        check([(r["prompt_index"], r["index"]) for r in job["results"]] == [(0, 0), (0, 1), (1, 0), (1, 1)], job)
        check(len({tuple(r["ids"]) for r in job["results"]}) == 4, job)
        text = good(up.run("job", "get", job["id"]))
        check(text.out.endswith("".join(r["text"] + "\n" for r in job["results"])), repr(text.out))
        check(text.err.count("prompt 1, answer 0:") == 1, text.err)


def test_a_running_job_is_cancelled_and_its_pod_takes_the_next():
    with Up(1, 2) as up:
        id = good(up.run("job", "submit", GENERATE, *ENDLESS)).out.strip()
        wait_for("the job runs", lambda: state(up, id) == "RUNNING")
        watcher = up.start("job", "watch", id)
        good(up.run("job", "cancel", id))
        watched = finish(watcher)
        check("CANCELLED" in watched.out.splitlines()[-1], watched.out)
        refused(watched, 5, id, "cancelled")
        check(state(up, id) == "CANCELLED", "get")
        good(up.run("job", "cancel", id))  # ended jobs stay as they are
        good(up.run("job", "submit", GENERATE, "--wait"))
    no_orphans()


def test_a_dead_rank_ends_the_job_and_stands_in_its_log():
    with Up(1, 2) as up:
        id = good(up.run("job", "submit", GENERATE, *ENDLESS, "--set", "max_restarts=0")).out.strip()
        wait_for("the job runs", lambda: state(up, id) == "RUNNING")
        follower = up.start("job", "logs", id, "--follow")
        os.kill(processes(r"^\S*toroid worker ")[-1], signal.SIGKILL)
        refused(up.run("job", "watch", id), 5, id, "rank 1", "signal 9")
        log = good(finish(follower)).out
        check("signal 9" in log, log)
        check(good(up.run("job", "logs", id)).out == log, "the log of an ended job")
        check(up.run("job", "get", id, "-o", "json").json()["exit"]["signal"] == 9, "get")
    no_orphans()


def test_a_training_job_goes_on_after_a_dead_rank():
    with tempfile.TemporaryDirectory() as runs, tempfile.TemporaryDirectory() as alone, training_up(runs) as up:
        sets = ["--set", "train.steps=300", "--set", "train.schedule.kind=CONSTANT", "--set", "train.checkpoint.every=10"]
        id = good(up.run("job", "submit", TRAIN, *sets)).out.strip()
        run_of_job = os.path.join(runs, "licence")
        wait_for("steps are made", lambda: len(losses(run_of_job)) >= 25, 60)
        os.kill(processes(r"^\S*toroid worker ")[-1], signal.SIGKILL)
        watched = lines(up.run("job", "watch", id, "--from-sequence", 1, "-o", "jsonl", timeout=120))
        states = [event["job"]["state"] for event in watched]
        check("RESTARTING" in states and states[-1] == "SUCCEEDED", states)
        job = watched[-1]["job"]
        check(job["restarts"] == 1 and job["epoch"] == 2 and job["result"]["steps"] == 300, job)
        log = good(up.run("job", "logs", id)).out
        check("resumed from runs/licence/checkpoints/step-" in log and runs not in log, log)
        check("signal 9" in log and "step 300/300  loss " in log, log)
        last = glob.glob(os.path.join(run_of_job, "checkpoints", "step-*"))
        seen = good(run("inspect", max(last), "-o", "json")).json()["checkpoint"]
        told = job["checkpoint"]  # what the store has committed is what lies there
        check(told["path"] == "runs/licence/checkpoints/step-00000300" and told["step"] == 300, told)
        check(told["hash"] == seen["hash"] and told["epoch"] == seen["epoch"] == 2, told, seen)
        check(job["restarts_since_checkpoint"] == 0, job)
        check(f"checkpoint  step 300  {told['path']}" in good(up.run("job", "get", id)).out, "job get")
        # The same numbers as a run that nobody disturbed.
        good(launch(2, "train", TRAIN, *sets, "--set", f"output.dir={alone}", "-q"))
        check(losses(run_of_job) == losses(alone), "another curve")
    no_orphans()


class Services:
    """A controller and its agents, each a process of its own: one can be killed and started again."""

    def __init__(self, state, *words, pods="a", slots=2):
        self.state, self.address = state, "127.0.0.1:0"
        self.words, self.slots, self.agents = words, slots, []
        self.start_controller()
        for pod in pods:
            self.start_agent(pod)
        wait_for("the pods are there", lambda: self.run("pods").out.count("READY") == len(pods))

    def start_agent(self, pod):
        self.agents.append(start("agent", "--pod", pod, "--slots", self.slots, "--controller", self.address, *self.words))

    def start_controller(self):
        self.controller = start("controller", "--listen", self.address, "--state", self.state)
        line = self.controller.stdout.readline().decode()
        check(line.startswith("READY "), line)
        self.address = line.split()[1]

    def kill_controller(self):
        self.controller.kill()
        finish(self.controller)

    def run(self, *words, **options):
        return run(*words, env={"TOROID_CONTROLLER": self.address}, **options)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in (*self.agents, self.controller):
            process.send_signal(signal.SIGTERM)
            finish(process)


def test_a_controller_that_dies_stops_no_training():
    with tempfile.TemporaryDirectory() as runs, tempfile.TemporaryDirectory() as state, \
            Services(state, "--root", f"text={TEXT}", "--root", f"runs={runs}") as services:
        run_of_job = os.path.join(runs, "licence")
        sets = ["--set", "train.schedule.kind=CONSTANT", "--set", "train.checkpoint.every=20", "--set", "max_restarts=0"]
        id = good(services.run("job", "submit", TRAIN, *sets, "--set", "train.steps=1000")).out.strip()
        for _ in range(2):
            made = len(losses(run_of_job))
            wait_for("steps are made", lambda: len(losses(run_of_job)) >= made + 20, 60)
            ranks = processes(r"^\S*toroid worker ")
            services.kill_controller()
            made = len(losses(run_of_job))
            wait_for("steps are made without it", lambda: len(losses(run_of_job)) >= made + 20, 60)
            services.start_controller()
            wait_for("it knows of steps again", lambda: "progress" in services.run("job", "get", id, "-o", "json").json() or
                     state_of(services, id) == "SUCCEEDED")
            check(state_of(services, id) in ("RUNNING", "SUCCEEDED"), state_of(services, id))
            check(processes(r"^\S*toroid worker ") in (ranks, []), "other ranks", ranks)
        job = wait_for_end(services, id)
        check(job["state"] == "SUCCEEDED" and job["epoch"] == 1 and job["restarts"] == 0, job)
        check(job["result"]["steps"] == 1000 and job["checkpoint"]["step"] == 1000, job)
        check([step for step, _ in losses(run_of_job)] == list(range(1, 1001)), "a gap, or a step twice")
        events = [json.loads(line) for line in
                  services.run("job", "watch", id, "--from-sequence", 1, "-o", "jsonl").out.splitlines()]
        check([event["sequence"] for event in events] == list(range(1, len(events) + 1)), events)
        check("RESTARTING" not in [event["job"]["state"] for event in events], events)
        # Negative control: a rank that dies while there is no controller ends its world.
        again = [*sets, "--set", "max_restarts=1", "--set", "name=again", "--set", "train.steps=1000000"]
        id = good(services.run("job", "submit", TRAIN, *again)).out.strip()
        wait_for("steps are made", lambda: len(losses(os.path.join(runs, "again"))) >= 20, 60)
        services.kill_controller()
        os.kill(processes(r"^\S*toroid worker ")[-1], signal.SIGKILL)
        wait_for("its world has ended", lambda: not processes(r"^\S*mpirun "))
        services.start_controller()
        wait_for("another launch runs", lambda: (j := services.run("job", "get", id, "-o", "json").json())["state"] ==
                 "RUNNING" and j["epoch"] == 2, 60)
        good(services.run("job", "cancel", id))
        check(wait_for_end(services, id)["state"] == "CANCELLED", id)
    no_orphans()


def test_a_job_waits_for_the_pod_that_has_its_checkpoint():
    with tempfile.TemporaryDirectory() as of_a, tempfile.TemporaryDirectory() as of_b, tempfile.TemporaryDirectory() as state, \
            Services(state, "--root", f"text={TEXT}", "--root", f"runs={of_a}", slots=1) as services:
        run_of_job = os.path.join(of_a, "licence")
        sets = ["--set", "train.steps=1000000", "--set", "train.schedule.kind=CONSTANT", "--set", "train.checkpoint.every=10"]
        id = good(services.run("job", "submit", TRAIN, *sets)).out.strip()
        wait_for("a checkpoint", lambda: len(losses(run_of_job)) >= 25, 60)
        # Another host, with a directory of its own.
        services.words = ("--root", f"text={TEXT}", "--root", f"runs={of_b}")
        services.start_agent("b")
        wait_for("b is there", lambda: "READY" in services.run("pods").out)

        def job():
            return good(services.run("job", "get", id, "-o", "json")).json()

        def kill_and_wait_for(said):
            os.kill(processes(r"^\S*toroid worker ")[-1], signal.SIGKILL)
            wait_for(said, lambda: said in job()["message"], 60)
            check(job()["state"] == "RESTARTING" and "the job waits for pod a, which has the checkpoint of step " in
                  job()["message"], job())

        def goes_on():
            made = len(losses(run_of_job))
            wait_for("it goes on", lambda: len(losses(run_of_job)) >= made + 20, 60)
            steps = [step for step, _ in losses(run_of_job)]
            check(steps == list(range(1, len(steps) + 1)) and not losses(os.path.join(of_b, "licence")), steps)

        other = good(services.run("job", "submit", GENERATE, *ENDLESS, "--set", "pod=a", "--set", "priority=1",
                                  "--set", "mesh.ring=1")).out.strip()
        kill_and_wait_for(f"a runs job {other}")  # b is free
        good(services.run("job", "cancel", other))
        goes_on()
        good(services.run("pod", "drain", "a"))  # b is tried, and lacks it
        kill_and_wait_for("a drains")
        check(job()["reason"] == "CheckpointLost" and job()["restarts"] == 2, job())
        good(services.run("pod", "drain", "a", "--undo"))
        goes_on()
        shutil.rmtree(os.path.join(run_of_job, "checkpoints"))
        os.kill(processes(r"^\S*toroid worker ")[-1], signal.SIGKILL)
        refused(services.run("job", "watch", id, timeout=60), 5, id, "pod a has told of the checkpoint of step ", "lacks it now")
        check(job()["state"] == "FAILED" and job()["reason"] == "CheckpointLost", job())
    no_orphans()


def state_of(services, id):
    return good(services.run("job", "get", id, "-o", "json")).json()["state"]


def wait_for_end(services, id):
    services.run("job", "watch", id, timeout=120)
    return good(services.run("job", "get", id, "-o", "json")).json()


def test_a_training_job_saves_when_its_time_is_up():
    with tempfile.TemporaryDirectory() as runs, training_up(runs) as up:
        id = good(up.run("job", "submit", TRAIN, "--set", "train.steps=1000000", "--set", "train.checkpoint.every=0",
                         "--set", "active_deadline=6s")).out.strip()
        refused(up.run("job", "watch", id, timeout=120), 5, id, "active_deadline", "its last checkpoint is runs/licence")
        job = good(up.run("job", "get", id, "-o", "json")).json()
        check(job["state"] == "FAILED" and job["reason"] == "DeadlineExceeded", job)
        made = losses(os.path.join(runs, "licence"))[-1][0]
        check(job["checkpoint"]["step"] == made > 0, made, job["checkpoint"])
        kept = good(run("inspect", os.path.join(runs, "licence"), "-o", "json")).json()["checkpoint"]
        check(kept["step"] == made and kept["hash"] == job["checkpoint"]["hash"], kept)
        good(up.run("job", "submit", GENERATE, "--wait"))  # the pod is free again
    no_orphans()


def test_train_through_a_controller():
    with tempfile.TemporaryDirectory() as runs, training_up(runs) as up:
        result = good(up.run("train", TRAIN, "--set", "train.steps=6", "-o", "json"))
        check(result.json()["steps"] == 6 and "step 6/6" in result.err and "6 steps, loss" in result.err, result.err)
        refused(up.run("train", TRAIN, "--set", "train.data.path=/etc/passwd", "--set", "name=other"), 5, "/etc/passwd")
        id = good(up.run("job", "submit", TRAIN, "--set", "train.steps=1000000", "--set", "name=long")).out.strip()
        wait_for("steps are made", lambda: len(losses(os.path.join(runs, "long"))) >= 3, 60)
        good(up.run("job", "cancel", id))
        refused(up.run("job", "watch", id), 5, id, "cancelled")
    no_orphans()


def test_a_model_learns_a_text_and_is_exported():
    """What deploy/finetune.sh does with SmolLM2, with a model that is small."""
    steps, ask = 60, ["--prompt", "GNU GENERAL PUBLIC LICENSE", "--max-tokens", 24, "--mesh", "ring=2", "--keep-alive", "1s", "-o", "json"]
    with tempfile.TemporaryDirectory() as runs, training_up(runs) as up:
        model, run_dir, export = (os.path.join(runs, name) for name in ("model", "learnt", "export"))
        good(run("convert", "random:tiny-gqa", model, "--to", "checkpoint"))
        before = good(up.run("generate", model, *ask)).json()["ids"]
        spec = os.path.join(runs, "job.textproto")
        with open(spec, "w") as file:
            file.write(f"""
                name: "learnt"  seed: 1  output {{ dir: "runs/{{name}}" }}  mesh {{ ring: 2 }}  model {{ path: "{model}" }}
                train {{
                  data {{ path: "text/GPL-3"  sequence_length: 128  batch_tokens: 256 }}
                  optimizer {{ adamw {{ lr: 1e-2 }} }}  schedule {{ kind: COSINE  warmup: 5  final_lr: 1e-3 }}
                  steps: {steps}  checkpoint {{ every: 30  keep: 2 }}
                }}""")
        id = good(up.run("job", "submit", spec)).out.strip()
        good(up.run("job", "watch", id, timeout=120))
        curve = losses(run_dir)
        check([step for step, _ in curve] == list(range(1, steps + 1)), curve)
        check(curve[-1][1] < 0.7 * curve[0][1], curve[0], curve[-1])
        good(run("convert", run_dir, export, "--dtype", "bf16"))
        after = good(up.run("generate", export, *ask)).json()["ids"]
        check(after != before, "training changed nothing", before)
        check(good(up.run("generate", model, *ask)).json()["ids"] == before, "control: the model it began with says the same")
    no_orphans()


def test_a_result_that_cannot_be_written_fails_no_job():
    with tempfile.TemporaryDirectory() as runs, training_up(runs) as up:
        os.makedirs(os.path.join(runs, "licence", "result.json"))  # in the way
        id = good(up.run("job", "submit", TRAIN, "--set", "train.steps=12")).out.strip()
        job = lines(up.run("job", "watch", id, "--from-sequence", 1, "-o", "jsonl", timeout=120))[-1]["job"]
        check(job["state"] == "SUCCEEDED" and job["result"]["steps"] == 12, job)
        check("cannot write runs/licence/result.json" in good(up.run("job", "logs", id)).out, "no word of it")
    no_orphans()


def test_watching_a_training_job_shows_its_steps():
    with tempfile.TemporaryDirectory() as runs, training_up(runs) as up:
        id = good(up.run("job", "submit", TRAIN, "--set", "train.steps=1000000")).out.strip()
        wait_for("steps are made", lambda: len(losses(os.path.join(runs, "licence"))) >= 3, 60)
        watch = up.start("job", "watch", id)
        os.set_blocking(watch.stdout.fileno(), False)
        shown = b""

        def told():
            nonlocal shown
            shown += watch.stdout.raw.read() or b""
            return shown.count(b"  train ")
        wait_for("two steps are told", lambda: told() >= 2, 60)
        good(up.run("job", "cancel", id))
        shown = shown.decode("utf-8", "replace") + finish(watch).out
        steps = re.findall(rf"^{id}  train (\d+)/1000000  loss \d+\.\d+  \d+\.\d tokens/s$", shown, re.MULTILINE)
        check(len(steps) > 1 and [int(step) for step in steps] == sorted(set(map(int, steps))), shown)
        check("RUNNING" in shown and "CANCELLED" in shown, shown)
        kept = lines_of_ended(up, id)
        check([event["sequence"] for event in kept] == list(range(1, len(kept) + 1)), "progress was kept", kept)
    no_orphans()


def lines_of_ended(up, id):
    return [json.loads(line) for line in up.run("job", "watch", id, "--from-sequence", 1, "-o", "jsonl").out.splitlines()]


def test_verify_a_job_through_a_controller():
    with tempfile.TemporaryDirectory() as runs, training_up(runs) as up:
        result = good(up.run("verify", TRAIN, "--tokens", 96, "--set", "compute=FP64", "-o", "json"))
        answer = result.json()
        check(answer["pass"] and answer["mesh"]["data"] == 2, answer)
        check(all(tensor["bound"] == 1e-9 for tensor in answer["tensors"]), answer["tensors"])
        check("gradient norm" in [tensor["tensor"] for tensor in answer["tensors"]], answer["tensors"])
        with tempfile.TemporaryDirectory() as alone:  # the same as on ranks of the command
            direct = good(launch(2, "verify", TRAIN, "--tokens", 96, "--set", "compute=FP64", "--mesh", "data=2",
                                 "--set", f"output.dir={alone}", "-o", "json")).json()
        check(direct["worst"] == answer["worst"], direct["worst"], answer["worst"])
        check(losses(os.path.join(runs, "licence")) == [], "it trained")
        text = good(up.run("verify", TRAIN, "--tokens", 96)).out
        check("pass: " in text, text)
        refused(up.run("verify", TRAIN, "--set", "train.data.path=/etc/passwd"), 5, "/etc/passwd")
        flags = ["--compute", "f64", "--layout", "striped:4", "--mesh", "ring=2", "--tokens", 96, "-o", "json"]
        flagged = good(up.run("verify", TRAIN, *flags, "--set", "name=flagged")).json()
        check(flagged["mesh"]["ring"] == 2 and all(t["bound"] == 1e-9 for t in flagged["tensors"]), flagged)
        refused(up.run("verify", TRAIN, "--layout", "round"), 3, "round", "zigzag")
        refused(up.run("verify", TRAIN, "--context", 64), 2, "--context", "--set")
        listed = up.run("job", "list", "-o", "json").json()["jobs"]
        check([job["state"] for job in listed] == ["SUCCEEDED", "FAILED", "SUCCEEDED", "SUCCEEDED"], listed)
        shown = good(up.run("job", "get", listed[-1]["id"])).out
        check("pass: " in shown, shown)
    no_orphans()


def test_a_repeated_submission_is_one_job():
    with Up(1, 2) as up:
        first = good(up.run("job", "submit", GENERATE, "--request-id", "again")).out
        check(good(up.run("job", "submit", GENERATE, "--request-id", "again")).out == first, first)
        check(good(up.run("job", "submit", GENERATE)).out != first, "without an id: another job")
        refused(up.run("job", "submit", GENERATE, "--request-id", "again", "--set", "seed=2"), 3, "again")
        check(len(up.run("job", "list", "-o", "json").json()["jobs"]) == 2, "two jobs")
        good(up.run("job", "watch", first.strip()))
    no_orphans()


def test_what_no_job_is():
    with Up(1, 2) as up:
        for verb in ("get", "watch", "logs", "cancel", "delete"):
            refused(up.run("job", verb, "no-such-job"), 3, "no-such-job")


if __name__ == "__main__":
    main()
