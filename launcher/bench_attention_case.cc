#include "launcher/bench_attention_case.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "core/status_macros.h"
#include "launcher/bench_measure.h"

namespace toroid {
namespace {

// Random numbers that bf16 has too.
void FillNarrow(uint64_t seed, std::vector<float>& x) {
  FillRandom(seed, int64_t(x.size()), x.data());
  for (float& value : x) value = FromBf16(ToBf16(value));
}

}  // namespace

std::string ShapeText(const AttentionShape& shape) {
  return absl::StrCat("h", shape.heads,
                      shape.kv_heads == shape.heads ? "" : absl::StrCat(" g", shape.kv_heads), " k",
                      shape.head_dim);
}

void Comparison::Add(double actual, double expected) {
  const double difference = std::abs(actual - expected);
  difference_ += difference * difference;
  norm_ += expected * expected;
  const double off = difference / (1 + std::abs(expected));
  worst_ = std::isnan(off) ? std::numeric_limits<double>::infinity() : std::max(worst_, off);
}

absl::Status Comparison::Check(const std::string& name, double tolerance) const {
  if (worst_ <= tolerance) return absl::OkStatus();
  return absl::InternalError(absl::StrCat("wrong result: ", name, ": off by ", worst_, ", allowed ",
                                          tolerance, ": not timed, please report this"));
}

absl::Status Comparison::CheckError(const std::string& name, double most) const {
  if (error() <= most) return absl::OkStatus();
  return absl::InternalError(absl::StrCat("wrong result: ", name, ": error ", error(),
                                          " against float64, allowed ", most,
                                          ": not timed, please report this"));
}

absl::Status AttentionInputs::Compared::Check(const std::string& name, double tolerance) const {
  TOROID_RETURN_IF_ERROR(o.Check(name, tolerance));
  return lse.Check(absl::StrCat("lse of ", name), tolerance);
}

absl::Status AttentionGradients::Compared::Check(const std::string& name, double tolerance) const {
  TOROID_RETURN_IF_ERROR(dq.Check(absl::StrCat("dq of ", name), tolerance));
  TOROID_RETURN_IF_ERROR(dk.Check(absl::StrCat("dk of ", name), tolerance));
  return dv.Check(absl::StrCat("dv of ", name), tolerance);
}

AttentionInputs::AttentionInputs(const AttentionShape& shape, DType kv_type, int64_t queries,
                                 int64_t keys, int64_t copies)
    : shape_(shape),
      row_(shape.kv_heads * shape.head_dim),
      k_(RandomStored(kv_type, copies * keys * row_, 2)),
      v_(RandomStored(kv_type, copies * keys * row_, 3)),
      q_(queries * shape.heads * shape.head_dim),
      o_(Poisoned(int64_t(q_.size()))),
      lse_(queries * shape.heads),
      positions_(keys),
      copies_(copies) {
  FillNarrow(1, q_);
  std::iota(positions_.begin(), positions_.end(), 0);
  for (int64_t h = 0; h < shape.heads; ++h) {
    kv_index_.push_back(int32_t(h * shape.kv_heads / shape.heads));
  }
  args_.q = q_.data(), args_.q_stride = shape.heads * shape.head_dim;
  args_.k = k_.data(), args_.v = v_.data();
  args_.q_positions = positions_.data() + (keys - queries);
  args_.kv_type = kv_type, args_.k_stride = args_.v_stride = row_;
  args_.k_positions = positions_.data(), args_.kv_index = kv_index_.data();
  args_.heads = shape.heads, args_.head_dim = shape.head_dim;
  args_.q_count = queries, args_.k_count = keys;
  args_.scale = 1 / std::sqrt(double(shape.head_dim));
  args_.o = o_.data(), args_.o_stride = args_.q_stride;
  args_.lse = lse_.data(), args_.lse_stride = shape.heads;
}

void AttentionInputs::Attend(ThreadPool& pool) {
  const int64_t bytes = args_.k_count * RowBytes(args_.kv_type, row_);
  args_.k = k_.data() + turn_ * bytes;
  args_.v = v_.data() + turn_ * bytes;
  turn_ = (turn_ + 1) % copies_;
  std::fill(o_.begin(), o_.end(), 0.0f);
  std::fill(lse_.begin(), lse_.end(), -std::numeric_limits<float>::infinity());
  AttendTile(pool, args_);
}

AttentionInputs::Compared AttentionInputs::Compare() const {
  Compared compared;
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
      compared.o.Add(o_[(q * shape_.heads + h) * shape_.head_dim + d], o[d] / sum);
    }
    compared.lse.Add(lse_[q * shape_.heads + h], std::log(sum));
  }
  return compared;
}

double AttentionInputs::At(const void* kv, int64_t key, int64_t head, int64_t d) const {
  const int64_t i = key * row_ + kv_index_[head] * shape_.head_dim + d;
  return args_.kv_type == DType::kBF16 ? FromBf16(static_cast<const uint16_t*>(kv)[i])
                                       : static_cast<const float*>(kv)[i];
}

AttentionGradients::AttentionGradients(const AttentionInputs& inputs)
    : in_(inputs),
      do_(inputs.o().size()),
      dq_(inputs.o().size()),
      dk_(inputs.args().k_count * inputs.args().k_stride),
      dv_(dk_.size()),
      delta_(inputs.args().q_count * inputs.args().heads) {
  const AttentionArgs<float>& forward = inputs.args();
  FillNarrow(4, do_);
  args_.forward = forward, args_.kv_heads = inputs.shape().kv_heads;
  args_.d_o = do_.data(), args_.do_stride = forward.o_stride;
  args_.delta = delta_.data(), args_.delta_stride = forward.heads;
  args_.dq = dq_.data(), args_.dq_stride = forward.q_stride;
  args_.dk = dk_.data(), args_.dv = dv_.data();
  args_.dk_stride = forward.k_stride, args_.dv_stride = forward.v_stride;
}

void AttentionGradients::Backward(ThreadPool& pool) {
  const AttentionArgs<float>& f = args_.forward;
  AttentionDelta(pool, f.o, f.o_stride, do_.data(), args_.do_stride, f.q_count, f.heads, f.head_dim,
                 delta_.data(), f.heads);
  for (std::vector<float>* x : {&dq_, &dk_, &dv_}) std::fill(x->begin(), x->end(), 0.0f);
  AttendTileBackward(pool, args_);
}

AttentionGradients::Compared AttentionGradients::Compare() const {
  Compared compared;
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
      compared.dq.Add(dq_[Row(at, h) + d], dq[d]);
      compared.dk.Add(dk_[key], dk[d]);
      compared.dv.Add(dv_[key], dv[d]);
    }
  }
  return compared;
}

double AttentionGradients::Weight(int64_t q, int64_t key, int64_t head) const {
  const AttentionArgs<float>& f = args_.forward;
  double score = 0;
  for (int64_t d = 0; d < f.head_dim; ++d) score += f.q[Row(q, head) + d] * in_.K(key, head, d);
  return std::exp(f.scale * score - f.lse[q * f.heads + head]);
}

double AttentionGradients::ScoreGradient(int64_t q, int64_t key, int64_t head) const {
  double dp = 0, delta = 0;
  for (int64_t d = 0; d < args_.forward.head_dim; ++d) {
    const double grad = do_[Row(q, head) + d];
    dp += grad * in_.V(key, head, d), delta += grad * in_.o()[Row(q, head) + d];
  }
  return Weight(q, key, head) * (dp - delta);
}

}  // namespace toroid
