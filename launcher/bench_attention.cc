// Attention of one rank: causal prefill, its backward, and one query against a long cache.
#include "absl/strings/str_cat.h"
#include "core/status_macros.h"
#include "launcher/bench.h"
#include "launcher/bench_attention_case.h"

namespace toroid {
namespace {

constexpr int64_t kColdBytes = int64_t{192} << 20;  // caches of decode take turns: none stays warm

absl::Status BackwardCase(BenchRun& run, const AttentionShape& shape, int64_t tokens) {
  const std::string name = absl::StrCat("backward f32 ", ShapeText(shape), " s", tokens);
  if (!run.Wants(name)) return absl::OkStatus();
  AttentionInputs inputs(shape, DType::kF32, tokens, tokens, 1);
  inputs.Attend(run.pool());
  AttentionGradients gradients(inputs);
  return run.Case(
      name, [&] { gradients.Backward(run.pool()); },
      [&] { return gradients.Compare().Check(name, 1e-4); },
      [&](double seconds) {
        // Five products where the forward has two.
        const double flops =
            5.0 * double(tokens) * double(tokens) * double(shape.heads * shape.head_dim);
        return FlopsRow(name, flops, seconds, run.fma_peak());
      });
}

absl::Status CausalCase(BenchRun& run, const AttentionShape& shape, int64_t tokens) {
  const std::string name = absl::StrCat("causal f32 ", ShapeText(shape), " s", tokens);
  if (!run.Wants(name)) return absl::OkStatus();
  AttentionInputs inputs(shape, DType::kF32, tokens, tokens, 1);
  return run.Case(
      name, [&] { inputs.Attend(run.pool()); }, [&] { return inputs.Compare().Check(name, 1e-5); },
      [&](double seconds) {
        // The half that the mask leaves, of 4 S^2 H K.
        const double flops =
            2.0 * double(tokens) * double(tokens) * double(shape.heads * shape.head_dim);
        return FlopsRow(name, flops, seconds, run.fma_peak());
      });
}

absl::Status DecodeCase(BenchRun& run, const AttentionShape& shape, DType kv_type, int64_t keys) {
  const std::string name =
      absl::StrCat("decode ", Info(kv_type).name, " ", ShapeText(shape), " n", keys);
  if (!run.Wants(name)) return absl::OkStatus();
  const int64_t bytes = 2 * keys * RowBytes(kv_type, shape.kv_heads * shape.head_dim);
  AttentionInputs inputs(shape, kv_type, 1, keys, kColdBytes / bytes + 1);
  return run.Case(
      name, [&] { inputs.Attend(run.pool()); }, [&] { return inputs.Compare().Check(name, 1e-5); },
      [&](double seconds) { return BytesRow(name, double(bytes), seconds, run.memory_read()); });
}

}  // namespace

absl::Status BenchAttention(BenchRun& run) {
  const AttentionShape mha = {9, 9, 64}, gqa = {9, 3, 64}, wide = {8, 2, 128};
  for (const AttentionShape& shape : {mha, gqa, wide}) {
    for (const int64_t tokens : {2048, 8192}) {
      TOROID_RETURN_IF_ERROR(CausalCase(run, shape, tokens));
    }
  }
  for (const AttentionShape& shape : {mha, gqa, wide}) {
    TOROID_RETURN_IF_ERROR(BackwardCase(run, shape, 2048));
  }
  for (const DType kv_type : {DType::kF32, DType::kBF16}) {
    for (const AttentionShape& shape : {mha, gqa, wide}) {
      TOROID_RETURN_IF_ERROR(DecodeCase(run, shape, kv_type, 4096));
    }
  }
  return absl::OkStatus();
}

}  // namespace toroid
