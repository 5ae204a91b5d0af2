// Attention of one rank: causal prefill, and one query against a long cache.
#include <cmath>
#include <limits>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "core/status_macros.h"
#include "kernels/attention.h"
#include "launcher/bench.h"

namespace toroid {
namespace {

constexpr int64_t kColdBytes = int64_t{192} << 20;  // caches of decode take turns: none stays warm

struct Shape {
  int64_t heads, kv_heads, head_dim;
};

std::string ShapeText(const Shape& shape) {
  return absl::StrCat("h", shape.heads,
                      shape.kv_heads == shape.heads ? "" : absl::StrCat(" g", shape.kv_heads), " k",
                      shape.head_dim);
}

// Arrays of one case: `copies` texts of `keys` keys each, and the queries of the last `queries`
// tokens.
class Inputs {
 public:
  Inputs(const Shape& shape, DType kv_type, int64_t queries, int64_t keys, int64_t copies)
      : shape_(shape),
        row_(shape.kv_heads * shape.head_dim),
        k_(RandomStored(kv_type, copies * keys * row_, 2)),
        v_(RandomStored(kv_type, copies * keys * row_, 3)),
        q_(queries * shape.heads * shape.head_dim),
        o_(Poisoned(int64_t(q_.size()))),
        lse_(queries * shape.heads),
        positions_(keys),
        copies_(copies) {
    FillRandom(1, int64_t(q_.size()), q_.data());
    std::iota(positions_.begin(), positions_.end(), 0);
    for (int64_t h = 0; h < shape.heads; ++h) {
      kv_index_.push_back(int32_t(h * shape.kv_heads / shape.heads));
    }
    args_.q = q_.data(), args_.q_stride = shape.heads * shape.head_dim;
    args_.q_positions = positions_.data() + (keys - queries);
    args_.kv_type = kv_type, args_.k_stride = args_.v_stride = row_;
    args_.k_positions = positions_.data(), args_.kv_index = kv_index_.data();
    args_.heads = shape.heads, args_.head_dim = shape.head_dim;
    args_.q_count = queries, args_.k_count = keys;
    args_.scale = 1 / std::sqrt(double(shape.head_dim));
    args_.o = o_.data(), args_.o_stride = args_.q_stride;
    args_.lse = lse_.data(), args_.lse_stride = shape.heads;
  }

  // A fresh carry (o is not read then), the next text.
  void Attend(ThreadPool& pool) {
    const int64_t bytes = args_.k_count * RowBytes(args_.kv_type, row_);
    args_.k = k_.data() + turn_ * bytes;
    args_.v = v_.data() + turn_ * bytes;
    turn_ = (turn_ + 1) % copies_;
    std::fill(o_.begin(), o_.end(), 0.0f);
    std::fill(lse_.begin(), lse_.end(), -std::numeric_limits<float>::infinity());
    AttendTile(pool, args_);
  }

  // Up to 16 queries in double, all scores at once.
  absl::Status Verify(const std::string& name) const {
    for (int64_t i = 0; i < 16; ++i) {
      const int64_t q = i * (args_.q_count - 1) / 15, h = i % shape_.heads;
      const float* query = q_.data() + (q * shape_.heads + h) * shape_.head_dim;
      const int64_t seen = args_.q_positions[q] + 1;
      std::vector<double> weights(seen), o(shape_.head_dim);
      double sum = 0;
      for (int64_t j = 0; j < seen; ++j) {
        double score = 0;
        for (int64_t d = 0; d < shape_.head_dim; ++d) score += query[d] * At(args_.k, j, h, d);
        sum += weights[j] = std::exp(score * args_.scale);
      }
      for (int64_t j = 0; j < seen; ++j) {
        for (int64_t d = 0; d < shape_.head_dim; ++d) o[d] += weights[j] * At(args_.v, j, h, d);
      }
      for (int64_t d = 0; d < shape_.head_dim; ++d) {
        TOROID_RETURN_IF_ERROR(
            ExpectClose(name, o_[(q * shape_.heads + h) * shape_.head_dim + d], o[d] / sum, 1e-5));
      }
      TOROID_RETURN_IF_ERROR(ExpectClose(name, lse_[q * shape_.heads + h], std::log(sum), 1e-5));
    }
    return absl::OkStatus();
  }

 private:
  double At(const void* kv, int64_t key, int64_t head, int64_t d) const {
    const int64_t i = key * row_ + kv_index_[head] * shape_.head_dim + d;
    return args_.kv_type == DType::kBF16 ? FromBf16(static_cast<const uint16_t*>(kv)[i])
                                         : static_cast<const float*>(kv)[i];
  }

  const Shape shape_;
  const int64_t row_;
  const std::vector<uint8_t> k_, v_;
  std::vector<float> q_, o_, lse_;
  std::vector<int32_t> positions_, kv_index_;
  const int64_t copies_;
  int64_t turn_ = 0;
  AttentionArgs<float> args_;
};

absl::Status CausalCase(BenchRun& run, const Shape& shape, int64_t tokens) {
  const std::string name = absl::StrCat("causal f32 ", ShapeText(shape), " s", tokens);
  if (!run.Wants(name)) return absl::OkStatus();
  Inputs inputs(shape, DType::kF32, tokens, tokens, 1);
  return run.Case(
      name, [&] { inputs.Attend(run.pool()); }, [&] { return inputs.Verify(name); },
      [&](double seconds) {
        // The half that the mask leaves, of 4 S^2 H K.
        const double flops =
            2.0 * double(tokens) * double(tokens) * double(shape.heads * shape.head_dim);
        return FlopsRow(name, flops, seconds, run.fma_peak());
      });
}

absl::Status DecodeCase(BenchRun& run, const Shape& shape, DType kv_type, int64_t keys) {
  const std::string name =
      absl::StrCat("decode ", Info(kv_type).name, " ", ShapeText(shape), " n", keys);
  if (!run.Wants(name)) return absl::OkStatus();
  const int64_t bytes = 2 * keys * RowBytes(kv_type, shape.kv_heads * shape.head_dim);
  Inputs inputs(shape, kv_type, 1, keys, kColdBytes / bytes + 1);
  return run.Case(
      name, [&] { inputs.Attend(run.pool()); }, [&] { return inputs.Verify(name); },
      [&](double seconds) { return BytesRow(name, double(bytes), seconds, run.memory_read()); });
}

}  // namespace

absl::Status BenchAttention(BenchRun& run) {
  const Shape mha = {9, 9, 64}, gqa = {9, 3, 64}, wide = {8, 2, 128};
  for (const Shape& shape : {mha, gqa, wide}) {
    for (const int64_t tokens : {2048, 8192}) {
      TOROID_RETURN_IF_ERROR(CausalCase(run, shape, tokens));
    }
  }
  for (const DType kv_type : {DType::kF32, DType::kBF16}) {
    for (const Shape& shape : {mha, gqa, wide}) {
      TOROID_RETURN_IF_ERROR(DecodeCase(run, shape, kv_type, 4096));
    }
  }
  return absl::OkStatus();
}

}  // namespace toroid
