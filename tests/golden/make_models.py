"""Makes models/*/: random two-layer models of transformers' own classes and their logits.

python make_models.py            README.md lists the models and what their files hold.
"""

import json
import os
import shutil

import torch
import transformers
from safetensors.torch import save_file

import oracle

TOKENS = 72
VOCAB = 163  # prime: no mesh divides it
GREEDY = {"prompt_tokens": 16, "max_tokens": 24}
MIN_MARGIN = 5e-3

LLAMA = dict(vocab_size=VOCAB, hidden_size=36, intermediate_size=128, num_hidden_layers=2, num_attention_heads=6,
             num_key_value_heads=2, head_dim=16, max_position_embeddings=512, rms_norm_eps=1e-5,
             tie_word_embeddings=True)
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}


def specs():
    """name -> (class, fields of the configuration, model whose weights it takes or None)."""
    llama, mistral = transformers.LlamaConfig, transformers.MistralConfig
    qwen2, qwen3 = transformers.Qwen2Config, transformers.Qwen3Config
    rope = lambda **fields: {**LLAMA, "rope_parameters": {"rope_theta": 10000.0, **fields}}
    window = dict(use_sliding_window=True, sliding_window=20)
    mistral_fields = {**LLAMA, "hidden_size": 32, "intermediate_size": 96, "tie_word_embeddings": False, "rms_norm_eps": 1e-6}
    qwen2_fields = dict(vocab_size=VOCAB, hidden_size=48, intermediate_size=96, num_hidden_layers=2,
                        num_attention_heads=6, num_key_value_heads=2, max_position_embeddings=512,
                        tie_word_embeddings=True, rope_parameters={"rope_type": "default", "rope_theta": 1e6})
    qwen3_fields = {**mistral_fields, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}
    return {
        # D 36 is not H K = 96; GQA 6:2; tied.
        "llama": (llama, LLAMA, None),
        # MHA, untied, biases on every product, F 104 no multiple of 32.
        "llama_mha": (llama, {**LLAMA, "hidden_size": 40, "intermediate_size": 104, "num_attention_heads": 5,
                              "num_key_value_heads": 5, "head_dim": 8, "tie_word_embeddings": False,
                              "attention_bias": True, "mlp_bias": True}, None),
        # MQA 9:1, head dim 12.
        "llama_mqa": (llama, {**LLAMA, "hidden_size": 36, "intermediate_size": 72, "num_attention_heads": 9,
                              "num_key_value_heads": 1, "head_dim": 12}, None),
        "llama_linear": (llama, rope(rope_type="linear", factor=4.0), "llama"),
        "llama_llama3": (llama, rope(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                                     original_max_position_embeddings=64), "llama"),
        "llama_yarn": (llama, rope(**YARN), "llama"),
        "llama_yarn_mscale": (llama, rope(**YARN, mscale=0.707, mscale_all_dim=1.0, beta_fast=4.0, beta_slow=0.5,
                                          truncate=False), "llama"),
        "llama_yarn_attention": (llama, rope(**YARN, attention_factor=1.3), "llama"),
        "llama_dynamic": (llama, {**rope(rope_type="dynamic", factor=2.0), "max_position_embeddings": 48}, "llama"),
        "mistral": (mistral, {**mistral_fields, "sliding_window": 24}, None),
        "mistral_full": (mistral, {**mistral_fields, "sliding_window": None}, "mistral"),
        "qwen2": (qwen2, qwen2_fields, None),
        "qwen2_window": (qwen2, {**qwen2_fields, **window, "max_window_layers": 1}, "qwen2"),
        "qwen3": (qwen3, qwen3_fields, None),
        "qwen3_window": (qwen3, {**qwen3_fields, **window,
                                 "layer_types": ["sliding_attention", "full_attention"]}, "qwen3"),
        # Shards of bfloat16, float16 and float32 behind an index.
        "llama_sharded": (llama, {**LLAMA, "tie_word_embeddings": False}, None),
    }


def random_weights(model, generator):
    """Weights large enough that attention is peaked and logits differ by several units."""
    state = {}
    for name, tensor in model.state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float32)
        if name.endswith("norm.weight"):
            state[name] = 1 + 0.3 * noise
        elif name.endswith("bias"):
            state[name] = 0.3 * noise
        elif "embed_tokens" in name:
            state[name] = 0.5 * noise
        else:
            gain = 1.6 if "q_proj" in name or "k_proj" in name or "lm_head" in name else 1.1
            state[name] = gain * noise / tensor.shape[1] ** 0.5
    if model.config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    return state


def build(config, state, dtype):
    """The model with these weights; with float64, call inside oracle.float64()."""
    cls = transformers.AutoModelForCausalLM
    model = cls.from_config(config, attn_implementation="eager")
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    model.tie_weights()
    return model.to(dtype).eval()


@torch.no_grad()
def logits_of(config, state, ids, dtype=torch.float64):
    if dtype == torch.float32:
        return build(config, state, dtype)(torch.tensor([ids]), use_cache=False).logits[0]
    with oracle.float64():
        logits = build(config, state, dtype)(torch.tensor([ids]), use_cache=False).logits[0]
    assert logits.dtype == torch.float64
    return logits


def greedy_of(config, state, ids):
    """Greedy tokens by whole forwards of the final length, so that dynamic RoPE keeps one base."""
    made, margins = [], []
    total = GREEDY["prompt_tokens"] + GREEDY["max_tokens"]
    prompt = ids[: GREEDY["prompt_tokens"]]
    if config.rope_parameters["rope_type"] == "dynamic":  # so long that the base changes
        prompt = ids[: GREEDY["prompt_tokens"] * 2]
        total = len(prompt) + GREEDY["max_tokens"]
    for _ in range(GREEDY["max_tokens"]):
        text = prompt + made
        row = logits_of(config, state, text + [0] * (total - len(text)))[len(text) - 1]
        top = row.topk(2)
        made.append(int(top.indices[0]))
        margins.append(float(top.values[0] - top.values[1]))
    return {"prompt_tokens": len(prompt), "ids": made, "min_margin": min(margins)}


def expected(config, state, seed):
    """Fields and arrays of expected.json; ids are redrawn until the greedy margins are wide."""
    for attempt in range(100):
        generator = torch.Generator().manual_seed(1000 * seed + attempt)
        ids = torch.randint(0, config.vocab_size, (TOKENS,), generator=generator).tolist()
        greedy = greedy_of(config, state, ids)
        if greedy["min_margin"] > MIN_MARGIN:
            break
    else:
        raise AssertionError("no ids with wide margins")
    logits = logits_of(config, state, ids)
    error = float((logits - logits_of(config, state, ids, torch.float32)).abs().max())
    assert error < 2e-4, error
    fields = {"float32_error": error, "logits_deviation": float(logits.std()), "ids": ids, "greedy": greedy}
    arrays = {"logits": logits.float(), "last_logits_f64": logits[-1]}
    if config.rope_parameters["rope_type"] == "dynamic":
        short = logits_of(config, state, ids[:40])
        fields["short_tokens"] = 40
        arrays["short_logits"] = short.float()
    else:
        prefix = logits_of(config, state, ids[:7])
        assert (prefix - logits[:7]).abs().max() < 1e-12  # causal: a prefix has the prefix of the logits
    return fields, arrays


def old_style(config):
    """config.json as transformers 4 wrote it: rope_theta and rope_scaling beside each other."""
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    kind = rope.pop("rope_type")
    config["rope_scaling"] = None if kind == "default" else {
        "type" if kind in ("linear", "dynamic") else "rope_type": kind, **rope}
    config["torch_dtype"] = config.pop("dtype", "float32")
    config.pop("layer_types", None)  # the windows follow from max_window_layers
    if config["model_type"] == "qwen2" and not config["use_sliding_window"]:
        config["sliding_window"] = 20  # as published Qwen2 models do: present, and switched off
    config["transformers_version"] = "4.46.0"
    return config


# Both spellings are met in the wild; these models have the old one.
OLD_STYLE = {"llama_linear", "llama_llama3", "llama_yarn_attention", "llama_dynamic", "mistral", "qwen2",
             "qwen2_window"}


def save_config(name, config, directory):
    config.architectures = [type(config).__name__.replace("Config", "ForCausalLM")]
    config.dtype = "float32"
    config.save_pretrained(directory)
    path = directory / "config.json"
    body = json.loads(path.read_text())
    body.pop("_name_or_path", None)
    if name in OLD_STYLE:
        body = old_style(body)
    path.write_text(json.dumps(body, indent=1, sort_keys=True) + "\n")


def save_sharded(state, directory):
    """Three shards of three types; returns the weights as they were rounded."""
    types = [torch.bfloat16, torch.float16, torch.float32]
    names = sorted(state)
    shard_of = {n: 0 if ".layers.0." in n else 1 if ".layers.1." in n else 2 for n in names}
    stored = {n: state[n].to(types[shard_of[n]]) for n in names}
    weight_map, size = {}, 0
    for i in range(3):
        file = f"model-{i + 1:05d}-of-00003.safetensors"
        shard = {n: stored[n] for n in names if shard_of[n] == i}
        save_file(shard, directory / file, metadata={"format": "pt"})
        weight_map.update({n: file for n in shard})
        size += sum(t.numel() * t.element_size() for t in shard.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")
    return {n: t.float() for n, t in stored.items()}


def check_saved(directory, logits, ids):
    """What was written is what transformers reads back."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        again = model(torch.tensor([ids]), use_cache=False).logits[0]
    assert (again - logits).abs().max() < 2e-4, directory


def main():
    transformers.utils.logging.set_verbosity_error()
    states, plain = {}, {}
    for seed, (name, (cls, fields, source)) in enumerate(specs().items()):
        directory = oracle.MODELS / name
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        config = cls(**fields, bos_token_id=None, eos_token_id=None, pad_token_id=None)
        if source:
            state = states[source]
            os.symlink(f"../{source}/model.safetensors", directory / "model.safetensors")
        else:
            model = transformers.AutoModelForCausalLM.from_config(config)
            state = random_weights(model, torch.Generator().manual_seed(seed))
            if name == "llama_sharded":
                state = save_sharded(state, directory)
            else:
                save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
        states[name] = state
        # A variant keeps its source's ids, so that a loader that ignores the variant is seen to fail.
        result, arrays = expected(config, state, seed)
        if source:
            without = logits_of(plain[source], state, result["ids"])
            result["distance_from"] = {source: float((without - arrays["logits"]).abs().max())}
        plain[name] = config
        save_config(name, config, directory)
        for file in directory.iterdir():
            file.chmod(0o644)
        check_saved(directory, arrays["logits"], result["ids"])
        oracle.write_golden(directory / "expected", {"tokens": TOKENS, **result}, arrays)
        print(name, {k: v for k, v in result.items() if k != "ids"}, flush=True)


if __name__ == "__main__":
    main()
