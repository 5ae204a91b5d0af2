"""up, controller, agents and clients: the same tokens, a kept world, and nothing left behind."""
import json
import os
import signal
import socket
import tempfile
import time

from harness import *

PROMPT = ["--prompt", "The quick brown fox jumps over the lazy dog.", "--max-tokens", 8]


class Up:
    """`toroid up` on a free port; the address is in .address."""

    def __init__(self, pods=1, ranks=2, *words):
        self.process = start("up", "--pods", pods, "--ranks", ranks, "--listen", "127.0.0.1:0", *words)
        line = self.process.stdout.readline().decode()
        if not line.startswith("READY "):
            raise Failed(f"no READY but {line!r}: {self.process.stderr.read().decode()}")
        self.address = line.split()[1]

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        ended = self.process.poll()
        if ended is None:
            self.process.send_signal(signal.SIGTERM)
        self.result = finish(self.process)
        if kind:  # what the test ran into
            print(f"toroid up ended with {ended}, then {self.result.code}: {self.result.err}")

    def run(self, *words, **options):
        return run(*words, env={"TOROID_CONTROLLER": self.address}, **options)

    def start(self, *words):
        return start(*words, env={"TOROID_CONTROLLER": self.address})


def test_the_same_tokens_and_a_kept_world():
    alone = run("generate", MODEL, *PROMPT, "-o", "json", env={"TOROID_CONTROLLER": None}).json()
    with Up(1, 2) as up:
        first = up.run("generate", MODEL, *PROMPT, "-o", "json")
        check(first.code == 0, first.err)
        check(first.json()["ids"] == alone["ids"], first.out)
        check(first.json()["timing"]["load_s"] > 0, "the first request loads")
        detailed = up.run("generate", MODEL, *PROMPT, "-o", "json", "-v")
        for said in ["rank 1: data 0, ring 1, tensor 0", "prefill: ", "memory per rank: "]:
            check(said in detailed.err and said not in first.err, repr(said), detailed.err)
        second = detailed.json()
        check(second["ids"] == alone["ids"] and second["timing"]["load_s"] == 0, second["timing"])
        check(MODEL in up.run("models").out, "models")
        pods = up.run("pods", "-o", "json").json()["pods"]
        check(len(pods) == 1 and pods[0]["slots"] == 2, pods)
    check(up.result.code == 0, up.result.code, up.result.err)
    no_orphans()


def test_verify_as_the_ranks_alone_do():
    words = ["verify", MODEL, "--mesh", "ring=2", "--tokens", 48, "-o", "json"]
    here = launch(2, *words).json()
    with Up(1, 2) as up:
        result = up.run(*words, "--progress", "bar")
        check(result.code == 0, result.err)
        there = result.json()
        check("pod " in result.err and "verify" in result.err, result.err)
        check(there["pass"] and there["model"] == MODEL and there.keys() == here.keys(), there.keys())
        names = [(t["tensor"], t["layer"], t["bound"]) for t in there["tensors"]]
        check(names == [(t["tensor"], t["layer"], t["bound"]) for t in here["tensors"]], names)
        check(here["worst"] == there["worst"], here["worst"], there["worst"])
        check("pass: " in up.run(*words[:-2], "--layers", 1).out, "as text")
        exact = up.run(*words, "--compute", "f64", "--file", "nowhere.txt")
        refused(exact, 3, "nowhere.txt")
        refused(up.run("verify", MODEL, "--mesh", "ring=3"), 3, 3, 2, "ring=2")
        refused(up.run("verify", "random:nothing"), 3, "nothing")
    refused(run("verify", MODEL, "--controller", "127.0.0.1:1"), 4, "127.0.0.1:1")
    refused(launch(2, "verify", MODEL, "--controller", "127.0.0.1:1"), 2, "--controller")
    no_orphans()


def test_several_prompts_and_answers():
    words = ["generate", MODEL, "--prompt", "abc", "--prompt", "one two three", "-n", 2,
             "--max-tokens", 6, "--ignore-eos", "--temperature", 1, "--seed", 3]
    alone = run(*words, "-o", "json", env={"TOROID_CONTROLLER": None})
    with Up(1, 2) as up:
        there = up.run(*words, "-o", "json")
        ids = [[json.loads(line)["ids"] for line in result.out.splitlines()] for result in (alone, there)]
        check(len(ids[0]) == 4 and ids[0] == ids[1], ids)
        text = up.run(*words)
        check(text.err.count("prompt 1, answer 1:") == 1, text.err)
        check(text.out == "".join(json.loads(line)["text"] + "\n" for line in there.out.splitlines()), text.out)
        refused(up.run(*words, "--prompt", ""), 3, "prompt 2")
    no_orphans()


def test_tokens_come_before_the_last_is_made():
    with Up(1, 1) as up:
        client = up.start("generate", MODEL, "--prompt", "x", "--max-tokens", 30000, "--ignore-eos")
        check(client.stdout.read(1), "no token")
        check(client.poll() is None, "the client had all tokens at once")
        client.send_signal(signal.SIGINT)  # Ctrl-C of the client
        result = finish(client)
        check(result.code == 130, result.code, result.err)
        again = up.run("generate", MODEL, *PROMPT, "-o", "json")  # the world takes the next request
        check(again.code == 0, again.err)
        check(again.json()["timing"]["load_s"] == 0, "the world was lost by a cancel")
    no_orphans()


def test_a_context_beyond_the_model_is_refused():
    golden = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "golden", "models", "llama")
    words = [golden, "--prompt-ids", "1,2,3"]
    with Up(1, 2, "--root", f"models={os.path.dirname(golden)}") as up:
        refused(up.run("generate", *words, "--context", 513), 3, "513", "512", "--context")
        refused(up.run("score", *words, "--context", 513), 3, "513", "512", "--context")
        check(up.run("generate", *words, "--max-tokens", 2, "--context", 512).code == 0, "512 of 512")
    no_orphans()


def test_errors_of_a_request_leave_services_running():
    with Up(1, 2) as up:
        refused(up.run("generate", MODEL, *PROMPT, "--mesh", "ring=3"), 3, 3, 2, "ring=2")
        refused(up.run("generate", MODEL, "--prompt-ids", "999999"), 3, "999999")
        refused(up.run("generate", "/etc", *PROMPT), 3, "/etc")
        refused(up.run("generate", MODEL, *PROMPT, "--chat"), 3, "no chat template")
        check(up.run("generate", MODEL, *PROMPT).code == 0, "the world is gone")


def test_clients_hear_no_directory_of_the_agents():
    with tempfile.TemporaryDirectory() as top:
        os.makedirs(os.path.join(top, "store", "empty"))
        with Up(1, 1, "--root", f"r={top}/store") as up:
            for words in [[f"{top}/else"], ["r/../else"], ["r/empty"], [MODEL, "--prompt-file", "/etc/passwd"]]:
                result = up.run("generate", *words, *([] if len(words) > 1 else PROMPT))
                refused(result, 3, "r")
                check(f"{top}/store" not in result.err, result.err)
            job = os.path.join(top, "job.textproto")
            with open(job, "w") as file:
                file.write(f'model {{ path: "{MODEL}" }} output {{ dir: "/nowhere" }} score {{ text {{ text: "abc" }} }}')
            result = up.run("submit", job, "--wait")
            refused(result, 5, "outside the pod's roots: /nowhere", "the roots are r")
            logs = up.run("job", "logs", result.err.split("job failed: ")[1].split(":")[0])
            check(logs.code == 0 and "store" not in logs.out + result.err, logs.out, result.err)
        kept = [line for line in up.result.err.split("\n") if f"{top}/store" in line]
        check(len(kept) == 5, up.result.err)  # the agent's own log says it all


def test_jobs():
    with Up(1, 2) as up, tempfile.TemporaryDirectory() as top:
        yaml = os.path.join(top, "job.yaml")
        with open(yaml, "w") as file:
            file.write(f'name: book\nmodel:\n  path: "{MODEL}"\ngenerate:\n  prompt: {{text: "abc"}}\n  max_tokens: 4\n')
        submitted = up.run("submit", yaml, "--set", "generate.max_tokens=6", "--wait", "-o", "json")
        check(submitted.code == 0, submitted.err)
        job = submitted.json()
        check(job["state"] == "SUCCEEDED" and len(job["result"]["ids"]) == 6, job)
        check(up.run("job", "get", job["id"], "-o", "json").json()["state"] == "SUCCEEDED", "get")
        check(job["id"] in up.run("jobs").out, "list")
        check(up.run("job", "delete", job["id"]).code == 0, "delete")
        refused(up.run("job", "get", job["id"]), 3, job["id"])
        with open(yaml, "a") as file:
            file.write("sede: 1\n")
        refused(up.run("submit", yaml), 3, "sede", "seed")


def test_port_in_use():
    with socket.socket() as taken, tempfile.TemporaryDirectory() as state:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        refused(run("controller", "--listen", address, "--state", state), 3, address, "already in use")
        result = run("up", "--listen", address)
        refused(result, 3, address, "already in use")
        check("READY" not in result.out, result.out)
        refused(run("controller", "--state", state, "--lease", "1s"), 2, "--lease")
        result = run("controller", "--listen", "0.0.0.0:0", "--state", state)
        check(result.code == 3 and any("0.0.0.0" in line for line in result.said()), result.err)
    no_orphans()


def test_an_agent_without_a_controller_says_so_and_goes_on():
    agent = start("agent", "--pod", "a", "--controller", "127.0.0.1:1")
    check(b"127.0.0.1:1" in agent.stderr.readline(), "it is silent")
    check(agent.poll() is None, "it has ended")
    agent.send_signal(signal.SIGTERM)
    result = finish(agent)
    check(result.code == 0 and result.err == "", result.code, result.err)


def kill_during_a_run(pattern, expect_client=True):
    with Up(1, 2) as up:
        client = up.start("generate", MODEL, "--prompt", "x", "--max-tokens", 30000, "--ignore-eos")
        check(client.stdout.read(1), "no token")
        os.kill(wait_for(pattern, lambda: processes(pattern))[-1], signal.SIGKILL)
        result = finish(client)
        check(result.code == 5, result.code, result.err)
        check(len(result.said()) == 1, result.err)
        if pattern != r"^\S*toroid up ":
            return result
    return None


def test_a_killed_worker_ends_the_request():
    result = kill_during_a_run(r"^\S*toroid worker ")
    check("rank" in result.said()[0] and "signal 9" in result.said()[0], result.err)
    no_orphans()


def test_a_killed_mpirun_ends_the_request():
    kill_during_a_run(r"^\S*mpirun ")
    no_orphans()


def test_a_killed_agent_leaves_no_world():
    kill_during_a_run(r"^\S*toroid agent ")
    no_orphans()


def test_a_killed_up_leaves_nothing():
    with Up(2, 1) as up:
        check(len(processes(r"^\S*toroid (agent|controller) ")) == 3, ours())
        client = up.start("generate", MODEL, "--prompt", "x", "--max-tokens", 30000, "--ignore-eos")
        check(client.stdout.read(1), "no token")
        up.process.kill()
        up.process.wait()
        up.process.stdout.close()
        up.process.stderr.close()
        finish(client)
    no_orphans(20)


if __name__ == "__main__":
    main()
