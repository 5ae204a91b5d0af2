// Attention of one rank: causal prefill, its backward, and one query against a long cache.
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

  const Shape& shape() const { return shape_; }
  const AttentionArgs<float>& args() const { return args_; }
  const std::vector<float>& o() const { return o_; }
  int64_t kv_head(int64_t head) const { return kv_index_[head]; }
  double K(int64_t key, int64_t head, int64_t d) const { return At(args_.k, key, head, d); }
  double V(int64_t key, int64_t head, int64_t d) const { return At(args_.v, key, head, d); }

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

// The backward of `inputs`, whose forward has been done.
class Gradients {
 public:
  explicit Gradients(const Inputs& inputs)
      : in_(inputs),
        do_(inputs.o().size()),
        dq_(inputs.o().size()),
        dk_(inputs.args().k_count * inputs.args().k_stride),
        dv_(dk_.size()),
        delta_(inputs.args().q_count * inputs.args().heads) {
    const AttentionArgs<float>& forward = inputs.args();
    FillRandom(4, int64_t(do_.size()), do_.data());
    args_.forward = forward, args_.kv_heads = inputs.shape().kv_heads;
    args_.d_o = do_.data(), args_.do_stride = forward.o_stride;
    args_.delta = delta_.data(), args_.delta_stride = forward.heads;
    args_.dq = dq_.data(), args_.dq_stride = forward.q_stride;
    args_.dk = dk_.data(), args_.dv = dv_.data();
    args_.dk_stride = forward.k_stride, args_.dv_stride = forward.v_stride;
  }

  void Backward(ThreadPool& pool) {
    const AttentionArgs<float>& f = args_.forward;
    AttentionDelta(pool, f.o, f.o_stride, do_.data(), args_.do_stride, f.q_count, f.heads,
                   f.head_dim, delta_.data(), f.heads);
    for (std::vector<float>* x : {&dq_, &dk_, &dv_}) std::fill(x->begin(), x->end(), 0.0f);
    AttendTileBackward(pool, args_);
  }

  // Eight queries' dq, and dk and dv of eight keys, in double, from the forward's lse and o.
  absl::Status Verify(const std::string& name) const {
    const AttentionArgs<float>& f = args_.forward;
    for (int64_t i = 0; i < 8; ++i) {
      const int64_t at = i * (f.q_count - 1) / 7, h = i % f.heads, g = in_.kv_head(h);
      std::vector<double> dq(f.head_dim), dk(f.head_dim), dv(f.head_dim);
      for (int64_t j = 0; j <= at; ++j) {
        const double ds = ScoreGradient(at, j, h);
        for (int64_t d = 0; d < f.head_dim; ++d) dq[d] += f.scale * ds * in_.K(j, h, d);
      }
      for (int64_t head = 0; head < f.heads; ++head) {
        for (int64_t q = at; q < f.q_count && in_.kv_head(head) == g; ++q) {
          const double p = Weight(q, at, head), ds = ScoreGradient(q, at, head);
          for (int64_t d = 0; d < f.head_dim; ++d) {
            dk[d] += f.scale * ds * f.q[Row(q, head) + d], dv[d] += p * do_[Row(q, head) + d];
          }
        }
      }
      for (int64_t d = 0; d < f.head_dim; ++d) {
        const int64_t key = at * f.k_stride + g * f.head_dim + d;
        TOROID_RETURN_IF_ERROR(ExpectClose(name, dq_[Row(at, h) + d], dq[d], 1e-4));
        TOROID_RETURN_IF_ERROR(ExpectClose(name, dk_[key], dk[d], 1e-4));
        TOROID_RETURN_IF_ERROR(ExpectClose(name, dv_[key], dv[d], 1e-4));
      }
    }
    return absl::OkStatus();
  }

 private:
  int64_t Row(int64_t q, int64_t head) const {
    return (q * args_.forward.heads + head) * args_.forward.head_dim;
  }
  double Weight(int64_t q, int64_t key, int64_t head) const {
    const AttentionArgs<float>& f = args_.forward;
    double score = 0;
    for (int64_t d = 0; d < f.head_dim; ++d) score += f.q[Row(q, head) + d] * in_.K(key, head, d);
    return std::exp(f.scale * score - f.lse[q * f.heads + head]);
  }
  double ScoreGradient(int64_t q, int64_t key, int64_t head) const {
    double dp = 0, delta = 0;
    for (int64_t d = 0; d < args_.forward.head_dim; ++d) {
      const double grad = do_[Row(q, head) + d];
      dp += grad * in_.V(key, head, d), delta += grad * in_.o()[Row(q, head) + d];
    }
    return Weight(q, key, head) * (dp - delta);
  }

  const Inputs& in_;
  std::vector<float> do_, dq_, dk_, dv_, delta_;
  AttentionBackwardArgs<float> args_;
};

absl::Status BackwardCase(BenchRun& run, const Shape& shape, int64_t tokens) {
  const std::string name = absl::StrCat("backward f32 ", ShapeText(shape), " s", tokens);
  if (!run.Wants(name)) return absl::OkStatus();
  Inputs inputs(shape, DType::kF32, tokens, tokens, 1);
  inputs.Attend(run.pool());
  Gradients gradients(inputs);
  return run.Case(
      name, [&] { gradients.Backward(run.pool()); }, [&] { return gradients.Verify(name); },
      [&](double seconds) {
        // Five products where the forward has two.
        const double flops =
            5.0 * double(tokens) * double(tokens) * double(shape.heads * shape.head_dim);
        return FlopsRow(name, flops, seconds, run.fma_peak());
      });
}

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
  for (const Shape& shape : {mha, gqa, wide}) {
    TOROID_RETURN_IF_ERROR(BackwardCase(run, shape, 2048));
  }
  for (const DType kv_type : {DType::kF32, DType::kBF16}) {
    for (const Shape& shape : {mha, gqa, wide}) {
      TOROID_RETURN_IF_ERROR(DecodeCase(run, shape, kv_type, 4096));
    }
  }
  return absl::OkStatus();
}

}  // namespace toroid
