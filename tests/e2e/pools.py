"""Pools: programs of several clients in one world, one after the other, with what each would have alone."""
import os
import signal
import tempfile

from cluster import Up
from harness import *
from jobs import DIRECTORY, GENERATE, TEXT, TRAIN, good, lines, losses, state, training_up

POOL = os.path.join(DIRECTORY, "pool.textproto")
SCORE = os.path.join(DIRECTORY, "score.textproto")
ASK = ["--prompt", "The quick brown fox jumps over the lazy dog.", "--max-tokens", 8, "-o", "json"]
OTHER = "random:tiny-mha"
ENDLESS = ["--set", "generate.max_tokens=30000"]


def begin(up):
    """Submits the pool of deploy/jobs; its id, once it runs."""
    id = good(up.run("job", "submit", POOL)).out.strip()
    wait_for("the pool runs", lambda: state(up, id) == "RUNNING")
    return id


def alone(*words):
    return good(launch(2, *words, "--mesh", "ring=2"))


def test_several_clients_at_once_have_what_each_has_alone():
    sets = ["--mesh", "ring=2", "--set", "train.steps=20"]
    with tempfile.TemporaryDirectory() as runs, tempfile.TemporaryDirectory() as own, training_up(runs) as up:
        ids = {model: alone("generate", model, *ASK).json()["ids"] for model in (MODEL, OTHER)}
        nll = alone("score", MODEL, "--file", f"{TEXT}/BSD", "-o", "json").json()["mean_nll"]
        alone("train", TRAIN, *sets[2:], "--set", f"output.dir={own}")
        pool = begin(up)
        trains = [up.start("train", TRAIN, *sets, "--set", f"name=t{i}", "--on-pool", "pool") for i in range(2)]
        talks = [(model, up.start("generate", model, *ASK, "--on-pool", pool)) for model in (MODEL, OTHER, MODEL)]
        score = up.start("score", MODEL, "--file", "text/BSD", "--on-pool", "pool", "-o", "json")
        job = up.start("submit", SCORE, "--on-pool", "pool", "--wait", "-o", "json")
        for model, talk in talks:
            check(good(finish(talk, 120)).json()["ids"] == ids[model], model)
        check(good(finish(score, 120)).json()["mean_nll"] == nll, nll)
        check(good(finish(job, 120)).json()["result"]["tokens"] > 10, "score job")
        for i, train in enumerate(trains):
            said = good(finish(train, 120)).err
            check("step 20/20  loss " in said and "t{}-".format(1 - i) not in said, said)  # its own log
            check(losses(os.path.join(runs, f"t{i}")) == losses(own) and len(losses(own)) == 20, "another curve")
        log = good(up.run("job", "logs", pool)).out
        check(log.count("step 20/20  loss ") == 2, log)
        # In turn, not each in a world of its own; and what is loaded is not loaded again.
        check(good(up.run("generate", MODEL, *ASK, "--on-pool", "pool")).json()["ids"] == ids[MODEL], "again")
        check(good(up.run("generate", MODEL, *ASK, "--on-pool", "pool")).json()["timing"]["load_s"] == 0, "loaded again")
        (pod,) = up.run("pods", "-o", "json").json()["pods"]
        check(pod["job"] == pool and pod["epoch"] == 1, pod)
        # What cannot run there is told at once, and nobody else is disturbed.
        refused(up.run("generate", MODEL, *ASK, "--on-pool", "nothing"), 3, "no such pool: nothing")
        refused(up.run("generate", MODEL, *ASK, "--on-pool", "pool", "--mesh", "tensor=2"), 3, "ring=2", "tensor=2")
        refused(up.run("generate", MODEL, *ASK, "--on-pool", "pool", "--pod", "a"), 3, "pod")
        refused(up.run("generate", "random:nothing", *ASK, "--on-pool", "pool"), 3, "nothing")
        refused(up.run("score", MODEL, "--file", "text/nowhere", "--on-pool", "pool"), 3, "nowhere")
        refused(up.run("submit", TRAIN, "--on-pool", "pool", "--set", "mesh.pods=2"), 3, "mesh.pods")
        check(state(up, pool) == "RUNNING", pool)
        check(good(up.run("generate", MODEL, *ASK, "--on-pool", "pool")).json()["ids"] == ids[MODEL], "after errors")
    refused(run("generate", MODEL, *ASK, "--on-pool", "pool"), 2, "--on-pool without --controller")
    refused(run("train", TRAIN, "--on-pool", "pool"), 2, "--on-pool without --controller")
    no_orphans()


def test_a_client_that_goes_takes_its_program_along():
    with Up(1, 2) as up:
        pool = begin(up)
        endless = up.start("generate", MODEL, "--prompt", "x", "--max-tokens", 30000, "--ignore-eos", "--on-pool", "pool")
        check(endless.stdout.read(1), "no token")
        waits = up.start("generate", MODEL, *ASK, "--on-pool", "pool")
        job = good(up.run("submit", GENERATE, *ENDLESS, "--on-pool", "pool")).out.strip()
        good(up.run("job", "cancel", job))
        check(state(up, job) == "CANCELLED", "it had not begun")
        check(waits.poll() is None, "two at once")
        endless.send_signal(signal.SIGINT)
        check(finish(endless).code == 130, "interrupted")
        check(len(good(finish(waits)).json()["ids"]) == 8, "the next one")
        (pod,) = up.run("pods", "-o", "json").json()["pods"]
        check(pod["job"] == pool and pod["epoch"] == 1, "a cancel cost the world", pod)
    no_orphans()


def test_a_pool_that_is_cancelled_fails_its_programs_by_name():
    with Up(1, 2) as up:
        pool = begin(up)
        jobs = [good(up.run("submit", GENERATE, *ENDLESS, "--on-pool", "pool")).out.strip() for _ in range(2)]
        wait_for("the first runs", lambda: state(up, jobs[0]) == "RUNNING")
        waits = up.start("generate", MODEL, *ASK, "--on-pool", "pool")
        wait_for("the client waits", lambda: up.run("job", "list", "--state", "STARTING", "-o", "json").json()["jobs"])
        good(up.run("job", "cancel", pool))
        for job in jobs:
            refused(up.run("job", "watch", job), 5, job, pool, "has ended (CANCELLED")
        refused(finish(waits), 5, pool, "has ended")
        check(state(up, pool) == "CANCELLED", "pool")
        check(good(up.run("generate", MODEL, *ASK)).json()["ids"], "the pod is free again")
    no_orphans()


def test_a_pool_whose_world_is_lost_goes_on():
    sets = ["--mesh", "ring=2", "--set", "train.steps=200", "--set", "train.schedule.kind=CONSTANT",
            "--set", "train.checkpoint.every=10"]
    with tempfile.TemporaryDirectory() as runs, tempfile.TemporaryDirectory() as own, training_up(runs) as up:
        pool = begin(up)
        train = good(up.run("submit", TRAIN, *(w for w in sets if w not in ("--mesh", "ring=2")), "--set", "mesh.data=1",
                            "--set", "mesh.ring=2", "--on-pool", "pool")).out.strip()
        waits = up.start("generate", MODEL, *ASK, "--on-pool", "pool")
        queued = good(up.run("submit", SCORE, "--on-pool", "pool", "--set", "max_restarts=0")).out.strip()
        wait_for("steps are made", lambda: len(losses(os.path.join(runs, "licence"))) >= 25, 60)
        os.kill(processes(r"^\S*toroid worker ")[-1], signal.SIGKILL)
        job = lines(up.run("job", "watch", train, "-o", "jsonl", timeout=120))[-1]["job"]
        check(job["state"] == "SUCCEEDED" and job["restarts"] == 1 and job["epoch"] == 2, job)
        check(len(good(finish(waits, 60)).json()["ids"]) == 8, "the client that waited")
        scored = lines(up.run("job", "watch", queued, "-o", "jsonl"))[-1]["job"]
        check(scored["state"] == "SUCCEEDED" and scored["restarts"] == 0, scored)
        told = good(up.run("job", "get", pool, "-o", "json")).json()
        check(told["state"] == "RUNNING" and told["restarts"] == 1 and told["epoch"] == 2, told)
        log = good(up.run("job", "logs", train)).out
        check("resumed from runs/licence/checkpoints/step-" in log, log)
        alone("train", TRAIN, *sets[2:], "--set", f"output.dir={own}")
        check(losses(os.path.join(runs, "licence")) == losses(own) and len(losses(own)) == 200, "another curve")
    no_orphans()


if __name__ == "__main__":
    main()
