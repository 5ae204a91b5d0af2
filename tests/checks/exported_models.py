"""exported_models.py TOROID VENV: what `toroid convert` writes, loaded by transformers: equal logits and tokens.

VENV is a Python environment with torch and transformers, made from PyPI if it is not there; exit 77 (skipped)
if that fails. SmolLM2 is read if it is in ~/.cache/toroid/models (TOROID_MODELS).
"""
import json
import os
import pathlib
import subprocess
import sys
import tempfile

from environment import python_with

REQUIREMENTS = ["numpy==2.4.6", "tokenizers==0.23.3", "torch==2.15.0", "transformers==5.23.0"]
TOLERANCE = 1e-4  # of a logit, and of a log p
TEXT = "It's 2024: the ring turns, and 1,234 tokens pass.\n\nThey don't   return; naïve café.\n"


def toroid(binary, *words, **options):
    env = {k: v for k, v in os.environ.items() if not k.startswith("TOROID_") or k == "TOROID_MODELS"}
    done = subprocess.run([binary, *map(str, words)], env=env, stdout=subprocess.PIPE, check=True, **options)
    return done.stdout


def differences(binary, model, exported, ids):
    """The largest differences of logits at the last token and of log p of all, toroid less transformers."""
    import torch
    import transformers
    score = json.loads(toroid(binary, "score", model, "--prompt-ids", ",".join(map(str, ids)), "--top", 64,
                              "--logprobs", "-o", "json"))
    oracle = transformers.AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = oracle(torch.tensor([ids])).logits[0].double()
    log_p = torch.log_softmax(logits[:-1], -1).gather(1, torch.tensor(ids[1:]).unsqueeze(1)).squeeze(1)
    top = max(abs(float(logits[-1][i]) - x) for i, x in score["last"]["top"])
    return top, float((log_p - torch.tensor(score["logprobs"], dtype=torch.float64)).abs().max())


def check_import(binary, model, exported, ids):
    """What transformers saves of its own model is read as the same one."""
    import transformers
    saved = exported + "-saved"
    transformers.AutoModelForCausalLM.from_pretrained(exported).save_pretrained(saved)
    for other in (exported, saved):
        worst = differences(binary, other, exported, ids)
        assert max(worst) < TOLERANCE, f"{model}, read again from {other}: logits differ by {worst}"


def check_model(binary, model, directory):
    import transformers
    exported = str(pathlib.Path(directory) / "export")
    toroid(binary, "convert", model, exported, "--shard-size", "50MB")
    ids = [int(i) for i in toroid(binary, "tokenize", model, input=TEXT.encode()).decode().split(",")]
    theirs = transformers.AutoTokenizer.from_pretrained(exported)
    assert theirs.encode(TEXT, add_special_tokens=False) == ids, "tokens differ"
    assert theirs.decode(ids) == TEXT, "text differs"
    worst = differences(binary, model, exported, ids)
    assert max(worst) < TOLERANCE, f"{model}: logits differ by {worst}"
    check_import(binary, model, exported, ids)
    # Control: half-split rows taken for interleaved ones would be seen, so would another layer's weights.
    import safetensors.torch
    for name in sorted(os.listdir(exported)):
        if not name.endswith(".safetensors"):
            continue
        path = os.path.join(exported, name)
        tensors = safetensors.torch.load_file(path)
        config = json.loads((pathlib.Path(exported) / "config.json").read_text())
        gpt2 = config["model_type"] == "gpt2"
        key = next((k for k in tensors if k.endswith("h.1.attn.c_attn.weight" if gpt2 else "layers.1.self_attn.q_proj.weight")), None)
        if key is None:
            continue
        if gpt2:  # K in the place of Q
            tensors[key] = tensors[key].roll(config["n_embd"], 1).contiguous()
        else:
            heads, half = config["num_attention_heads"], config["head_dim"] // 2
            rows = tensors[key].view(heads, 2, half, -1).transpose(1, 2).reshape(tensors[key].shape)
            tensors[key] = rows.contiguous()
        safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})
    wrong = differences(binary, model, exported, ids)
    assert max(wrong) > 10 * TOLERANCE, f"{model}: the control does not show: {wrong}"
    print(f"{model}: logits within {max(worst):.1e}; the control is off by {max(wrong):.1e}")


def main():
    binary, venv = os.path.abspath(sys.argv[1]), pathlib.Path(sys.argv[2]).absolute()
    if len(sys.argv) == 3:
        python = python_with(venv, ["torch", "transformers"], REQUIREMENTS)
        sys.exit(subprocess.run([python, __file__, binary, venv, "in-venv"]).returncode)
    root = pathlib.Path(os.environ.get("TOROID_MODELS", "~/.cache/toroid/models")).expanduser()
    smollm2 = root / "smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    # transformers takes no width that the heads do not divide: SmolLM2 has the nine heads.
    models = ["random:tiny-mha", "random:tiny-mistral", "random:tiny-qwen2", "random:tiny-qwen3", "random:gpt2-tiny"]
    if smollm2.exists():
        models.append(str(smollm2))
    else:
        print("SKIPPED: SmolLM2 is not here: deploy/quickstart.sh gets it")
    for model in models:
        with tempfile.TemporaryDirectory() as directory:
            check_model(binary, model, directory)


if __name__ == "__main__":
    main()
