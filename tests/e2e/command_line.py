"""The command line without ranks: mistakes, help, tools, and what launch refuses."""
import json
import os
import tempfile

from harness import *


def test_mistakes_are_usage_errors():
    refused(run("generate", MODEL, "--promt", "x"), 2, "--promt", "did you mean --prompt?")
    refused(run("genrate"), 2, "genrate", "did you mean generate?")
    refused(run("generate", MODEL), 2, "no prompt")
    refused(run("generate", MODEL, "--prompt", "x", "--prompt-ids", "1"), 2, "several prompts")
    refused(run("generate", MODEL, "--prompt", "x", "--top-p", "2"), 2, "--top-p")
    refused(run("generate", MODEL, "--prompt", "x", "--device", "tpu"), 2, "--device", "cuda")
    for workload in (["ops"], ["train", MODEL]):
        refused(run("bench", *workload, "--device", "cuda"), 2, "--device", f"bench {workload[0]}")
    refused(run("bench", "model", MODEL, "--device", "cuda", "--compute", "f64"), 2, "--device cuda", "f64")
    refused(run("bench", "attention", "--device", "cuda", env={"CUDA_VISIBLE_DEVICES": ""}), 3, "--device cuda", "doctor")
    refused(run("generate", MODEL, "--prompt", "x", env={"TOROID_THREADS": "some"}), 2, "TOROID_THREADS")
    for service in (["up"], ["agent", "--pod", "a", "--controller", "127.0.0.1:1"]):
        refused(run(*service, "--root", "m=/tmp", "--root", "n=/tmp", "--root", "m=/usr"), 2, "--root m", "/tmp", "/usr")
    refused(run(), 2, "no verb")
    refused(run("job"), 2, "submit|list|get")
    for flag in (["--pod", "a"], ["--keep-alive", "1m"]):
        refused(run("generate", MODEL, "--prompt", "x", *flag), 2, flag[0], "--controller")


def test_planned_verbs_are_refused_and_not_shown():
    shown = run("--help")
    check(shown.code == 0 and "generate" in shown.out, shown.out)
    for verb in ["serve", "manifest", "completion"]:
        refused(run(verb, "x"), 2, "not in this version", verb)
        check(f"\n  {verb} " not in shown.out, verb, "is shown")
    check("worker" not in shown.out, "worker is shown")


def test_every_verb_has_help_with_examples():
    verbs = [line[2:18].strip() for line in run("--help").out.split("\n") if line.startswith("  ")]
    verbs = [verb for verb in verbs if verb and verb[0].isalpha()]
    check(len(verbs) > 5, verbs)
    for verb in verbs:
        shown = run(*verb.split(), "--help")
        check(shown.code == 0 and "examples:" in shown.out and shown.err == "", verb, shown.err)


def test_version():
    facts = run("version", "-o", "json").json()
    check(facts["schema"] == 1 and facts["isa"] in ("scalar", "avx2", "avx512"), facts)
    check(run("--version").out.startswith("toroid "), "--version")


def test_doctor():
    facts = run("doctor", "--device", "cpu", "-o", "json").json()
    check(facts["schema"] == 1 and facts["pass"] and facts["chosen"]["device"] == "cpu", facts)
    names = [line["check"] for line in facts["checks"]]
    check({"toroid", "processor", "cores", "memory", "MPI", "models"} <= set(names), names)
    check(not any(name.startswith("GPU") for name in names), names)
    with tempfile.TemporaryDirectory() as empty:
        shown = run("doctor", "--device", "cpu", env={"TOROID_MODELS": empty})
        line = next(x for x in shown.out.split("\n") if empty in x)
        check(shown.code == 0 and line.startswith("warning") and "get_model.sh" in line, shown.out)
    shown = run("doctor", "--device", "cpu", env={"PATH": "/nowhere"})
    line = next(x for x in shown.out.split("\n") if "Open MPI" in x)
    check(shown.code == 0 and line.startswith("warning") and "no mpirun" in line, shown.out)
    hidden = {"CUDA_VISIBLE_DEVICES": ""}  # also where there are GPUs
    shown = run("doctor", env=hidden)
    check(shown.code == 0 and "chosen" in shown.out, shown.out, shown.err)
    shown = run("doctor", "--device", "cuda", env=hidden)
    check(shown.code == 1 and "--device cuda" in shown.said()[0], shown.code, shown.err)
    check("warning  CUDA" in shown.out, shown.out)
    refused(run("doctor", "--device", "tpu"), 2, "--device", "cuda")


def test_tokenize():
    check(run("tokenize", MODEL, stdin="Hi\n", ).out == "72,105,10\n", "ids")
    tokens = run("tokenize", MODEL, "-o", "json", "--pieces", stdin="Hi").json()
    check(tokens["schema"] == 1 and tokens["count"] == 2 and tokens["ids"] == [72, 105], tokens)
    check(len(tokens["pieces"]) == 2, tokens)
    refused(run("tokenize", "/nowhere/model", stdin="x"), 3, "/nowhere/model")
    refused(run("tokenize", MODEL, "--file", "/nowhere/text"), 3, "/nowhere/text")


def test_inspect():
    facts = run("inspect", MODEL, "-o", "json").json()
    check(facts["schema"] == 1 and facts["format"] == "random", facts["format"])
    check(len(facts["tensors"]) > 10 and facts["parameters"] > 1000, "tensors")
    check(facts["files"] == [], "files")
    refused(run("inspect", "random:nothing"), 3, "nothing", "tiny-gqa")


def test_convert_and_inspect_a_checkpoint():
    with tempfile.TemporaryDirectory() as root:
        def path(*parts):
            return os.path.join(root, *parts)
        run_dir, checkpoints = path("run"), path("run", "checkpoints")
        first, second = (os.path.join(checkpoints, f"step-{n:08d}") for n in (0, 7))
        facts = run("convert", MODEL, first, "--to", "checkpoint", "--seed", 0, "-o", "json").json()
        check(facts["schema"] == 1 and facts["format"] == "checkpoint" and facts["lost"] == [], facts)
        refused(run("convert", MODEL, first, "--to", "checkpoint"), 3, first, "there is something of this name")
        refused(run("convert", MODEL, path("x"), "--to", "checkpoint", "--dtype", "bf16"), 2, "--dtype", "checkpoint")
        refused(run("convert", MODEL, path("x"), "--to", "gguf"), 2, "--to", "hugging-face")
        refused(run("convert", "random:palm-tiny", path("x")), 3, "palm", "transformers")
        refused(run("convert", path("nowhere"), path("x")), 3, path("nowhere"))

        shown = run("inspect", run_dir, "-o", "json").json()
        check(shown["format"] == "checkpoint" and shown["checkpoint"]["step"] == 0, shown["checkpoint"])
        check(shown["checkpoint"]["damaged"] is False and shown["checkpoint"]["before"] is None, shown["checkpoint"])
        check(shown["checkpoint"]["mesh"] == {"data": 1, "ring": 1, "tensor": 1}, shown["checkpoint"])
        check(shown["checkpoint"]["shards"][0]["sound"] is True, shown["checkpoint"])
        version = run("version", "-o", "json").json()["version"]
        check(shown["checkpoint"]["toroid"] == version, shown["checkpoint"])
        text = run("inspect", run_dir)
        check(text.code == 0 and "sound" in text.out and "data position" in text.out, text.out)

        words = ["--prompt", "The ring", "--max-tokens", 8, "-o", "json"]
        ids = run("generate", MODEL, *words).json()["ids"]
        check(run("generate", run_dir, *words).json()["ids"] == ids, "a checkpoint generates as its model")
        facts = run("convert", run_dir, path("hf"), "--shard-size", "64k", "-o", "json").json()
        check("config.json" in facts["files"] and len(facts["files"]) > 6, facts)
        check(run("generate", path("hf"), *words).json()["ids"] == ids, "an export generates as its model")
        check(run("generate", "random:tiny-mha", *words).json()["ids"] != ids, "control: another model")

        os.rename(first, path("saved"))
        refused(run("generate", run_dir, *words), 3, checkpoints, "no checkpoint in it yet")
        os.rename(path("saved"), first)
        os.mkdir(second)  # newer, and nothing in it
        offer = "the checkpoint before is " + first
        refused(run("generate", run_dir, *words), 3, os.path.join(second, "manifest.json"), "missing", offer)
        refused(run("inspect", run_dir), 3, "manifest.json", "missing", offer)
        os.rmdir(second)
        shard = os.path.join(first, "shard-00000-of-00001.bin")
        with open(shard, "r+b") as file:
            file.seek(1000)
            byte = file.read(1)
            file.seek(1000)
            file.write(bytes([byte[0] ^ 1]))
        refused(run("generate", run_dir, *words), 3, shard, "damaged")
        shown = run("inspect", run_dir, "-o", "json")
        check(shown.code == 3 and shard in shown.err, shown.err)
        check(shown.json()["checkpoint"]["damaged"] is True, shown.out)
        check(shown.json()["checkpoint"]["shards"][0]["sound"] is False, shown.out)
        check(run("inspect", run_dir, "--headers").code == 0, "headers alone do not tell")
        os.remove(shard)
        refused(run("inspect", run_dir, "-q"), 3, shard, "missing")


def test_convert_pools_kv_heads():
    with tempfile.TemporaryDirectory() as root:
        def config(name):
            with open(os.path.join(root, name, "config.json")) as file:
                return json.load(file)

        def made(name, *words):
            result = run("convert", "random:tiny-mha", os.path.join(root, name), *words, "-o", "json")
            check(result.code == 0, result.err)
            return result.json()
        whole = made("mha")
        heads = config("mha")["num_attention_heads"]
        check(config("mha")["num_key_value_heads"] == heads, config("mha"))
        words = ["--prompt-ids", "1,2,3", "--max-tokens", 8, "-o", "json"]
        answers = {}
        for kind in ("mean", "first", "random"):
            pooled = made(kind, "--kv-heads", 1, "--kv-pool", kind)
            check(config(kind)["num_key_value_heads"] == 1 and config(kind)["num_attention_heads"] == heads, config(kind))
            check(pooled["parameters"] < whole["parameters"], pooled, whole)
            answer = run("generate", os.path.join(root, kind), *words)
            check(answer.code == 0, answer.err)
            answers[kind] = answer.json()["min_margin"]
        check(len(set(answers.values())) == 3, "the kinds are one", answers)
        again = made("again", "--kv-heads", 1)  # the mean unless said
        check(run("generate", os.path.join(root, "again"), *words).json()["min_margin"] == answers["mean"], again)
        made("same", "--kv-heads", heads)  # control: nothing is pooled
        check(run("generate", os.path.join(root, "same"), *words).json()["min_margin"] ==
              run("generate", os.path.join(root, "mha"), *words).json()["min_margin"], "another model")
        refused(run("convert", "random:tiny-mha", os.path.join(root, "x"), "--kv-heads", heads + 1), 3, heads, heads + 1)
        refused(run("convert", "random:tiny-mha", os.path.join(root, "x"), "--kv-pool", "first"), 2, "--kv-heads")
        check(not os.path.exists(os.path.join(root, "x")), "something of it was written")


def test_plan():
    words = ["plan", MODEL, "--mesh", "data=2,ring=3,tensor=2"]
    facts = run(*words, "--context", 4096, "-o", "json").json()
    check(facts["schema"] == 1 and facts["fits"] is True and facts["advice"] == [], facts["advice"])
    check([rank["rank"] for rank in facts["ranks"]] == list(range(12)), facts["ranks"])
    for rank in facts["ranks"]:
        parts = ["weights", "optimizer", "gradients", "activations", "kv", "ring_buffers", "communicator", "checkpoint_copy",
                 "device"]
        check(sum(rank[part] for part in parts) == rank["total"] and rank["limit"] is None, rank)
    check(facts["ranks"][0]["kv"] > 0 and facts["ranks"][0]["optimizer"] == 0, facts["ranks"][0])
    gpu = run(*words, "--context", 4096, "--device", "cuda", "-o", "json").json()["ranks"][0]  # no GPU is needed
    cpu = run(*words, "--context", 4096, "--device", "cpu", "-o", "json").json()["ranks"][0]
    check(gpu["device"] > 0 == cpu["device"] and gpu["kv"] == cpu["kv"] and gpu["communicator"] == 0, gpu, cpu)
    refused(run(*words, "--device", "cuda", "--compute", "f64"), 3, "--device cuda", "f64")
    train = run(*words, "--sequence-length", 1024, "--flops", "1e9", "-o", "json").json()
    check(train["task"] == "train" and train["ranks"][0]["optimizer"] > 0, train["ranks"][0])
    check(train["seconds"]["step"] > 0, train["seconds"])
    most = max(rank["total"] for rank in train["ranks"])
    small = run(*words, "--sequence-length", 1024, "--memory", most - 1, "-o", "json")
    check(small.code == 1 and small.json()["fits"] is False, small.err)
    check(small.json()["advice"] and small.json()["advice"][0] in small.err, small.err)
    check(run(*words, "--sequence-length", 1024, "--memory", most).code == 0, "it fits exactly")
    text = run("plan", "random:palm-540b", "--mesh", "data=64,ring=8,tensor=12", "--sequence-length", 2048)
    check(text.code == 0 and "activations" in text.out, text.err)
    job = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "deploy", "jobs", "train.textproto")
    refused(run("plan", job), 2, "--mesh")
    facts = run("plan", job, "--mesh", "data=2", "--set", "train.remat=BLOCK", "-o", "json").json()
    check(facts["task"] == "train" and len(facts["ranks"]) == 2, facts)
    for flag, value in (("--remat", "none"), ("--layout", "striped"), ("--compute", "bf16"), ("--seed", 3)):
        refused(run("plan", job, "--mesh", "data=2", flag, value), 2, flag, "--set")
    whole = ["--set", "train.data.sequence_length=2048", "--set", "train.data.batch_tokens=2048"]  # refused as train refuses it
    refused(run("plan", job, "--mesh", "data=1", "--set", "model.shape.preset=gpt2-124m", *whole), 3, "learned 1024 positions")
    refused(run("plan", job, "--mesh", "data=1", "--set", "train.spike.rewind_steps=100"), 3, "spike", "keep 6")
    refused(run("plan", job, "--mesh", "data=1", *whole, "--set", "train.noise_scale_every=2"), 3, "noise scale")
    check(run("plan", job, "--mesh", "data=1", *whole, "--set", "train.spike.rewind_steps=20").code == 0, "negative control")
    link = ["plan", job, "--mesh", "data=1", "--link-rate", "1MB", "--link-latency", "20ms", "--step-seconds", "0.5"]
    facts = run(*link, "-o", "json").json()
    exchange = facts["exchange"]
    check(exchange["pods"] == 2 and len(exchange["modes"]) == 16 and not exchange["hidden"], exchange)
    check(facts["seconds"]["exchange"] == exchange["own"]["turn_s"] > 0, facts["seconds"])
    alone = run("plan", MODEL, "--mesh", "data=1", "--sequence-length", 64, "--link-rate", "1MB", "-o", "json").json()
    check(alone["exchange"]["host_bytes"] > alone["ranks"][0]["weights"] > 0, alone["exchange"])  # own, and a peer's
    host = exchange["host"]  # the job's mode is exact: nothing is kept from step to step, gradients lie on the host
    check(host["state"] == host["given"] == host["buffers"] == 0 < host["queues"], host)
    check(exchange["host_bytes"] == sum(host.values()), exchange)
    kept = run(*link, "--set", "mesh.pods=2", "--set", "train.exchange.diloco.every=4", "--set", "train.exchange.policy=CONTINUE")
    check(re.search(r"host memory: state \d.*, buffers \d.*, queues at most \d.*, the state on its way to a pod that comes \d",
                    kept.out), kept.out)
    settings = facts["advice"][0].split(": ")[0].split()  # the job with its advice hides it
    check("mesh.pods=2" in settings and any("train.exchange." in word for word in settings), settings)
    changed = run(*link, *settings, "-o", "json").json()
    check(changed["exchange"]["hidden"] and changed["advice"] == [], changed["exchange"]["own"])
    check("speed-up" in run(*link).out and "hidden with --set" in run(*link).out, "in words")
    refused(run("plan", job, "--mesh", "data=1", "--step-seconds", 3), 2, "--link-rate")
    refused(run("plan", MODEL, "--link-rate", "1MB"), 2, "training")
    refused(run("plan", MODEL, "--mesh", "ring=*"), 2, "ring", "*")
    refused(run("plan", MODEL, "--mesh", "tensor=10"), 3, "tensor", "10")
    refused(run("plan", MODEL, "--sequence-length", 64, "--batch-tokens", 63), 3, "63")


def test_launch_prints_the_line():
    shown = run("launch", "-n", 4, "--dry-run", "generate", MODEL, "--prompt", "a b")
    check(shown.code == 0, shown.err)
    line = shown.out.strip()
    check("mpirun" in line and " -n 4 " in line and line.endswith(f"generate {MODEL} --prompt 'a b'"), line)


def test_launch_refuses():
    words = ["generate", MODEL, "--prompt", "x"]
    with tempfile.TemporaryDirectory() as empty:
        refused(run("launch", "-n", 2, *words, env={"PATH": empty}), 3, "mpirun not found")
    refused(run("launch", "-n", 4, "--hosts", "localhost:1", *words), 3, "too few slots", 4, 1)
    refused(run("launch", "-n", 2, "genrate"), 2, "did you mean generate?")
    refused(run("launch", "-n", 2, "tokenize", MODEL), 2, "not for ranks")
    refused(run("launch", "-n", 2, *words, "--lauout", "zigzag"), 2, "did you mean --layout?")
    refused(run("launch", "-n", 2), 2, "no verb")
    refused(run("launch", "-q", "--hosts", "no.such.host:1,other.such.host:1", *words), 3, "every host")
    check("--max-tokens" in run("launch", "-n", 2, "generate", "--help").out, "the verb's own help")
    refused(run("launch", "-n", 2, *words, env={"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"}),
            2, "the ranks are already here")


def test_where_a_field_comes_from():
    job = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "deploy", "jobs", "generate.textproto")
    env = {"TOROID_GENERATE_MAX_TOKENS": "99", "TOROID_GENERATE_SAMPLING_TOP_P": "0.5", "TOROID_SCORE_TOP": "3",
           "TOROID_GENERATE_PROMPT_FILE": "f", "TOROID_PRIORITY": "1", "TOROID_COMPUTE": "f64"}
    result = run("config", "show", job, "--origin", "--set", "priority=2", "-o", "json", env=env)
    rows = {row["field"]: (row["value"], row["origin"]) for row in result.json()["rows"]}
    said = [line for line in result.err.splitlines() if "TOROID_E2E_MARK" not in line]  # the harness's own
    check(said == [], said)
    for field, value, origin in [("generate.max_tokens", 16, "file"), ("priority", 2, "--set"),
                                 ("generate.sampling.top_p", 0.5, "TOROID_GENERATE_SAMPLING_TOP_P"),
                                 ("compute", "FP64", "TOROID_COMPUTE"), ("model.page_tokens", 16, "default")]:
        check((str(rows[field][0]), rows[field][1]) == (str(value), origin), field, rows[field])
    check("generate.prompt.text" in rows and "generate.prompt.file" not in rows, rows)
    wrong = run("config", "show", job, env={"TOROID_GENERATE_MAX_TOKEN": "1"})
    check(wrong.code == 0 and "TOROID_GENERATE_MAX_TOKEN: did you mean TOROID_GENERATE_MAX_TOKENS?" in wrong.err, wrong.err)
    refused(run("config", "show", job, env={"TOROID_GENERATE_SAMPLING_TOP_K": "-1"}), 3, "below 0", "TOROID_GENERATE_SAMPLING_TOP_K")


def test_no_controller_there():
    refused(run("pods", "--controller", "127.0.0.1:1"), 4, "127.0.0.1:1")


if __name__ == "__main__":
    main()
