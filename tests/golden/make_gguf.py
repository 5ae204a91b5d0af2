"""Makes models/gguf/*: small GGUF files of every supported tensor type, and the logits of their weights.

python make_gguf.py

The logits are transformers' (float64) on what `gguf.quants.dequantize` makes of the stored blocks, so
they tell nothing about how good a quantisation is and everything about how it is read.
"""

import math

import gguf
import numpy as np
import torch
import transformers
from gguf import GGMLQuantizationType as Type

import make_models
import oracle

OUT = oracle.MODELS / "gguf"
TOKENS = 40
K_BLOCK = 256

NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}


def gguf_name(name):
    """model.layers.3.self_attn.q_proj.weight -> blk.3.attn_q.weight"""
    fixed = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
             "lm_head.weight": "output.weight"}
    if name in fixed:
        return fixed[name]
    _, _, layer, module, kind = name.replace("self_attn.", "self_attn#").replace("mlp.", "mlp#").split(".")
    return f"blk.{layer}.{NAMES[module.replace('#', '.')]}.{kind}"


def permute(weight, heads):
    """Rows of a head from half-split to interleaved RoPE order, as architecture "llama" stores Q and K."""
    rows = weight.shape[0]
    return weight.reshape(heads, 2, rows // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def unpermute(weight, heads):
    rows = weight.shape[0]
    return weight.reshape(heads, rows // heads // 2, 2, -1).swapaxes(1, 2).reshape(weight.shape)


def halves(values):
    return np.asarray(values, dtype="<f2").view(np.uint8).reshape(len(values), 2)


def random_k_blocks(kind, count, deviation, rng):
    """`count` blocks of 256 weights with about this deviation and mean 0. Any bytes are a valid block.

    Q4_K: w = d s q - m t, s and t of 6 bits, q of 4.  Q5_K: q of 5 bits.  Q6_K: w = d s (q - 32), s int8.
    gguf can read these types but not make them.
    """
    body = {Type.Q4_K: 140, Type.Q5_K: 172, Type.Q6_K: 208, Type.Q2_K: 80}[kind]
    data = rng.integers(0, 256, (count, body), dtype=np.uint8)
    jitter = rng.uniform(0.7, 1.3, count)
    if kind == Type.Q6_K:
        return np.concatenate([data, halves(deviation / 1370 * jitter)], axis=1)
    step = {Type.Q4_K: 190, Type.Q5_K: 390, Type.Q2_K: 12}[kind]
    centre = {Type.Q4_K: 7.5, Type.Q5_K: 15.5, Type.Q2_K: 1.5}[kind]
    d = deviation / step * jitter
    scales = [halves(d), halves(centre * d)]
    return np.concatenate([data] + scales if kind == Type.Q2_K else scales + [data], axis=1)


def encode(weight, kind, rng):
    """Stored bytes of a [rows, cols] float32 matrix; of K-quants only its shape and deviation are kept."""
    if kind in (Type.F32, Type.F16):
        return weight.astype(np.float32 if kind == Type.F32 else np.float16)
    if kind in (Type.Q4_K, Type.Q5_K, Type.Q6_K, Type.Q2_K):
        rows, cols = weight.shape
        blocks = random_k_blocks(kind, rows * cols // K_BLOCK, weight.std(), rng)
        return np.ascontiguousarray(blocks).reshape(rows, -1)
    return gguf.quants.quantize(weight, kind)


def decode(stored, kind):
    if kind in (Type.F32, Type.F16):
        return stored.astype(np.float32)
    return gguf.quants.dequantize(stored, kind).astype(np.float32)


def write_header(writer, config):
    rope = config.rope_parameters
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    if rope["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])


def llama3_factors(config):
    """rope_freqs.weight: what each frequency of llama3 scaling is divided by."""
    rope = config.rope_parameters
    context, factor = rope["original_max_position_embeddings"], rope["factor"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    factors = []
    for i in range(0, config.head_dim, 2):
        turns = context / (2 * math.pi * rope["rope_theta"] ** (i / config.head_dim))
        smooth = min(1.0, max(0.0, (turns - low) / (high - low)))
        factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, dtype=np.float32)


def write(name, architecture, config, state, type_of, seed):
    """Writes name.gguf and returns the float32 weights that a reader must find in it."""
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(str(OUT / f"{name}.gguf"), architecture)
    write_header(writer, config)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    read, used = {}, set()
    for key, tensor in state.items():
        weight = tensor.numpy()
        module = key.split(".")[-2]
        rows = heads.get(module) if architecture == "llama" else None
        kind = Type.F32 if weight.ndim == 1 else type_of(gguf_name(key))
        stored = encode(permute(weight, rows) if rows else weight, kind, rng)
        raw = stored.dtype == np.uint8
        writer.add_tensor(gguf_name(key), stored, raw_dtype=kind if raw else None)
        back = decode(stored, kind)
        read[key] = torch.from_numpy(unpermute(back, rows) if rows else back)
        used.add(kind.name)
    if config.rope_parameters["rope_type"] == "llama3":
        writer.add_tensor("rope_freqs.weight", llama3_factors(config))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return read, sorted(used)


def make(name, architecture, config, state, type_of, seed, without=None):
    weights, types = write(name, architecture, config, state, type_of, seed)
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, config.vocab_size, (TOKENS,), generator=generator).tolist()
    logits = make_models.logits_of(config, weights, ids)
    error = float((logits - make_models.logits_of(config, weights, ids, torch.float32)).abs().max())
    assert error < 2e-4, error
    fields = {"types": types, "float32_error": error, "logits_deviation": float(logits.std()), "ids": ids}
    if without is not None:  # the same weights read without the variant
        fields["distance_from_plain"] = float((logits - make_models.logits_of(without, weights, ids)).abs().max())
    fields_size = (OUT / f"{name}.gguf").stat().st_size
    print(name, fields_size, {k: v for k, v in fields.items() if k != "ids"}, flush=True)
    oracle.write_golden(OUT / name, {"tokens": TOKENS, **fields},
                        {"logits": logits.float(), "last_logits_f64": logits[-1]})


def random_state(config, seed):
    model = transformers.AutoModelForCausalLM.from_config(config)
    return make_models.random_weights(model, torch.Generator().manual_seed(seed))


def by_name(table, default):
    """type_of: the first entry whose key ends the tensor's name without ".weight"."""

    def type_of(name):
        stem = name.removesuffix(".weight")
        return next((kind for key, kind in table.items() if stem.endswith(key)), default)

    return type_of


def blocks():
    """blocks.json: raw blocks of every type and the weights in them, with the extremes of each field."""
    rng = np.random.default_rng(7)
    cases, arrays = [], {}
    for kind in (Type.F16, Type.BF16, Type.Q8_0, Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q4_K, Type.Q5_K,
                 Type.Q6_K):
        block, size = gguf.GGML_QUANT_SIZES[kind]
        if kind in (Type.F16, Type.BF16):
            block, size = 32, 64
            raw = (encode(rng.standard_normal((6, 32)).astype(np.float32), kind, rng)).view(np.uint8).reshape(6, 64)
        elif block == K_BLOCK:
            raw = random_k_blocks(kind, 6, 0.5, rng)
        else:
            raw = encode(rng.standard_normal((6, block)).astype(np.float32), kind, rng)
        raw = raw.reshape(6, size).copy()
        scale = {Type.Q6_K: 208}.get(kind, 0)  # where the block's scale lies
        if kind not in (Type.F16, Type.BF16):
            quants = np.ones(size, dtype=bool)
            scales = 4 if kind in (Type.Q4_1, Type.Q5_1, Type.Q4_K, Type.Q5_K) else 2
            quants[scale : scale + scales] = False
            raw[1, quants] = 0xFF
            raw[2, quants] = 0x00
            raw[3, scale : scale + 2] = halves([-0.75])[0]  # negative scale
            raw[4, scale : scale + 2] = [0x01, 0x00]  # the smallest subnormal half
            raw[5, scale : scale + 2] = 0
        if kind == Type.BF16:
            values = decode(raw.view(np.uint8), kind)
        elif kind == Type.F16:
            raw[4, :4] = [0x01, 0x00, 0x01, 0x80]  # subnormals
            values = raw.view("<f2").astype(np.float32)
        else:
            values = decode(raw, kind)
        cases.append({"type": kind.name, "ggml_type": int(kind), "bytes": size, "weights": block,
                      "blocks": [b.tobytes().hex() for b in raw]})
        arrays[kind.name] = values.reshape(6, block)
    oracle.write_golden(OUT / "blocks", {"cases": cases}, arrays)


def main():
    transformers.utils.logging.set_verbosity_error()
    OUT.mkdir(parents=True, exist_ok=True)
    for old in OUT.iterdir():
        old.unlink()
    blocks()
    special = dict(bos_token_id=None, eos_token_id=None, pad_token_id=None)
    epsilon = float(np.float32(1e-5))  # GGUF keeps it in float32
    llama = lambda **fields: transformers.LlamaConfig(
        **{**make_models.LLAMA, "rms_norm_eps": epsilon, **fields}, **special)

    # Two layers, a type per matrix: with the embedding all types of 32-weight blocks, and the plain ones.
    mixed = llama(hidden_size=96, num_attention_heads=6, intermediate_size=128)
    table = {"0.attn_q": Type.Q4_0, "0.attn_k": Type.Q4_1, "0.attn_v": Type.Q5_0, "0.attn_output": Type.Q5_1,
             "0.ffn_gate": Type.Q8_0, "0.ffn_up": Type.Q4_1, "0.ffn_down": Type.BF16, "1.attn_q": Type.Q8_0,
             "1.attn_k": Type.F32, "1.attn_v": Type.F16, "1.attn_output": Type.Q4_0, "1.ffn_gate": Type.BF16,
             "1.ffn_up": Type.Q5_0, "1.ffn_down": Type.Q5_1, "token_embd": Type.Q8_0}
    make("llama_mixed", "llama", mixed, random_state(mixed, 21), by_name(table, Type.F32), 21)

    # The K-quants of a Q4_K_M file; the attention's output has 64 columns, too few for them.
    k_quants = llama(hidden_size=256, num_attention_heads=4, num_key_value_heads=2, intermediate_size=256,
                     num_hidden_layers=1, vocab_size=67, tie_word_embeddings=False)
    table = {"attn_q": Type.Q4_K, "attn_k": Type.Q5_K, "attn_v": Type.Q6_K, "attn_output": Type.Q8_0,
             "ffn_gate": Type.Q4_K, "ffn_up": Type.Q5_K, "ffn_down": Type.Q6_K, "token_embd": Type.Q6_K,
             "output": Type.Q4_K}
    make("llama_k_quants", "llama", k_quants, random_state(k_quants, 22), by_name(table, Type.F32), 22)

    qwen2 = transformers.Qwen2Config(
        vocab_size=163, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, rms_norm_eps=epsilon, tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6}, **special)
    make("qwen2", "qwen2", qwen2, random_state(qwen2, 23), by_name({"ffn_down": Type.Q8_0, "attn_output": Type.Q8_0},
                                                                 Type.Q4_1), 23)
    qwen3 = transformers.Qwen3Config(
        vocab_size=163, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=6, head_dim=16,
        num_key_value_heads=2, max_position_embeddings=512, rms_norm_eps=epsilon, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6}, **special)
    make("qwen3", "qwen3", qwen3, random_state(qwen3, 24), by_name({"token_embd": Type.Q8_0}, Type.Q5_1), 24)

    # RoPE scaling as GGUF files say it: keys for linear and yarn, rope_freqs.weight for llama3.
    base = llama(hidden_size=96, intermediate_size=64, num_hidden_layers=1)
    state = random_state(base, 25)
    for kind in ("linear", "yarn", "llama3"):
        config = transformers.LlamaConfig(**{**make_models.specs()[f"llama_{kind}"][1], "hidden_size": 96,
                                             "intermediate_size": 64, "num_hidden_layers": 1,
                                             "rms_norm_eps": epsilon}, **special)
        make(f"llama_{kind}", "llama", config, state, by_name({}, Type.Q5_0), 25, without=base)

    # A type that toroid does not read: refused by name.
    small = llama(hidden_size=256, num_attention_heads=2, num_key_value_heads=1, intermediate_size=32,
                  num_hidden_layers=1, vocab_size=8)
    write("unsupported_q2_k", "llama", small, random_state(small, 26),
          by_name({"attn_q": Type.Q2_K, "attn_output": Type.Q4_0}, Type.Q4_0), 26)
    for file in OUT.iterdir():
        file.chmod(0o644)


if __name__ == "__main__":
    main()
