"""The batch scripts of deploy/slurm, run whole: bash, launch and the ranks are real, only Slurm is played by scripts."""
import json
import os
import signal
import stat
import subprocess
import tempfile

from harness import *

HERE = os.path.dirname(os.path.abspath(__file__))
SCRIPTS = os.path.join(HERE, "..", "..", "deploy", "slurm")
JOB = os.path.join(HERE, "..", "..", "deploy", "jobs", "train.textproto")

# srun -n N --option... COMMAND: the ranks get what PMIx would give them from mpirun.
SRUN = """#!/bin/bash
echo "$@" >> "$PLAYED/srun"
[ "$1" = -n ] || exit 64
n=$2; shift 2
while [[ "$1" == --* ]]; do shift; done
for name in ${!SLURM_*}; do unset "$name"; done
exec mpirun -q --allow-run-as-root --oversubscribe --bind-to none -n "$n" "$@"
"""
SCONTROL = """#!/bin/bash
echo "$@" >> "$PLAYED/scontrol"
"""


class Allocation:
    """Two tasks of one Slurm job, and what was said to Slurm."""

    def __enter__(self):
        self.directory = tempfile.TemporaryDirectory()
        self.top = self.directory.name
        tools = os.path.join(self.top, "bin")
        os.mkdir(tools)
        for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
            path = os.path.join(tools, name)
            with open(path, "w") as file:
                file.write(text)
            os.chmod(path, stat.S_IRWXU)
        self.env = {"PATH": tools + ":" + os.environ["PATH"], "PLAYED": self.top, "TOROID": TOROID, "SLURM_JOB_ID": "42",
                    "SLURM_NTASKS": "2", "SLURM_CPUS_PER_TASK": "1"}
        return self

    def __exit__(self, *_):
        self.directory.cleanup()

    def path(self, *parts):
        return os.path.join(self.top, *parts)

    def start(self, script, **variables):
        return subprocess.Popen(["bash", os.path.join(SCRIPTS, script)], env=environment({**self.env, **variables}),
                                cwd=self.top, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def said(self, tool):
        try:
            with open(self.path(tool)) as file:
                return file.read().splitlines()
        except FileNotFoundError:
            return []


def job_of(allocation, steps):
    """The job of deploy/jobs, with so many steps."""
    with open(JOB) as file:
        text = file.read()
    for old, new in (("steps: 40", f"steps: {steps}"), ("kind: COSINE  warmup: 5", "kind: CONSTANT")):
        check(text.count(old) == 1, old)
        text = text.replace(old, new)
    path = allocation.path("job.textproto")
    with open(path, "w") as file:
        file.write(text)
    return path


def steps_made(allocation):
    try:
        with open(allocation.path("runs", "licence", "metrics.jsonl")) as file:
            return [json.loads(line)["step"] for line in file if line.endswith("\n")]
    except FileNotFoundError:
        return []


def test_train_ends_and_is_not_queued_again():
    with Allocation() as slurm:
        result = finish(slurm.start("train.sbatch", JOB=job_of(slurm, 6), MESH="ring=2"), 60)
        check(result.code == 0, result.code, result.err)
        answer = result.json()
        check(answer["steps"] == 6 and answer["mesh"]["ring"] == 2, answer)
        check(steps_made(slurm) == list(range(1, 7)), steps_made(slurm))
        check(len(slurm.said("srun")) == 1 and "--mpi=pmix" in slurm.said("srun")[0], slurm.said("srun"))
        check(slurm.said("scontrol") == [], slurm.said("scontrol"))
        missing = finish(slurm.start("train.sbatch", JOB="nowhere.textproto"), 60)
        check(missing.code == 3 and "nowhere.textproto" in missing.err, missing.code, missing.err)
        check(finish(slurm.start("train.sbatch")).code != 0, "without JOB")
        check(slurm.said("scontrol") == [], "a failure was queued again")
    no_orphans()


def test_train_saves_when_the_time_is_up_and_goes_on_in_the_next_job():
    with Allocation() as slurm:
        job = job_of(slurm, 100000)
        process = slurm.start("train.sbatch", JOB=job)
        wait_for("steps are made", lambda: len(steps_made(slurm)) >= 5, 60)
        for pid in processes(r"^\S*toroid train "):  # as --signal=USR1@120 tells the tasks
            os.kill(pid, signal.SIGUSR1)
        result = finish(process, 60)
        check(result.code == 75 and "queued again" in result.err, result.code, result.err)
        check(slurm.said("scontrol") == ["requeue 42"], slurm.said("scontrol"))
        done = result.json()["steps"]
        check(result.json()["checkpoint"].endswith(f"step-{done:08d}"), result.out)
        no_orphans()
        job_of(slurm, done + 4)
        result = finish(slurm.start("train.sbatch", JOB=job), 60)
        check(result.code == 0 and result.json()["steps"] == done + 4, result.code, result.out, result.err)
        check("resumed from" in result.err, result.err)
        check(steps_made(slurm) == list(range(1, done + 5)), steps_made(slurm)[-8:])
        check(slurm.said("scontrol") == ["requeue 42"], slurm.said("scontrol"))
    no_orphans()


def test_generate():
    with Allocation() as slurm:
        with open(slurm.path("prompt.txt"), "w") as file:
            file.write("The ring")
        result = finish(slurm.start("generate.sbatch", MODEL=MODEL, PROMPT_FILE="prompt.txt", MAX_TOKENS="6"), 60)
        check(result.code == 0, result.code, result.err)
        answer = result.json()
        check(answer["mesh"]["ring"] == 2 and len(answer["ids"]) <= 6, answer)
        alone = run("generate", MODEL, "--prompt", "The ring", "--max-tokens", 6, "-o", "json").json()
        check(answer["ids"] == alone["ids"], answer["ids"], alone["ids"])
    no_orphans()


if __name__ == "__main__":
    main()
