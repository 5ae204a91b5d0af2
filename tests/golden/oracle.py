"""What the make_*.py scripts share: transformers in float32 and in true float64, SmolLM2, file writing.

The goldens come from transformers' own classes. `.double()` alone does not make them float64: RMSNorm,
RoPE and softmax name torch.float32 in their code. `float64()` therefore runs the same code with a
stand-in for the module's `torch` whose float32 is float64.
"""

import contextlib
import hashlib
import importlib
import json
import os
import pathlib

import numpy as np
import tokenizers
import torch
import transformers
from tokenizers import decoders, models, pre_tokenizers

MODELS = pathlib.Path(__file__).resolve().parent / "models"
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
GPL3 = pathlib.Path("/usr/share/common-licenses/GPL-3")
GPL3_SHA256 = "3972dc9744f6499f0f9b2dbf76696f2ae7ad8af9b23dde66d6af86c9dfb36986"

_PATCHED = ["modeling_rope_utils"] + [
    f"models.{family}.modeling_{family}" for family in ("llama", "mistral", "qwen2", "qwen3")
]


class _Torch64:
    """`torch`, except that its float32 is float64."""

    float32 = torch.float64
    float = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


@contextlib.contextmanager
def float64():
    """Inside, models are built and run in float64 throughout (float32 weights stay as they are)."""
    modules = [importlib.import_module(f"transformers.{name}") for name in _PATCHED]
    originals = [module.torch for module in modules]
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        for module in modules:
            module.torch = _Torch64()
        yield
    finally:
        for module, original in zip(modules, originals):
            module.torch = original
        torch.set_default_dtype(default)


def sha256(path):
    return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()


def gpl3():
    """The text of GPL-3 as Debian ships it."""
    assert sha256(GPL3) == GPL3_SHA256, f"{GPL3} is not the file that the goldens were made from"
    return GPL3.read_text(encoding="utf-8")


def smollm2_path():
    root = pathlib.Path(os.environ.get("TOROID_MODELS", "~/.cache/toroid/models")).expanduser()
    path = root / "smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert sha256(path) == SMOLLM2_SHA256, f"{path}: wrong checksum"
    return path


def load_smollm2(attention="sdpa", dtype=torch.float32):
    """SmolLM2's Q4_1 weights, dequantised, in transformers."""
    path = smollm2_path()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        str(path.parent), gguf_file=path.name, dtype=torch.float32, attn_implementation=attention
    )
    if dtype == torch.float64:  # rebuilt inside float64(), so that RoPE's table is float64 too
        model64 = type(model)(model.config)
        model64.load_state_dict(model.state_dict())
        model = model64.double()
    return model.eval()


def load_smollm2_tokenizer():
    """SmolLM2's tokenizer from the GGUF's vocabulary and merges.

    Its pre-tokenizer ("smollm") first isolates each digit, then splits as GPT-2 does. transformers'
    GGUF reader leaves the first step out, which changes "  1." for one, so we build it here.
    """
    import gguf

    fields = gguf.GGUFReader(str(smollm2_path())).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    types = fields["tokenizer.ggml.token_type"].contents()
    merges = [tuple(m.split(" ")) for m in fields["tokenizer.ggml.merges"].contents()]
    tokenizer = tokenizers.Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = [t for t, kind in zip(tokens, types) if kind == 3]
    tokenizer.add_special_tokens([tokenizers.AddedToken(t, normalized=False, special=True) for t in control])
    return tokenizer


def chat_prompt(content, system="You are a helpful AI assistant named SmolLM, trained by Hugging Face"):
    """SmolLM2's chat template for one user message: its default system prompt comes first."""
    return (
        f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{content}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


@torch.no_grad()
def greedy(model, ids, max_tokens, stop=(2,)):
    """Returns the ids made and each step's margin (largest logit - second largest), float32 cache."""
    cache = transformers.DynamicCache()
    made, margins = [], []
    step = torch.tensor([ids])
    for _ in range(max_tokens):
        logits = model(step, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[0, -1]
        top = logits.topk(2)
        made.append(int(top.indices[0]))
        margins.append(float(top.values[0] - top.values[1]))
        if made[-1] in stop:
            break
        step = torch.tensor([[made[-1]]])
    return made, margins


def ids_sha256(ids):
    """Of the ids as little-endian int32."""
    return hashlib.sha256(np.asarray(ids, dtype="<i4").tobytes()).hexdigest()


def write_golden(path, fields, arrays):
    """Writes path.json, the fields and the table of arrays, and path.bin, the arrays one after the other.

    Arrays are little-endian float32 ("f32"), or float64 ("f64") if they come as float64 tensors.
    """
    path = pathlib.Path(path)
    table, blob = {}, b""
    for name, array in arrays.items():
        data = np.ascontiguousarray(np.asarray(array))
        kind = "f64" if data.dtype == np.float64 else "f32"
        table[name] = {"dtype": kind, "offset": len(blob), "shape": list(data.shape)}
        blob += data.astype("<f8" if kind == "f64" else "<f4").tobytes()
        blob += bytes(-len(blob) % 8)
    oracle = {"torch": torch.__version__.split("+")[0], "transformers": transformers.__version__}
    body = {"schema": 1, "oracle": oracle, **fields}
    if arrays:
        body["arrays"] = table
        path.with_suffix(".bin").write_bytes(blob)
    lines = [f" {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in body.items()]
    path.with_suffix(".json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
