"""generate and score on one rank and on worlds: equal tokens, JSON, bad input, ends."""
import os
import signal
import tempfile
import time

from harness import *

PROMPT = ["--prompt", "The quick brown fox jumps over the lazy dog.", "--max-tokens", 12]


def test_one_rank_and_four_give_the_same_tokens():
    one = run("generate", MODEL, *PROMPT, "-o", "json").json()
    for mesh in ["ring=4", "ring=2,tensor=2", "tensor=4"]:
        four = launch(4, "generate", MODEL, *PROMPT, "--mesh", mesh, "-o", "json").json()
        check(four["ids"] == one["ids"], mesh, four["ids"], one["ids"])
    # Negative control: other weights give other tokens.
    other = run("generate", MODEL, *PROMPT, "--seed", 7, "-o", "json").json()
    check(other["ids"] != one["ids"], "another seed gives the same tokens")


def test_json_fields():
    result = launch(2, "generate", MODEL, *PROMPT, "-o", "json", "--logprobs", "--prompt-logprobs", 4)
    check(result.code == 0, result.err)
    answer = result.json()
    for field in ["model", "mesh", "prompt_tokens", "ids", "text", "finish_reason", "logprobs",
                  "prompt_logprobs", "min_margin", "timing", "memory", "comm"]:
        check(field in answer, field, "is missing")
    check(answer["schema"] == 1 and answer["model"] == MODEL, answer["model"])
    check(answer["mesh"] == {"pods": 1, "data": 1, "ring": 2, "tensor": 1}, answer["mesh"])
    check(answer["prompt_tokens"] == len(PROMPT[1]), answer["prompt_tokens"])
    check(len(answer["ids"]) == 12 and len(answer["logprobs"]) == 12, answer["ids"])
    check(len(answer["prompt_logprobs"]) == 4, answer["prompt_logprobs"])
    check(len(answer["memory"]["peak_bytes"]) == 2, answer["memory"])
    ring = answer["comm"]["by_axis"]["ring"]
    check(len(ring["bytes_sent"]) == 2 and min(ring["prefill_bytes_sent"]) > 0, ring)
    check("tokens/s" not in result.out, "talk on stdout")


MANY = ["--prompt", "abc", "--prompt", "one two three", "-n", 2, "--max-tokens", 6, "--ignore-eos",
        "--temperature", 1, "--seed", 3]


def answers(result):
    check(result.code == 0, result.err)
    return [json.loads(line) for line in result.out.splitlines()]


def test_several_prompts_and_answers():
    one = answers(run("generate", MODEL, *MANY, "-o", "json"))
    check([(a["prompt_index"], a["index"]) for a in one] == [(0, 0), (0, 1), (1, 0), (1, 1)], one)
    check([a["prompt_tokens"] for a in one] == [3, 3, 13, 13], one)
    check(len({tuple(a["ids"]) for a in one}) == 4, "sampled answers differ", one)
    for answer in one:
        check(len(answer["ids"]) == 6 and "memory" in answer and "comm" in answer, answer)
        check((answer["timing"]["prefill_s"] > 0) == (answer["index"] == 0), answer["timing"])
    four = answers(launch(4, "generate", MODEL, *MANY, "--mesh", "ring=2,tensor=2", "-o", "json"))
    check([a["ids"] for a in four] == [a["ids"] for a in one], four)
    texts = "".join(a["text"] + "\n" for a in one)
    for words in [[], ["--no-stream"]]:
        text = run("generate", MODEL, *MANY, *words)
        check(text.out == texts, repr(text.out), repr(texts))
        for heading in ["prompt 0, answer 0:", "prompt 0, answer 1:", "prompt 1, answer 1:"]:
            check(text.err.count(heading) == 1, heading, text.err)
        check("4 answers: 24 tokens" in text.err, text.err)
        quiet = run("generate", MODEL, *MANY, *words, "-q")
        check(quiet.out == texts and quiet.err == "", quiet.err)
    check("answer 0" not in run("generate", MODEL, *PROMPT).err, "one answer has no heading")
    check([a["batch"] for a in one] == [4] * 4, one)
    three = answers(run("generate", MODEL, *MANY, "--batch", 3, "-o", "json"))
    check([(a["batch"], a["ids"]) for a in three] == [(3, a["ids"]) for a in one], three)


def test_how_many_answers():
    for words, said in [(["-n", 0], "n is 0"), (["-n", 1025], "1024"),
                        (["-n", 600, "--prompt", "x"], "2 prompts")]:
        refused(run("generate", MODEL, *PROMPT, *words), 2, "--n", said)
    refused(run("generate", MODEL, *PROMPT, "--prompt-ids", "1"), 2, "several prompts")
    refused(run("generate", MODEL, "--prompt", "-", "--prompt", "-"), 2, "standard input")
    refused(run("generate", MODEL, "--prompt-ids", "1", "--prompt-ids", ""), 3, "no token ids")
    refused(run("generate", MODEL, "--prompt-ids", "1", "--prompt-ids", "2,999999"), 3, "prompt 1", "999999")
    refused(run("score", MODEL, "--prompt", "a", "--prompt", "b"), 2, "several prompts")
    # launch's own -n stands before the verb.
    check(len(answers(launch(2, "generate", MODEL, *PROMPT, "-n", 3, "-o", "json"))) == 3, "-n 2 and -n 3")


def test_text_streams_and_summary_is_talk():
    result = run("generate", MODEL, *PROMPT)
    check(result.code == 0 and "12 tokens" in result.err and "peak" in result.err, result.err)
    quiet = run("generate", MODEL, *PROMPT, "-q", "--no-stream")
    check(quiet.out == result.out and quiet.err == "", quiet.err)
    answer = run("generate", MODEL, *PROMPT, "-o", "json").json()
    check(answer["text"] + "\n" == result.out, repr(answer["text"]), repr(result.out))


def test_verbose_says_where_and_how_long():
    words = ["generate", MODEL, *PROMPT, "--mesh", "ring=2", "--layout", "contiguous"]
    plain, verbose = launch(2, *words), launch(2, *words, "-v")
    check(verbose.code == 0 and verbose.out == plain.out, verbose.err)
    host = os.uname().nodename
    for said in ["mesh data=1,ring=2,tensor=1", "layout contiguous",
                 f"rank 0: data 0, ring 0, tensor 0, host {host}",
                 f"rank 1: data 0, ring 1, tensor 0, host {host}", "load: ", "prefill: ",
                 "decode: ", "sent per rank: ring ", "memory per rank: ", " foreseen"]:
        check(said in verbose.err, repr(said), "is missing in", verbose.err)
        check(said.startswith("mesh") or said not in plain.err, repr(said), "without -v:", plain.err)
    quiet = launch(2, *words, "-v", "-q")
    check(quiet.err == "", "-q is not quiet:", quiet.err)
    scored = run("score", MODEL, "--prompt", "abc", "-v")
    check("rank 0: data 0" in scored.err and "decode: " not in scored.err, scored.err)
    verified = run("verify", MODEL, "--tokens", 8, "-v")
    check("layout striped:16" in verified.err and "load: " in verified.err, verified.err)


def test_prompts_from_everywhere():
    text = "one two three"
    ids = ",".join(str(b) for b in text.encode())
    expected = run("generate", MODEL, "--prompt", text, "--max-tokens", 4, "-q").out
    with tempfile.NamedTemporaryFile("w") as file:
        file.write(text)
        file.flush()
        for words, stdin in [(["--prompt", f"@{file.name}"], ""), (["--file", file.name], ""),
                             (["--prompt", "-"], text), (["--prompt-ids", ids], ""),
                             (["--prompt-ids", "-"], ids)]:
            result = run("generate", MODEL, *words, "--max-tokens", 4, "-q", stdin=stdin)
            check(result.out == expected, words, result.out, result.err)
    piped = launch(2, "generate", MODEL, "--prompt", "-", "--max-tokens", 4, "-q", stdin=text)
    check(piped.out == expected, "standard input reaches rank 0", piped.err)


def test_score():
    words = ["score", MODEL, "--prompt", "abcdefgh", "--top", 3, "--logprobs", "-o", "json"]
    one, two = run(*words).json(), launch(2, *words).json()
    check(one["tokens"] == 7 and len(one["logprobs"]) == 7, one["tokens"])
    check(len(one["last"]["top"]) == 3, one["last"])
    check(abs(one["mean_nll"] - two["mean_nll"]) < 1e-4, one["mean_nll"], two["mean_nll"])


def test_wrong_mesh_names_both_numbers_and_a_mesh():
    refused(launch(4, "generate", MODEL, *PROMPT, "--mesh", "ring=3"), 3, "3", "4", "ring=")
    refused(run("generate", MODEL, *PROMPT, "--mesh", "ring=2"), 3, "2", "1")


def test_bad_input():
    refused(run("generate", MODEL, "--prompt-ids", "1,999999"), 3, "999999")
    refused(run("generate", MODEL, "--prompt-ids", "1,x"), 3, "'x'")
    refused(run("generate", MODEL, *PROMPT, "--context", 20), 3, "20")
    refused(launch(2, "generate", MODEL, *PROMPT, "--context", 20), 3, "20")
    refused(run("generate", "/nowhere/model", *PROMPT), 3, "/nowhere/model")
    refused(launch(2, "generate", "/nowhere/model", *PROMPT), 3, "/nowhere/model")
    refused(run("generate", "random:nothing", *PROMPT), 3, "nothing")
    refused(run("generate", MODEL, "--prompt", "@/nowhere/text"), 3, "/nowhere/text")
    refused(run("generate", MODEL, *PROMPT, "--chat"), 3, "chat template")
    refused(run("generate", MODEL, *PROMPT, "--stop-id", 999999), 3, "999999")
    golden = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "golden", "models", "llama")
    refused(run("generate", golden, *PROMPT), 3, "no tokenizer")
    ids = ["--prompt-ids", "1,2,3"]
    for verb in ("generate", "score", "verify"):  # 512 tokens, no scaling
        refused(run(verb, golden, *ids, "--context", 513), 3, "513", "512", "--context")
    refused(launch(2, "generate", golden, *ids, "--context", "1k"), 3, "1024", "512")
    check(run("generate", golden, *ids, "--max-tokens", 2, "--context", 512).code == 0, "512 of 512")
    check(run("generate", MODEL, *PROMPT, "--context", "64k").code == 0, "random weights reach anywhere")
    check(run("generate", golden, "--prompt-ids", "1,2", "--max-tokens", 2).code == 0, "ids alone")


def test_singleton_is_refused_where_more_were_promised():
    for env in [{"SLURM_PROCID": "0", "SLURM_NTASKS": "2"}, {"PMI_RANK": "0", "PMI_SIZE": "2"}]:
        refused(run("generate", MODEL, *PROMPT, env=env), 3, "2 ranks", "-n 2")


def test_ranks_that_disagree_about_the_model_are_named():
    source = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "golden", "models")
    with tempfile.TemporaryDirectory() as top:
        dirs = []
        for name, model in [("x", "llama_mha"), ("y", "llama")]:
            dirs.append(os.path.join(top, name))
            os.mkdir(dirs[-1])
            if not os.path.isdir(os.path.join(source, model)):
                raise Skipped(f"no golden model {model}")
            os.symlink(os.path.abspath(os.path.join(source, model)), os.path.join(dirs[-1], "m"))
        command = [TOROID, "generate", "m", "--prompt-ids", "1,2,3", "--max-tokens", "2"]
        result = run("-q", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none",
                     "-n", 1, "-wdir", dirs[0], *command, ":", "-n", 1, "-wdir", dirs[1], *command,
                     program=shutil.which("mpirun"))
        refused(result, 3, "model", os.uname().nodename)


def long_run(*words):
    return ["generate", MODEL, "--prompt", "x" * 200, "--max-tokens", 30000, "--ignore-eos", *words]


def test_ctrl_c_stops_at_a_token():
    process = start(*long_run())
    first = process.stdout.read(1)
    check(first, "no token came")
    process.send_signal(signal.SIGINT)
    result = finish(process)
    check(result.code == 130, result.code, result.err)
    check("tokens" in result.err, "the summary is missing:", result.err)
    no_orphans()


def test_what_was_made_before_the_deadline_is_reported():
    result = launch(2, *long_run("--timeout", "6s", "-o", "json"))
    check(result.code == 124, result.code, result.err)
    answer = result.json()
    check(answer["finish_reason"] == "cancelled" and answer["ids"], answer["finish_reason"])
    check(answer["mesh"]["ring"] == 2 and len(answer["memory"]["peak_bytes"]) == 2, answer["mesh"])
    check(answer["timing"]["decode_tokens_per_s"] > 0, answer["timing"])
    check(min(answer["comm"]["by_axis"]["ring"]["bytes_sent"]) > 0, answer["comm"])


def test_timeout():
    result = run(*long_run("--timeout", "1s"))
    check(result.code == 124, result.code, result.err)
    check(any("--timeout" in line for line in result.said()), result.err)


def test_a_killed_rank_is_named_with_its_host():
    process = start("launch", "-n", 3, *long_run())
    check(process.stdout.read(1), "no token came")
    ranks = processes(r"^\S*toroid generate")
    check(len(ranks) == 3, ranks)
    os.kill(ranks[1], signal.SIGKILL)
    result = finish(process)
    check(result.code == 1, "exit code", result.code)
    check(any("rank 1" in l and os.uname().nodename in l and "signal 9" in l for l in result.said()),
          result.err)
    check("-----" not in result.err, "Open MPI's own words:", result.err)
    no_orphans()


def test_a_killed_mpirun_is_named():
    process = start("launch", "-n", 2, *long_run())
    check(process.stdout.read(1), "no token came")
    os.kill(processes(r"^\S*mpirun ")[0], signal.SIGKILL)
    result = finish(process)
    check(result.code == 1, result.code, result.err)
    check(any("mpirun" in l and "signal 9" in l for l in result.said()), result.err)
    no_orphans()


def test_nothing_outlives_launch_or_mpirun():
    for victim in [r"^\S*toroid launch", r"^\S*mpirun "]:
        process = start("launch", "-n", 2, *long_run())
        check(process.stdout.read(1), "no token came")
        os.kill(processes(victim)[0], signal.SIGKILL)
        process.stdout.close()
        process.stderr.close()
        process.wait(20)
        no_orphans()


def test_a_stopped_rank_is_named():
    process = start("launch", "-n", 4, *long_run("--stall-timeout", "2s"))
    check(process.stdout.read(1), "no token came")
    ranks = processes(r"^\S*toroid generate")
    os.kill(ranks[2], signal.SIGSTOP)
    result = finish(process, timeout=40)
    check(result.code == 1, result.code, result.err)
    check("rank 2" in result.err and os.uname().nodename in result.err, result.err)
    no_orphans(20)


def test_progress_modes():
    words = ["generate", MODEL, "--prompt", "y" * 3000, "--max-tokens", 2]
    check("\r" not in run(*words).err, "a bar in a pipe")
    check("prefill" in run(*words, "--progress", "bar").err, "no bar")
    check("prefill" in run(*words, env={"TOROID_PROGRESS": "bar"}).err, "TOROID_PROGRESS")


def test_verify_and_bench():
    result = launch(4, "verify", MODEL, "--mesh", "ring=2,tensor=2", "--tokens", 64, "-o", "json")
    check(result.code == 0, result.err)
    answer = result.json()
    check(answer["pass"] and answer["worst"]["error"] <= answer["worst"]["bound"], answer["worst"])
    check(len(answer["tensors"]) > 10, answer["tensors"])
    result = run("verify", "--self-test", "-o", "json")
    check(result.code == 0, result.err)
    answer = result.json()
    check(answer["pass"] and answer["clean"]["pass"], answer["clean"])
    check(len(answer["bugs"]) == 8 and all(bug["found"] for bug in answer["bugs"]), answer["bugs"])
    refused(run("verify"), 2, "MODEL", "--self-test")
    refused(run("verify", MODEL, "--self-test"), 2, "MODEL")
    for suite, size in [("ring", ["--tokens", 256]), ("collectives", [])]:
        rows = launch(2, "bench", suite, "--samples", 1, *size, "-o", "json").json()["rows"]
        # An exchange that hides wholly under the attention has no exposed time, hence no rate.
        timed = [row for row in rows if row["seconds"] > 0 or "exposed" not in row["case"]]
        check(timed and all(row["seconds"] > 0 and row["rate"] > 0 for row in timed), rows)
    refused(run("bench", "ring"), 2, "launch -n 2")
    refused(run("bench", "opps"), 2, "did you mean ops?")
    rows = run("bench", "model", MODEL, "--tokens", 32, "-o", "json").json()["rows"]
    check([row["case"] for row in rows] == ["prefill 32", "decode after 32"], rows)


if __name__ == "__main__":
    main()
