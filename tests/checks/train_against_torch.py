"""train_against_torch.py PARALLEL_TEST [GTEST_FILTER]: SmolLM2 trained by torch, and by us in float32.

Twenty AdamW steps of 512 tokens of GPL-3 (two rows of 256) at learning rate 1e-4, no decay, no clip: first
torch + transformers here, then the tests TorchTrainingSlow of PARALLEL_TEST on every mesh of theirs, which
compare each step's loss and, at the end, each tensor. The filter chooses meshes, e.g. '*Ring*'. Needs
tests/golden/requirements.txt and the model that deploy/get_model.sh fetches; exit 77 (skipped) without them.
About 8 GB of memory; many minutes.

Torch computes in float64, so that what is measured is our rounding and not torch's. The first moves of AdamW
are the signs of the gradient whatever its size, and make much of the rounding of small ones. On this text
torch 2.15.0's float32 (MKL, AVX2), eager attention or not, has 2.2e-3 of a tensor's gradient wrong in the
first step and 2,063 signs; after twenty steps its losses are within 9.7e-6 of its own float64, and ten of 272
tensors are beyond 2e-3 of their way, one by 1.4e-2. Ours has 1.3e-5 of a gradient and 121 signs wrong.
"""
import json
import os
import pathlib
import subprocess
import sys
import tempfile

STEPS, ROWS, LENGTH = 20, 2, 256
RATE, BETAS, EPSILON = 1e-4, (0.9, 0.95), 1e-8


def import_oracle():
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "golden"))
    import oracle
    return oracle


def save(model, directory):
    """As a model that never was a GGUF file: transformers writes no other, and names it in its configuration."""
    config = type(model.config).from_dict(
        {key: value for key, value in model.config.to_dict().items()
         if key != "quantization_config" and not key.startswith("_")})
    plain = type(model)(config)
    plain.load_state_dict(model.state_dict())
    plain.save_pretrained(directory)


def train(directory):
    """Writes run.json (tokens and losses of every step) and final/, the weights after the last one."""
    oracle = import_oracle()
    with oracle.float64():
        train_in_float64(directory, oracle)


def train_in_float64(directory, oracle):
    import torch
    model = oracle.load_smollm2(dtype=torch.float64)
    text = oracle.load_smollm2_tokenizer().encode(oracle.gpl3()).ids
    stride = (len(text) - LENGTH - 1) // (STEPS * ROWS - 1)
    starts = [[(step * ROWS + row) * stride for row in range(ROWS)] for step in range(STEPS)]
    batches = [[text[start : start + LENGTH + 1] for start in rows] for rows in starts]
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=BETAS, eps=EPSILON, weight_decay=0.0)
    losses = []
    for batch in batches:
        ids = torch.tensor(batch)
        logits = model(ids[:, :-1]).logits
        assert logits.dtype == torch.float64
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        print(f"torch {torch.__version__}: step {len(losses)}: loss {losses[-1]:.6f}", flush=True)
    save(model, directory / "final")
    run = {"ids": batches, "losses": losses, "rate": RATE, "betas": BETAS, "epsilon": EPSILON,
           "model": str(oracle.smollm2_path())}
    (directory / "run.json").write_text(json.dumps(run))


def main():
    if sys.argv[1] == "--train":
        train(pathlib.Path(sys.argv[2]))
        return
    try:
        import_oracle().smollm2_path()
    except (ImportError, OSError, AssertionError) as missing:
        print(f"SKIPPED: {missing}: see tests/golden/requirements.txt and deploy/get_model.sh")
        sys.exit(77)
    with tempfile.TemporaryDirectory() as directory:
        # A process of its own: its memory is free again when ours is needed.
        subprocess.run([sys.executable, __file__, "--train", directory], check=True,
                       env={**os.environ, "TQDM_DISABLE": "1"})
        chosen = sys.argv[2] if len(sys.argv) > 2 else "*"
        done = subprocess.run([sys.argv[1], f"--gtest_filter=*TorchTrainingSlow.{chosen}"],
                              env={**os.environ, "TOROID_TORCH_RUN": directory})
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
