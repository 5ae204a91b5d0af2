// FewRowWork: the ops of a step of decoding, which have few rows, put together while they are
// captured to be kept (Backend::Repeat): there a launch costs more than the work of most of them.
//
// Between Begin and End an op that it takes is not launched at once:
//   small ops (copies, fills, RoPE, cache writes) are collected and run in one launch, at once
//   where they do not touch each other's results; products of one x, with the RMS norm that made x
//   before them, with SwiGLU or the addition to the residual behind them, are one launch.
// Whatever else comes calls Flush first, so that all is as if each op had run in its turn: nothing
// that an op writes is left out. Sums are made in another order, so bits differ from those of the
// ops one by one.
//
// One thread at a time.
#pragma once

#include <vector>

#include "core/tensor.h"
#include "kernels/matvec_fused.h"
#include "kernels/small_work.h"

namespace toroid {

class FewRowWork {
 public:
  // overlap: kernels may begin before those before them have ended (compute capability 9.0).
  void Begin(CudaStream s, bool overlap);
  void End();
  bool active() const { return stream_ != nullptr; }
  void Flush();

  // Takes the op, or is false: then it is launched in the ordinary way. Shapes and types have been
  // checked.
  bool Norm(const Tensor& x_tD, const Tensor& gain_D, double epsilon, const Tensor& out_tD);
  bool Product(const Tensor& x, const Tensor& w, const Tensor& bias, const Tensor& out);
  bool SwiGlu(const Tensor& gate_tf, const Tensor& up_tf, const Tensor& out_tf);
  bool Add(const Tensor& x, const Tensor& y);
  bool Copy(const Tensor& x, const Tensor& out);
  bool Fill(const Tensor& x, double value);
  bool Rope(const Tensor& x_thK, const Tensor& positions, const Tensor& inv_freq, double scale);
  bool KvWrite(const Tensor& x_tgK, const Tensor& slots, const Tensor& cache);

  // Bytes that rows lie in.
  struct Bytes {
    Bytes(const void* data, int64_t stride, int64_t rows, int64_t cols,
          int64_t element = sizeof(float));
    bool Meets(const Bytes& other) const { return begin < other.end && other.begin < end; }
    uintptr_t begin, end;
  };

 private:
  bool Collect(SmallOp op, const Bytes& written);
  bool Joins(const MatMulArgs<float>& product) const;

  CudaStream stream_ = nullptr;
  bool overlap_ = false;
  // At most one of the two is not empty. norm_: fused_ has a norm, whose x and rows these are.
  SmallWork small_;
  std::vector<Bytes> small_read_, small_written_;  // since an op of small_ waited
  FusedMatVecArgs fused_;
  bool norm_ = false;
  MatMulArgs<float> normed_;  // x, x_stride, m, k of the norm
};

}  // namespace toroid
