// Several ops on a few thousand elements in one launch on a CUDA device, in order where one waits
// for another: a launch of each would take longer than its work.
#pragma once

#include <cstdint>

#include "kernels/cuda_stream.h"
#include "kernels/dtype.h"

namespace toroid {

struct SmallOp {
  enum class Kind {
    kCopy,   // out = x
    kFill,   // out = number
    kRope,   // pairs of heads of out turned: rope.h; number: the scale
    kWrite,  // out row slots[i] = x row i: kv_write.h
  };
  Kind kind = Kind::kFill;
  // For all ops before it. REQUIRED where it reads or writes what one writes, or writes what one
  // reads, of those that nothing has waited for since.
  bool waits = false;
  DType x_type = DType::kF32, out_type = DType::kF32;  // f32, bf16
  const void* x = nullptr;
  void* out = nullptr;
  int64_t x_stride = 0, out_stride = 0;  // elements between rows
  int64_t rows = 0, cols = 0;            // kRope: cols are heads head_dim
  int64_t head_dim = 0;
  const int32_t* positions = nullptr;
  const double* inv_freq = nullptr;
  const int64_t* slots = nullptr;
  double number = 0;
};

struct SmallWork {
  static constexpr int kMost = 12;
  static constexpr int64_t kMostElements = 16384;  // of one op
  int count = 0;
  SmallOp ops[kMost];
};

bool IsSmall(const SmallOp& op);
// overlap: it may be launched before what stands before it on the stream has ended, by a cluster of
// blocks (compute capability 9.0).
void RunSmallWork(CudaStream s, const SmallWork& work, bool overlap);

}  // namespace toroid
