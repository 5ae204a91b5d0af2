"""Rotary frequencies as transformers computes them (float32): tests/golden/rope.json.

One case per kind of scaling and per branch of its formula. `length` is what dynamic scaling is told.
"""
import json
import pathlib

from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

BASE = {"hidden_size": 256, "num_attention_heads": 4, "max_position_embeddings": 2048}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
CASES = [
    ("default", 64, {"rope_type": "default", "rope_theta": 10000.0}, 1),
    ("base_500000", 128, {"rope_type": "default", "rope_theta": 500000.0}, 1),
    ("linear", 64, {"rope_type": "linear", "factor": 4.0}, 1),
    ("llama3", 64, {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}, 1),
    ("llama3_short", 16, {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 2.0,
                          "original_max_position_embeddings": 32}, 1),
    ("yarn", 64, YARN, 1),
    ("yarn_exact", 64, YARN | {"truncate": False}, 1),
    ("yarn_attention", 64, YARN | {"attention_factor": 0.75}, 1),
    ("yarn_mscale", 64, YARN | {"mscale": 1.0, "mscale_all_dim": 0.5, "beta_fast": 16.0, "beta_slow": 2.0}, 1),
    ("yarn_one_mscale", 64, YARN | {"mscale": 1.0}, 1),
    ("yarn_factor_1", 64, YARN | {"factor": 1.0}, 1),
    ("dynamic_within", 64, {"rope_type": "dynamic", "factor": 2.0}, 1000),
    ("dynamic_beyond", 64, {"rope_type": "dynamic", "factor": 2.0}, 6000),
    ("dynamic_at_context", 64, {"rope_type": "dynamic", "factor": 2.0}, 2048),
]


def main():
    cases = []
    for name, head_dim, parameters, length in CASES:
        config = LlamaConfig(**BASE, head_dim=head_dim, rope_parameters=dict(parameters))
        if parameters["rope_type"] == "default":
            inv_freq, scale = LlamaRotaryEmbedding.compute_default_rope_parameters(config)
        else:
            inv_freq, scale = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, None, seq_len=length)
        json_config = {"model_type": "llama", "intermediate_size": 512, "num_hidden_layers": 1, "vocab_size": 64,
                       "head_dim": head_dim, "rope_parameters": parameters} | BASE
        cases.append({"name": name, "config": json_config, "length": length, "attention_scale": float(scale),
                      "inv_freq": [float(f) for f in inv_freq]})
    path = pathlib.Path(__file__).parent / "rope.json"
    path.write_text("[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]\n")


if __name__ == "__main__":
    main()
