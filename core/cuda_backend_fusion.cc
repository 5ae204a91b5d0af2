#include "core/cuda_backend_fusion.h"

#include <algorithm>

#include "kernels/rms_norm.h"

namespace toroid {
namespace {

bool IsF32(const Tensor& x) { return x.dtype == DType::kF32; }

using Bytes = FewRowWork::Bytes;
Bytes InOf(const MatMulArgs<float>& p) { return {p.x, p.x_stride, p.m, p.k}; }
Bytes OutOf(const MatMulArgs<float>& p) { return {p.out, p.out_stride, p.m, p.n}; }

Bytes OutOf(const SmallOp& op) {
  return {op.out, op.out_stride, op.rows, op.cols, Info(op.out_type).bytes};
}

}  // namespace

FewRowWork::Bytes::Bytes(const void* data, int64_t stride, int64_t rows, int64_t cols,
                         int64_t element)
    : begin(reinterpret_cast<uintptr_t>(data)),
      end(rows == 0 ? begin : begin + uintptr_t(((rows - 1) * stride + cols) * element)) {}

void FewRowWork::Begin(CudaStream s, bool overlap) {
  stream_ = s;
  overlap_ = overlap;
}

void FewRowWork::End() {
  Flush();
  stream_ = nullptr;
}

void FewRowWork::Flush() {
  if (!active()) return;
  if (small_.count > 0) {
    RunSmallWork(stream_, small_, overlap_);
    small_.count = 0;
    small_read_.clear(), small_written_.clear();
  }
  if (fused_.count > 0) {
    if (norm_) fused_.products[0].x = normed_.x, fused_.products[0].x_stride = normed_.x_stride;
    for (int i = 1; i < fused_.count; ++i) {
      fused_.products[i].x = fused_.products[0].x;
      fused_.products[i].x_stride = fused_.products[0].x_stride;
    }
    FusedMatVec(stream_, fused_, overlap_);
  } else if (norm_) {
    RmsNorm(stream_, DType::kF32, normed_.x, normed_.x_stride, normed_.m, 1, normed_.k, DType::kF32,
            fused_.gain, fused_.epsilon, DType::kF32, fused_.normed, fused_.normed_stride);
  }
  norm_ = false;
  fused_ = {};
}

bool FewRowWork::Norm(const Tensor& x_tD, const Tensor& gain_D, double epsilon,
                      const Tensor& out_tD) {
  if (!active()) return false;
  const bool rows = x_tD.dim_count == 2 && x_tD.rows() <= kMatVecRows && x_tD.data != out_tD.data;
  if (!rows || !IsF32(x_tD) || !IsF32(gain_D) || !IsF32(out_tD)) return false;
  if (reinterpret_cast<uintptr_t>(gain_D.data) % 16 != 0) return false;
  Flush();
  norm_ = true;
  normed_ = {};
  normed_.x = x_tD.as<const float>(), normed_.x_stride = x_tD.stride;
  normed_.m = x_tD.rows(), normed_.k = x_tD.cols();
  fused_.gain = gain_D.as<const float>(), fused_.epsilon = epsilon;
  fused_.normed = out_tD.as<float>(), fused_.normed_stride = out_tD.stride;
  return true;
}

// True if the product can be one of those that wait, which then still are as if one by one.
bool FewRowWork::Joins(const MatMulArgs<float>& p) const {
  if (norm_) {
    MatMulArgs<float> through = normed_;  // x as the norm reads it must be fit for the product too
    through.n = p.n, through.w_type = p.w_type, through.w = p.w, through.w_stride = p.w_stride;
    const bool of_norm = p.x == fused_.normed && p.x_stride == fused_.normed_stride &&
                         p.m == normed_.m && p.k == normed_.k;
    if (!of_norm || !CanFuse(through) || OutOf(p).Meets(InOf(normed_))) return false;
  } else if (fused_.count == 0) {
    return false;
  }
  if (OutOf(p).Meets(InOf(p)) || fused_.count == FusedMatVecArgs::kMost) return false;
  for (int i = 0; i < fused_.count; ++i) {
    const MatMulArgs<float>& q = fused_.products[i];
    const bool alike =
        p.x == q.x && p.x_stride == q.x_stride && p.m == q.m && p.k == q.k && p.w_type == q.w_type;
    if (!alike || OutOf(p).Meets(OutOf(q))) return false;
  }
  return true;
}

bool FewRowWork::Product(const Tensor& x, const Tensor& w, const Tensor& bias, const Tensor& out) {
  if (!active() || !IsF32(x) || !IsF32(out) || x.rows() > kMatVecRows) return false;
  MatMulArgs<float> p;
  p.x = x.as<const float>(), p.x_stride = x.stride;
  p.m = x.rows(), p.n = w.rows(), p.k = w.cols();
  p.w_type = w.dtype, p.w = w.data, p.w_stride = w.stride;
  if (!bias.empty()) p.bias = bias.data, p.bias_type = bias.dtype;
  p.out = out.as<float>(), p.out_stride = out.stride;
  if (!CanFuse(p)) return false;
  if (!Joins(p)) {
    Flush();
    if (OutOf(p).Meets(InOf(p))) return false;
  }
  fused_.products[fused_.count++] = p;
  return true;
}

bool FewRowWork::SwiGlu(const Tensor& gate_tf, const Tensor& up_tf, const Tensor& out_tf) {
  if (!active() || fused_.count != 2) return false;
  const MatMulArgs<float>&gate = fused_.products[0], &up = fused_.products[1];
  const Bytes hidden(out_tf.as<const float>(), out_tf.stride, out_tf.rows(), out_tf.cols());
  if (!IsF32(out_tf) || gate_tf.data != gate.out || gate_tf.stride != gate.out_stride ||
      up_tf.data != up.out || up_tf.stride != up.out_stride || gate.n != up.n ||
      gate_tf.cols() != gate.n || gate_tf.rows() != gate.m || hidden.Meets(OutOf(up)) ||
      hidden.Meets(InOf(gate)) || (norm_ && hidden.Meets(InOf(normed_)))) {
    return false;
  }
  // Each of its elements is written behind the gate's, by the same thread.
  const bool same = out_tf.data == gate.out && out_tf.stride == gate.out_stride;
  if (!same && hidden.Meets(OutOf(gate))) return false;
  fused_.hidden = out_tf.as<float>(), fused_.hidden_stride = out_tf.stride;
  Flush();
  return true;
}

bool FewRowWork::Add(const Tensor& x, const Tensor& y) {
  if (!active() || fused_.count != 1 || norm_) return false;
  const MatMulArgs<float>& p = fused_.products[0];
  const Bytes sum(x.as<const float>(), x.stride, x.rows(), x.cols());
  if (y.data != p.out || y.stride != p.out_stride || y.rows() != p.m || x.rows() != p.m ||
      x.cols() != p.n || sum.Meets(OutOf(p)) || sum.Meets(InOf(p))) {
    return false;
  }
  fused_.sum = x.as<float>(), fused_.sum_stride = x.stride;
  Flush();
  return true;
}

bool FewRowWork::Collect(SmallOp op, const Bytes& written) {
  if (!active() || !IsSmall(op)) return false;
  if (op.rows * op.cols == 0) return true;
  if (norm_ || fused_.count > 0 || small_.count == SmallWork::kMost) Flush();
  const Bytes read =
      op.x == nullptr ? written : Bytes(op.x, op.x_stride, op.rows, op.cols, Info(op.x_type).bytes);
  const auto meets = [](const std::vector<Bytes>& all, const Bytes& one) {
    return std::any_of(all.begin(), all.end(), [&](const Bytes& b) { return b.Meets(one); });
  };
  op.waits =
      meets(small_written_, read) || meets(small_written_, written) || meets(small_read_, written);
  if (op.waits) small_read_.clear(), small_written_.clear();
  small_read_.push_back(read), small_written_.push_back(written);
  small_.ops[small_.count++] = op;
  return true;
}

bool FewRowWork::Copy(const Tensor& x, const Tensor& out) {
  SmallOp op;
  op.kind = SmallOp::Kind::kCopy;
  op.x_type = x.dtype, op.x = x.data, op.x_stride = x.stride;
  op.out_type = out.dtype, op.out = out.data, op.out_stride = out.stride;
  op.rows = x.rows(), op.cols = x.cols();
  return Collect(op, OutOf(op));
}

bool FewRowWork::Fill(const Tensor& x, double value) {
  SmallOp op;
  op.kind = SmallOp::Kind::kFill;
  op.out_type = x.dtype, op.out = x.data, op.out_stride = x.stride;
  op.rows = x.rows(), op.cols = x.cols(), op.number = value;
  return Collect(op, OutOf(op));
}

bool FewRowWork::Rope(const Tensor& x_thK, const Tensor& positions, const Tensor& inv_freq,
                      double scale) {
  SmallOp op;
  op.kind = SmallOp::Kind::kRope;
  op.out_type = x_thK.dtype, op.out = x_thK.data, op.out_stride = x_thK.stride;
  op.rows = x_thK.rows(), op.cols = x_thK.cols(), op.head_dim = x_thK.dims[2];
  op.positions = positions.as<const int32_t>(), op.inv_freq = inv_freq.as<const double>();
  op.number = scale;
  return Collect(op, OutOf(op));
}

bool FewRowWork::KvWrite(const Tensor& x_tgK, const Tensor& slots, const Tensor& cache) {
  SmallOp op;
  op.kind = SmallOp::Kind::kWrite;
  op.x_type = x_tgK.dtype, op.x = x_tgK.data, op.x_stride = x_tgK.stride;
  op.out_type = cache.dtype, op.out = cache.data, op.out_stride = cache.stride;
  op.rows = x_tgK.rows(), op.cols = x_tgK.cols(), op.slots = slots.as<const int64_t>();
  return Collect(op,
                 {cache.data, cache.stride, cache.rows(), cache.cols(), Info(cache.dtype).bytes});
}

}  // namespace toroid
