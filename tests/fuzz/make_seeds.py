"""Seeds of the fuzz targets gguf, safetensors, hugging_face_config, token_shard, checkpoint_manifest, merge_log and
pod_frame: tests/fuzz/corpus/NAME/*."""
import json
import pathlib
import struct

CORPUS = pathlib.Path(__file__).parent / "corpus"


def write(target, name, data):
    (CORPUS / target).mkdir(parents=True, exist_ok=True)
    (CORPUS / target / name).write_bytes(data)


def text(s):
    return struct.pack("<Q", len(s)) + s.encode()


def u32(v):
    return struct.pack("<I", v)


def gguf(keys, tensors):
    out = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys))
    for name, kind, value in keys:
        out += text(name) + u32(kind) + value
    data = b""
    for name, dims, kind, size in tensors:
        out += text(name) + u32(len(dims)) + b"".join(struct.pack("<Q", d) for d in dims)
        out += u32(kind) + struct.pack("<Q", len(data))
        data += bytes(size) + bytes(-size % 32)
    return out + bytes(-len(out) % 32) + data


def model_keys(arch):
    keys = [("general.architecture", 8, text(arch)), ("general.alignment", 4, u32(32))]
    for name, value in [("block_count", 1), ("embedding_length", 32), ("context_length", 64),
                        ("feed_forward_length", 32), ("attention.head_count", 4),
                        ("attention.head_count_kv", 2), ("vocab_size", 3)]:
        keys.append((f"{arch}.{name}", 4, u32(value)))
    keys.append((f"{arch}.attention.layer_norm_rms_epsilon", 6, struct.pack("<f", 1e-5)))
    return keys


def tokenizer_keys():
    strings = lambda items: u32(8) + struct.pack("<Q", len(items)) + b"".join(text(i) for i in items)
    return [("tokenizer.ggml.model", 8, text("gpt2")), ("tokenizer.ggml.tokens", 9, strings(["a", "b", "ab"])),
            ("tokenizer.ggml.merges", 9, strings(["a b"])),
            ("tokenizer.ggml.token_type", 9, u32(5) + struct.pack("<Qiii", 3, 1, 1, 3)),
            ("tokenizer.ggml.scores", 9, u32(6) + struct.pack("<Qfff", 3, 0, 0, 0)),
            ("tokenizer.ggml.eos_token_id", 4, u32(2)), ("tokenizer.ggml.add_bos_token", 7, b"\1")]


def yarn_keys():
    return [("llama.rope.scaling.type", 8, text("yarn")), ("llama.rope.scaling.factor", 6, struct.pack("<f", 4)),
            ("llama.rope.scaling.original_context_length", 4, u32(32))]


def main():
    types = [(0, 32, 128), (1, 32, 64), (2, 32, 18), (3, 32, 20), (6, 32, 22), (7, 32, 24), (8, 32, 34),
             (12, 256, 144), (13, 256, 176), (14, 256, 210), (30, 32, 64)]
    write("gguf", "types", gguf([], [(f"t{k}", [n], k, s) for k, n, s in types]))
    write("gguf", "llama", gguf(model_keys("llama") + tokenizer_keys(), [("token_embd.weight", [32, 3], 8, 102)]))
    write("gguf", "qwen3", gguf(model_keys("qwen3"), []))
    write("gguf", "yarn", gguf(model_keys("llama") + yarn_keys(), []))
    scalars = [(0, 1), (1, 1), (2, 2), (3, 2), (4, 4), (5, 4), (6, 4), (7, 1), (10, 8), (11, 8), (12, 8)]
    write("gguf", "scalars", gguf([(f"k{k}", k, bytes(s)) for k, s in scalars], []))

    def safetensors(header, size):
        head = json.dumps(header).encode()
        return struct.pack("<Q", len(head)) + head + bytes(size)

    tensor = lambda dtype, shape, begin, end: {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    write("safetensors", "empty", safetensors({}, 0))
    write("safetensors", "two", safetensors({"__metadata__": {"format": "pt"}, "a": tensor("F32", [2, 2], 0, 16),
                                             "b": tensor("BF16", [3], 16, 22)}, 22))
    write("safetensors", "scalar", safetensors({"s": tensor("I64", [], 0, 8), "e": tensor("U8", [0], 8, 8)}, 8))

    base = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "vocab_size": 100, "eos_token_id": [1, 2]}
    config = lambda name, **more: write("hugging_face_config", name, json.dumps(base | more).encode())
    config("llama", model_type="llama", rope_theta=10000.0, architectures=["LlamaForCausalLM"])
    config("mistral", model_type="mistral", sliding_window=8)
    config("qwen2", model_type="qwen2", use_sliding_window=True, max_window_layers=1, sliding_window=8)
    config("qwen3", model_type="qwen3", layer_types=["full_attention", "full_attention"], head_dim=16)
    config("yarn", model_type="llama", rope_parameters={"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e6,
                                                        "original_max_position_embeddings": 512, "mscale": 1.0,
                                                        "mscale_all_dim": 0.5, "truncate": False})
    config("llama3", model_type="llama", rope_scaling={"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                                                       "high_freq_factor": 4.0,
                                                       "original_max_position_embeddings": 512})
    config("dynamic", model_type="llama", rope_scaling={"type": "dynamic", "factor": 2.0})

    def shard(vocab, documents):  # the target puts the checksums in
        kind = "H" if vocab <= 65536 else "I"
        ids = [i for document in documents for i in document]
        begins = [sum(map(len, documents[:i])) for i in range(len(documents) + 1)]
        data = struct.pack(f"<{len(ids)}{kind}", *ids)
        out = b"TOROIDTS" + struct.pack("<IIQQQQ", 1, struct.calcsize(kind), vocab, len(documents), len(ids), 7)
        out += bytes(16) + data + bytes(-len(data) % 8)
        return out + struct.pack(f"<{len(begins)}Q", *begins) + bytes(4 * -(-len(data) // 65536) + 4)

    write("token_shard", "narrow", shard(100, [[1, 2, 3], [99], [5, 6]]))
    write("token_shard", "wide", shard(100_000, [[99_999], [0, 1]]))
    write("token_shard", "empty", shard(1, []))
    manifests()
    merges()
    frames()


def frames():
    def varint(value):
        value &= (1 << 64) - 1
        out = b""
        while value >= 0x80:
            out += bytes([value & 0x7F | 0x80])
            value >>= 7
        return out + bytes([value])

    def number(field, value):
        return varint(field * 8) + varint(value) if value else b""

    def frame(n, message, offset, size, data, job=b"j", step=-3):
        out = number(2, n) + number(3, message) + number(4, offset) + number(5, size) + b"\x3d" + bytes(4)
        out += number(8, 7) + number(9, 2) + number(10, step) + number(11, 1) + number(12, 3)
        out += b"\x69" + struct.pack("<d", 0.5) + b"\x7a" + varint(len(job)) + job + number(16, 1) + number(17, 2)
        return out + b"\x32" + varint(len(data)) + data

    def stream(name, step, *all):
        write("pod_frame", name, bytes([step]) + b"".join(struct.pack("<H", len(f)) + f for f in all))

    stream("one", 255, frame(1, 1, 0, 7, b"payload"))
    stream("empty", 3, frame(1, 1, 0, 0, b""), frame(2, 2, 0, 0, b""))
    stream("pieces", 0, *(frame(1 + i, 1, 4 * i, 12, b"abcd") for i in range(3)))
    stream("mixed", 16, frame(3, 2, 0, 3, b"xyz"), frame(2, 1, 4, 8, b"efgh"), frame(1, 1, 0, 8, b"abcd"),
           frame(1, 1, 0, 8, b"abcd"))
    stream("hello", 9, b"\x0a\x06" + b"\x0a\x01j\x32\x01t", b"\x70\x01", number(127, 5))


def merges():
    def record(step, inputs):  # the target puts the checksum in
        body = struct.pack("<qQQII", step, 1, 2, 0, len(inputs))
        body += b"".join(struct.pack("<qdQ", pod, weight, 3) for pod, weight in inputs)
        return struct.pack("<II", len(body), 0) + body

    header = b"toroid merges 1\n"
    write("merge_log", "empty", header)
    write("merge_log", "two", header + record(0, [(0, 1.0), (1, 2.5)]) + record(1, [(1, 0.0)]))
    write("merge_log", "torn", header + record(7, []) + record(8, [(0, 1.0)])[:-5])


def manifests():
    """Texts behind the first line, which the target writes."""
    rope = {"kind": 0, "factor": 1.0, "truncate": True, "divisors": []}
    model = {"name": "m", "architecture": "llama", "layers": 1, "dim": 4, "ffn": 8, "query_heads": 2, "kv_heads": 1,
             "head_dim": 2, "vocab": 3, "context": 8, "rope": rope, "windows": [0]}
    state = {"step": 100, "branch": 1, "data_position": 5, "seed": "0123456789abcdef", "skipped": "4-8,16-32",
             "numbers": {"loss": [0.5, "nan", "-inf"]}, "texts": {"data": "x"}}

    def shard(i, n, pieces, width):
        data = 3 * width * sum(p[-1] for p in pieces)
        return {"file": f"shard-{i:05}-of-{n:05}.bin", "bytes": 64 + data + (8 if data else 0),
                "hash": "00000000000000ff", "pieces": pieces}

    def manifest(name, mesh, dtype, parameters, pieces):
        shards = [shard(i, len(pieces), p, 8 if dtype == "f64" else 4) for i, p in enumerate(pieces)]
        whole = {"schema": 1, "epoch": 2, "save_id": "00000000000000aa", "dtype": dtype, "mesh": mesh, "state": state,
                 "model": model, "parameters": parameters, "shards": shards}
        write("checkpoint_manifest", name, json.dumps(whole)[1:].encode())

    manifest("one", [1, 1, 1], "f32", [["a", 3, 4]], [[[0, 0, 3, 0, 4, 0, 12]]])
    manifest("columns", [1, 1, 2], "f64", [["a", 3, 4], ["b", 1, 5]],
             [[[0, 0, 3, 0, 1, 0, 3], [1, 0, 1, 0, 5, 0, 5]], [[0, 0, 3, 1, 3, 0, 9]]])
    manifest("runs", [2, 1, 1], "f32", [["a", 3, 4]], [[[0, 0, 3, 0, 4, 0, 5]], [[0, 0, 3, 0, 4, 5, 7]]])


if __name__ == "__main__":
    main()
