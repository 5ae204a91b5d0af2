"""train on ranks: what a run leaves, and that stopping it anywhere changes nothing."""
import fcntl
import glob
import json
import os
import pty
import random
import re
import shutil
import signal
import struct
import subprocess
import tempfile
import termios

from harness import *

HERE = os.path.dirname(os.path.abspath(__file__))
JOB = os.path.join(HERE, "..", "..", "deploy", "jobs", "train.textproto")
FIELDS = ["schema", "step", "epoch", "loss", "grad_norm", "lr", "tokens", "tokens_per_s", "mfu", "hfu", "step_s",
          "comm_exposed_s", "peak_bytes"]


def words(directory, steps=12, *settings):
    """A small job: the same learning rate however many steps it has."""
    sets = [f"output.dir={directory}", f"train.steps={steps}", "train.schedule.kind=CONSTANT",
            "train.data.sequence_length=32", "train.data.batch_tokens=128", "train.checkpoint.every=5", *settings]
    return ["train", JOB, *(word for setting in sets for word in ("--set", setting))]


def lines(directory):
    """Whole lines of metrics.jsonl."""
    try:
        with open(os.path.join(directory, "metrics.jsonl")) as file:
            return [json.loads(line) for line in file if line.endswith("\n")]
    except FileNotFoundError:
        return []


def rank_log(directory, rank):
    with open(os.path.join(directory, "logs", f"rank-{rank:04d}.log")) as file:
        return [json.loads(line) for line in file]


def losses(directory):
    return [(line["step"], line["loss"], line["grad_norm"]) for line in lines(directory)]


def weights(directory, step):
    """The values of every shard of a checkpoint: weights and moments."""
    top = os.path.join(directory, "checkpoints", f"step-{step:08d}")
    shards = {}
    for path in sorted(glob.glob(os.path.join(top, "shard-*"))):
        with open(path, "rb") as file:  # core/io/checkpoint_shard.h
            magic, _, _, _, _, size = struct.unpack("<8sQqqqq", file.read(48))
            check(magic == b"TOROIDSH", path, magic)
            file.seek(64)
            shards[os.path.basename(path)] = file.read(size)
    check(shards, "no shards in", top)
    return shards


def good(result, code=0):
    check(result.code == code, "exit code", result.code, "instead of", code, ":", result.err)
    return result


def test_what_a_run_leaves():
    with tempfile.TemporaryDirectory() as top:
        result = good(launch(2, *words(top), "-o", "json", "--peak-flops", "1e12"))
        answer = result.json()
        check(answer["schema"] == 1 and answer["steps"] == 12 and answer["stopped"] == "done", answer)
        check(answer["mesh"] == {"pods": 1, "data": 2, "ring": 1, "tensor": 1}, answer["mesh"])
        check(answer["tokens"] == 12 * 128 and answer["tokens_per_s"] > 0, answer)
        check(answer["loss"] < answer["first_loss"], "nothing was learnt:", answer)
        check(os.path.isfile(os.path.join(answer["checkpoint"], "manifest.json")), answer["checkpoint"])
        check("12 steps, loss " in result.err and "checkpoint" in result.err, result.err)
        written = lines(top)
        check([line["step"] for line in written] == list(range(1, 13)), written)
        for field in FIELDS:
            check(all(field in line for line in written), field, "is missing in", written[0])
        check(written[0]["loss"] == answer["first_loss"] and written[-1]["loss"] == answer["loss"], written[-1])
        check(all(0 < line["comm_exposed_s"] < line["step_s"] for line in written), written)
        check(not any("param_hash" in line for line in written), "a hash that nobody asked for")
        events = [os.path.basename(path) for path in glob.glob(os.path.join(top, "events.*"))]
        check(sorted(os.listdir(top)) == sorted(["checkpoints", "config.textproto", "lock", "logs", "metrics.jsonl",
                                                 "tokens", *events]), os.listdir(top))
        check(all(line["tokens"] == 128 and line["lr"] > 0 and line["peak_bytes"] > 0 for line in written), written)
        kept = sorted(os.listdir(os.path.join(top, "checkpoints")))
        check(kept == ["step-00000010", "step-00000012"], kept)
        check(glob.glob(os.path.join(top, "events.out.tfevents.*")), os.listdir(top))
        with open(os.path.join(top, "logs", "rank-0000.log")) as file:
            events = [json.loads(line)["event"] for line in file]
        check(events[0] == "begin" and events[-1] == "end" and "checkpoint" in events, events)
        told = rank_log(top, 1)  # every rank has its own
        check([line["event"] for line in told] == ["begin", "end"], told)
        check(told[-1]["step"] == 12 and told[-1]["text"] == answer["checkpoint"], told[-1])
        check(all(line["rank"] == 1 and line["job"] == "licence" for line in told), told)
        good(launch(2, *words(top, 14), "-q"))
        check([(line["event"], line["step"]) for line in rank_log(top, 1)[2:]] ==
              [("begin", 0), ("resumed", 12), ("end", 14)], rank_log(top, 1))
        check(not os.path.exists(os.path.join(top, "logs", "rank-0002.log")), "a rank that is not there")
        # config.textproto is what ran: it makes the same run again, elsewhere.
        with tempfile.TemporaryDirectory() as other:
            config = os.path.join(top, "config.textproto")
            good(launch(2, "train", config, "--set", f"output.dir={other}", "-q"))
            check(losses(other) == losses(top), losses(other), losses(top))
    no_orphans()


def test_meshes_learn_the_same():
    curves = {}
    for mesh in ("ring=2", "tensor=2", "data=2"):
        with tempfile.TemporaryDirectory() as top:
            good(launch(2, *words(top), "--mesh", mesh, "-q"))
            curves[mesh] = [line["loss"] for line in lines(top)]
    with tempfile.TemporaryDirectory() as top:
        good(run(*words(top), "-q"))
        alone = [line["loss"] for line in lines(top)]
        for mesh, curve in curves.items():
            worst = max(abs(a - b) / a for a, b in zip(alone, curve, strict=True))
            check(worst < 1e-4, mesh, worst)
    with tempfile.TemporaryDirectory() as top:  # negative control
        good(run(*words(top), "--set", "seed=2", "-q"))
        check(max(abs(a - b["loss"]) / a for a, b in zip(alone, lines(top))) > 1e-4, "another seed")


def test_flags_say_how_it_is_computed():
    def curve(*flags):
        with tempfile.TemporaryDirectory() as top:
            good(launch(2, *words(top, 4), *flags, "-q"))
            return [line["loss"] for line in lines(top)]

    def apart(a, b):
        return max(abs(x - y) / y for x, y in zip(a, b, strict=True))
    double = curve("--mesh", "data=2", "--compute", "f64", "--device", "cpu")
    check(apart(curve("--mesh", "ring=2", "--compute", "f64", "--layout", "striped:4"), double) < 1e-11)
    check(1e-11 < apart(curve("--mesh", "ring=2", "--layout", "contiguous"), double) < 1e-4)
    check(1e-5 < apart(curve("--mesh", "ring=2", "--compute", "bf16"), double) < 0.1)
    with tempfile.TemporaryDirectory() as top:
        refused(run(*words(top), "--layout", "round"), 3, "round", "zigzag")
        refused(run(*words(top), "--compute", "f16"), 2, "f16", "bf16")


def test_a_run_goes_on_where_it_stopped():
    with tempfile.TemporaryDirectory() as whole, tempfile.TemporaryDirectory() as parts:
        good(launch(2, *words(whole, 20), "-q"))
        good(launch(2, *words(parts, 8), "-q"))
        result = good(launch(2, *words(parts, 20)))
        check("resumed from" in result.err and "step-00000008" in result.err, result.err)
        check(losses(parts) == losses(whole), losses(parts), losses(whole))
        check(weights(parts, 20) == weights(whole, 20), "other weights")
        again = good(launch(2, *words(parts, 20), "-o", "json")).json()  # nothing is left to do
        check(again["steps"] == 20 and again["tokens"] == 0, again)
        check(losses(parts) == losses(whole), "metrics after a launch without steps")
        good(launch(2, *words(parts, 24), "--mesh", "ring=2", "-q"))  # on another mesh too
        check([step for step, _, _ in losses(parts)] == list(range(1, 25)), losses(parts))
        refused(run(*words(parts, 30, "seed=2")), 3, "seed")
        refused(run(*words(parts, 30, "train.dropout=0.1")), 3, "dropout none", "rate 0.1")


def test_killed_anywhere_nothing_changes():
    """200 steps with SIGKILL at random steps of them: the bits of a run that nothing stopped."""
    steps, kills = 200, 0
    with tempfile.TemporaryDirectory() as whole, tempfile.TemporaryDirectory() as parts:
        good(launch(2, *words(whole, steps), "-q"))
        for until in sorted(random.Random(7).sample(range(2, steps - 10), 7)):
            process = start("launch", "-n", 2, "-q", *words(parts, steps), "-q")
            wait_for("steps are made", lambda: process.poll() is not None or
                     (losses(parts) and losses(parts)[-1][0] >= until), 60)
            kills += process.poll() is None
            for pid in processes(r"toroid (launch|train)|mpirun"):
                try:
                    os.kill(pid, signal.SIGKILL)
                except OSError:
                    pass
            process.communicate()
            no_orphans()
        check(kills >= 5, "only", kills, "kills met a run")
        good(launch(2, *words(parts, steps), "-q"))
        check(losses(parts) == losses(whole), losses(parts), losses(whole))
        check(weights(parts, steps) == weights(whole, steps), "other weights")


MPIRUN = ["-n", 2, "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", TOROID]


def test_sigusr1_asks_for_a_checkpoint_and_75():
    """Of the whole world, whoever started it; what goes on from there has the bits of a run that nobody stopped."""
    launched = {"program": TOROID, "words": ["launch", "-n", 2, "-q"]}
    by_hand = {"program": shutil.which("mpirun"), "words": MPIRUN}
    for world, mesh in ((launched, "data=2"), (by_hand, "ring=2"), (launched, "tensor=2")):
        with tempfile.TemporaryDirectory() as whole, tempfile.TemporaryDirectory() as parts:
            process = start(*world["words"], *words(parts, 100000), "--mesh", mesh, "-o", "json",
                            program=world["program"])
            wait_for("steps are made", lambda: len(lines(parts)) >= 7, 60)
            process.send_signal(signal.SIGUSR1)
            result = good(finish(process), 75)
            answer = result.json()
            check(answer["stopped"] == "requeue", answer)
            done = answer["steps"]
            check(answer["checkpoint"].endswith(f"step-{done:08d}"), answer["checkpoint"], done)
            check(any("SIGUSR1" in line and answer["checkpoint"] in line for line in result.said()), result.err)
            no_orphans()
            good(launch(2, *words(parts, done + 6), "--mesh", mesh, "-q"))
            good(launch(2, *words(whole, done + 6), "--mesh", mesh, "-q"))
            check(losses(parts) == losses(whole), mesh, "another curve")
            check(weights(parts, done + 6) == weights(whole, done + 6), mesh, "other weights")


def test_a_full_disk_stops_no_training():
    """Alarms, the last good checkpoint stays, and what was lost is done again when there is room."""
    with tempfile.TemporaryDirectory() as whole, tempfile.TemporaryDirectory() as small:
        if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", small],
                                               stderr=subprocess.DEVNULL).returncode != 0:
            raise Skipped("no file system may be mounted here")
        try:
            top = os.path.join(small, "run")
            good(run(*words(top, 5), "-q"))
            ballast = os.path.join(small, "ballast")
            with open(ballast, "wb", buffering=0) as file:
                try:
                    while True:
                        file.write(bytes(4096))
                except OSError:
                    pass
            result = run(*words(top, 12))
            check(result.code != 0, "nobody hears that the last checkpoint is not there")
            check("No space left on device" in result.err and "step-00000005" in result.said()[-1], result.err)
            check(re.search(r"12 of 12|12/12|step 12", result.err), "training stopped:", result.err)
            kept = os.listdir(os.path.join(top, "checkpoints"))
            check(kept == ["step-00000005"], kept)
            os.remove(ballast)
            good(run(*words(top, 12), "-q"))
            good(run(*words(whole, 12), "-q"))
            check(losses(top) == losses(whole), losses(top), losses(whole))
            check(weights(top, 12) == weights(whole, 12), "other weights")
        finally:
            subprocess.run(["umount", small], check=True)


def saved(top, answer):
    """The checkpoint of the last step that was made, whole."""
    check(lines(top)[-1]["step"] == answer["steps"], lines(top)[-1], answer)
    check(answer["checkpoint"].endswith(f"step-{answer['steps']:08d}"), answer)
    check(os.path.isfile(os.path.join(answer["checkpoint"], "manifest.json")), answer)


def started(top, *before, every=5, steps=7, **options):
    """A long run that has made some steps."""
    process = start(*before, *words(top, 100000, f"train.checkpoint.every={every}"), "-q", "-o", "json", **options)
    wait_for("steps are made", lambda: len(lines(top)) >= steps, 60)
    return process


def test_a_signal_saves_first():
    for world in ([], ["launch", "-n", 2, "-q"]):
        for number in (signal.SIGTERM, signal.SIGINT):
            with tempfile.TemporaryDirectory() as top:
                process = started(top, *world)
                process.send_signal(number)
                result = good(finish(process), 130)
                answer = result.json()
                check(answer["stopped"] == ("requeue" if world else "interrupted"), answer)
                check(answer["steps"] >= 7, answer)
                saved(top, answer)
                check(len(result.said()) == 1 and answer["checkpoint"] in result.said()[0], result.err)
                no_orphans()
                good(run(*words(top, answer["steps"] + 2), "-q"))  # what was written is whole
                check(len(lines(top)) == answer["steps"] + 2, lines(top))


def test_ctrl_c_of_a_terminal_saves_first():
    """Its signal goes to all of the foreground: mpirun, if it were there, would end the ranks within a second."""
    for world in ([], ["launch", "-n", 2, "-q"]):
        keyboard, terminal = pty.openpty()
        with tempfile.TemporaryDirectory() as top:
            process = started(top, *world, start_new_session=True,
                              preexec_fn=lambda: fcntl.ioctl(terminal, termios.TIOCSCTTY, 0))
            os.write(keyboard, b"\x03")
            answer = good(finish(process), 130).json()
            check(answer["stopped"] == ("requeue" if world else "interrupted"), answer)
            saved(top, answer)
            no_orphans()
        os.close(keyboard)
        os.close(terminal)


def test_a_timeout_saves_first():
    for world in ([], ["launch", "-n", 2, "-q"]):
        with tempfile.TemporaryDirectory() as top:
            for seconds in (2, 5, 20):  # the first steps may take long to come
                result = good(run(*world, *words(top, 100000), "--timeout", f"{seconds}s", "-q", "-o", "json"), 124)
                if lines(top):
                    break
            saved(top, result.json())
            said = result.said()
            check(len(said) == 1 and "--timeout" in said[0] and result.json()["checkpoint"] in said[0], result.err)
            no_orphans()


def test_a_second_signal_ends_at_once():
    """Both are there when the process goes on: the second one finds it before it has saved."""
    for world in ([], ["launch", "-n", 2, "-q"]):
        with tempfile.TemporaryDirectory() as top:
            process = started(top, *world, every=100000)
            for number in (signal.SIGSTOP, signal.SIGTERM, signal.SIGINT, signal.SIGCONT):
                process.send_signal(number)
            result = good(finish(process), 130)
            check(result.out == "" or world, result.out)
            no_orphans()
            if not world:
                check(glob.glob(os.path.join(top, "checkpoints", "step-*")) == [], "it has saved")


def test_what_cannot_run_is_said_before_the_first_step():
    generate = os.path.join(HERE, "..", "..", "deploy", "jobs", "generate.textproto")
    with tempfile.TemporaryDirectory() as top:
        for wrong in (["--mesh", "data=3"], ["--mesh", "tensor=*,ring=3"]):
            refused(launch(2, *words(top), *wrong), 3, "3", "2", "mesh")
        refused(launch(2, *words(top, 12, "train.data.batch_tokens=100")), 3, "batch", "100", "32")
        refused(launch(2, *words(top, 12, "train.data.path=/nowhere/*.txt")), 3, "/nowhere/*.txt")
        empty = os.path.join(top, "empty.txt")
        open(empty, "w").close()
        refused(launch(2, *words(top, 12, f"train.data.path={empty}")), 3, "empty.txt")
        refused(run(*words(top, 12, "train.optimizer.adamw.rate=1")), 3, "rate")
        refused(run(*words("/proc/nowhere")), 3, "/proc/nowhere")
        refused(run("train", generate), 3, "not a training job")
        refused(run("train", "/nowhere/job.textproto"), 3, "/nowhere/job.textproto")
        refused(run("train"), 2, "FILE")
        refused(run(*words(top, 12, "model.shape.preset=nothing")), 3, "nothing")
        check(lines(top) == [], "a step was made")
    no_orphans()


def test_what_does_not_fit_is_refused_with_what_does():
    with tempfile.TemporaryDirectory() as top:
        sets = words(top, 3, "train.data.sequence_length=1024", "train.data.batch_tokens=4096", "train.remat=NONE")
        plan = good(run("plan", *sets[1:], "--mesh", "data=2", "-o", "json")).json()
        need = max(rank["total"] for rank in plan["ranks"])
        result = launch(2, *sets, "--memory", need - 1)
        refused(result, 3, "does not fit", "--set train.remat=ATTENTION_OUTPUT")
        check(lines(top) == [], "a step was made")
        good(launch(2, *sets, "--set", "train.remat=ATTENTION_OUTPUT", "--memory", need - 1, "-q"))  # as it was told
        good(launch(2, *sets, "--set", "train.steps=4", "--memory", need, "-q"))
    for mesh in ("data=2", "ring=2", "tensor=2"):  # what is foreseen is what is measured
        with tempfile.TemporaryDirectory() as top:
            sets = words(top, 2, "train.data.sequence_length=1024", "train.data.batch_tokens=3072")
            plan = good(run("plan", *sets[1:], "--mesh", mesh, "-o", "json")).json()
            good(launch(2, *sets, "--mesh", mesh, "-q"))
            foreseen, measured = plan["ranks"][0]["total"], lines(top)[-1]["peak_bytes"]
            check(abs(measured - foreseen) <= 0.05 * measured, mesh, "foreseen", foreseen, "measured", measured)
    no_orphans()


def resident(*arguments):
    """The largest resident set, in bytes, of a process that toroid is or starts: libraries and all."""
    with tempfile.TemporaryFile() as err:
        child = subprocess.Popen([TOROID, *map(str, arguments)], env=environment(), stdin=subprocess.DEVNULL,
                                 stdout=subprocess.DEVNULL, stderr=err)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        err.seek(0)
        check(child.returncode == 0, "exit code", child.returncode, ":", err.read().decode("utf-8", "replace"))
    return usage.ru_maxrss * 1024


def test_a_process_has_little_more_than_is_accounted():
    little = 64 << 20
    settings = ["train.remat=NONE", "train.data.sequence_length=512", "train.checkpoint.every=1"]

    def both(top, ranks, mesh, packs, steps=2):
        """(resident, accounted) bytes; all ranks of these meshes are alike."""
        sets = words(top, steps, *settings, f"train.packs_per_rank={packs}",
                     f"train.data.batch_tokens={512 * packs * ranks}")
        start = ["launch", "-n", ranks, "-q"] if ranks > 1 else []
        return resident(*start, *sets, "--mesh", mesh, "-q"), lines(top)[-1]["peak_bytes"]

    for ranks, mesh in ((1, "data=1"), (2, "data=2"), (2, "ring=2"), (2, "tensor=2")):
        with tempfile.TemporaryDirectory() as top:
            has, accounted = both(top, ranks, mesh, 32)
            check(accounted <= has <= accounted + little, mesh, "resident", has, "accounted", accounted)
            if ranks == 1:
                has, accounted = both(top, 1, mesh, 32, steps=3)  # goes on from the checkpoint
                check(accounted <= has <= accounted + little, "resumed: resident", has, "accounted", accounted)
                with tempfile.TemporaryDirectory() as other:
                    small = both(other, 1, mesh, 1)[1]
                check(has > small + little, "another run's bytes would do as well:", has, small)
    no_orphans()


def test_hashes_and_an_export_where_they_are_asked_for():
    with tempfile.TemporaryDirectory() as top:
        asked = ["train.param_hash_every=2", "train.export_model=true"]
        good(launch(2, *words(top, 4, *asked), "-q"))
        hashes = [line.get("param_hash") for line in lines(top)]
        check(hashes[0] is None and hashes[2] is None and hashes[1] != hashes[3], hashes)
        check(all(re.fullmatch("[0-9a-f]{16}", value) for value in hashes[1::2]), hashes)
        export = os.path.join(top, "export")
        prompt = ["--prompt-ids", "1,2,3", "--max-tokens", 8, "-o", "json"]
        ids = good(run("generate", export, *prompt)).json()["ids"]
        check(ids == good(run("generate", top, *prompt)).json()["ids"], "the export is not the checkpoint")
        good(launch(2, *words(top, 12, *asked), "-q"))  # written anew
        later = good(run("generate", export, *prompt)).json()["ids"]
        check(later == good(run("generate", top, *prompt)).json()["ids"], "an old export")
        refused(run(*words(os.path.join(top, "x"), 4, *asked, "model.shape.preset=palm-tiny")), 3, "palm", "transformers")
    no_orphans()


def test_evidence_of_a_rank_that_died():
    with tempfile.TemporaryDirectory() as top:
        process = start("launch", "-n", 2, "-q", *words(top, 100000), "-q")
        wait_for("steps are made", lambda: len(lines(top)) >= 5, 60)
        check(not os.path.exists(os.path.join(top, "evidence")), "evidence of nothing")
        os.kill(processes(r"^\S*toroid train ")[-1], signal.SIGSEGV)
        check(finish(process).code != 0, "it goes on")
        paths = glob.glob(os.path.join(top, "evidence", "rank-*.txt"))
        texts = [open(path).read() for path in paths]
        dead = [text for text in texts if "signal 11" in text]
        check(len(dead) == 1, paths, texts)
        check(re.search(r"\d+: \d+ (forward|backward|embed|norm|update|loss|ring)", dead[0]), dead[0])
        check("toroid" in dead[0].split("\nstack\n")[1], dead[0])
    no_orphans()


def test_verify_a_job():
    """The first step of the job on meshes against one rank in float64; nothing of a run is left."""
    with tempfile.TemporaryDirectory() as top:
        run_words = words(top)
        verify = ["verify", *run_words[1:], "-o", "json", "--tokens", 96]
        for mesh, compute in [("ring=2", "FP64"), ("tensor=2", "FP64"), ("ring=2", "FP32"), ("data=2", "BF16")]:
            result = launch(2, *verify, "--mesh", mesh, "--set", f"compute={compute}")
            good(result)
            answer = result.json()
            check(answer["pass"] and 0 < answer["worst"]["error"] <= answer["worst"]["bound"], answer["worst"])
            check(answer["mesh"][mesh[:-2]] == 2, answer["mesh"])
            names = [tensor["tensor"] for tensor in answer["tensors"]]
            for name in ("loss", "gradient norm", "gradient of model.layers.1.self_attn.k_proj.weight",
                         "updated model.layers.1.mlp.down_proj.weight"):
                check(name in names, name, "is missing in", names)
            if compute == "FP64":
                check(all(tensor["bound"] == 1e-9 for tensor in answer["tensors"]), answer["tensors"])
        cut = good(run(*verify, "--layers", 1)).json()
        check(not any(".layers.1." in tensor["tensor"] for tensor in cut["tensors"]), "--layers 1")
        deep = [*verify, "--set", "model.shape.preset=gpt3-tiny"]  # of four layers
        few, full = good(run(*deep)).json()["tensors"], good(run(*deep, "--full")).json()["tensors"]
        check(any(".layers.1." in tensor["tensor"] for tensor in few), few)
        check(not any(".layers.2." in tensor["tensor"] for tensor in few), "two layers unless told", few)
        check(any(".layers.3." in tensor["tensor"] for tensor in full), "--full")
        tokens = good(run(*deep, "--layers", 4)).json()["tensors"]  # of 96 tokens, not of all
        check([t["tensor"] for t in tokens] == [t["tensor"] for t in full], tokens, full)
        check([t["error"] for t in tokens] != [t["error"] for t in full], "--tokens 96 changes nothing")
        check(os.listdir(top) == ["tokens"], os.listdir(top))
        refused(run(*verify, "--prompt", "x"), 2, "text with a job")
        flags = ["--mesh", "ring=2", "--compute", "f64", "--layout", "striped:4"]
        flagged = good(launch(2, *verify, *flags, "--set", "compute=FP32")).json()  # a flag beats the job
        check(all(tensor["bound"] == 1e-9 for tensor in flagged["tensors"]), flagged["tensors"])
        own = ["--set", "compute=FP32"]  # and the job the environment
        job = good(run(*verify, *own, env={"TOROID_COMPUTE": "f64"})).json()
        check(all(tensor["bound"] > 1e-9 for tensor in job["tensors"]), job["tensors"])
        refused(run(*verify, "--layout", "round"), 3, "round", "zigzag")
        refused(run(*verify, "--context", 64), 2, "--context", "--set")
        refused(run("verify", MODEL, "--set", "seed=1"), 2, "--set")


def test_progress_says_loss_and_speed():
    with tempfile.TemporaryDirectory() as top:
        shown = good(run(*words(top), "--progress", "bar")).err
        check(re.search(r"train .*%  \d+/12 steps .*loss \d+\.\d+  .*tokens/s  mfu \d+\.\d%", shown), shown)
        check("tokenise" in shown, shown)
        used = [(line["mfu"], line["hfu"]) for line in lines(top)]  # of a peak that was measured
        check(all(0 < mfu < hfu < 1 for mfu, hfu in used), used)


def test_mfu_is_of_the_peak_of_all_ranks():
    """A step's FLOPs are the job's: mfu x ranks x seconds is the same number on every mesh."""
    def flops(ranks):
        with tempfile.TemporaryDirectory() as top:
            shown = good(launch(ranks, *words(top, 2), "--peak-flops", "1e9", "--progress", "lines")).err
            check(re.search(r"mfu \d+\.\d%", shown), shown)
            return [[line[field] * ranks * line["step_s"] for field in ("mfu", "hfu")] for line in lines(top)]

    one, two = flops(1), flops(2)
    for (model, hardware), other in zip(one, two):
        check(model > 0 and hardware > 1.05 * model, one)  # the recomputed forward
        check(all(abs(a - b) < 1e-6 * a for a, b in zip((model, hardware), other)), (one, two))


def test_tensorboard_reads_the_events():
    python = os.path.join(os.path.dirname(TOROID), "tensorboard", "bin", "python")
    if not os.path.exists(python):
        raise Skipped(f"no {python}: ctest -R Checks.TensorBoard makes it from PyPI")
    read = """
import json, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
events = EventAccumulator(sys.argv[1])
events.Reload()
print(json.dumps({tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}))
"""
    with tempfile.TemporaryDirectory() as top:
        good(run(*words(top, 6), "-q", "--peak-flops", "1e9"))
        good(run(*words(top, 9), "-q", "--peak-flops", "1e9"))  # two files, one curve
        shown = json.loads(subprocess.run([python, "-c", read, top], check=True, stdout=subprocess.PIPE,
                                          stderr=subprocess.DEVNULL, timeout=120).stdout)
        check({"train/loss", "train/grad_norm", "train/lr", "speed/tokens_per_s"} <= shown.keys(), shown.keys())
        curve = shown["train/loss"]
        check([step for step, _ in curve] == list(range(1, 10)), curve)
        for tag, field in (("train/loss", "loss"), ("speed/mfu", "mfu"), ("speed/hfu", "hfu")):
            both = [(value, line[field]) for (_, value), line in zip(shown[tag], lines(top))]
            check(len(both) == 9 and all(abs(a - b) < 1e-5 * b for a, b in both), (tag, both))


if __name__ == "__main__":
    main()
