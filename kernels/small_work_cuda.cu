#include "kernels/overlap.cuh"
#include "kernels/small_work.h"

namespace toroid {

namespace {

constexpr int kThreads = 1024;

__device__ inline float At(DType type, const void* x, int64_t i) {
  return type == DType::kBF16 ? Widen(static_cast<const __nv_bfloat16*>(x)[i])
                              : static_cast<const float*>(x)[i];
}
__device__ inline void Put(DType type, void* x, int64_t i, float value) {
  if (type == DType::kBF16) {
    static_cast<__nv_bfloat16*>(x)[i] = Convert<__nv_bfloat16>(value);
  } else {
    static_cast<float*>(x)[i] = value;
  }
}

__device__ void Turn(const SmallOp& op) {
  const int half = int(op.head_dim / 2), cols = int(op.cols / 2), size = int(op.rows) * cols;
  for (int i = threadIdx.x; i < size; i += kThreads) {
    const int row = i / cols, col = i % cols, head = col / half, pair = col % half;
    double sine, cosine;
    sincos(double(op.positions[row]) * op.inv_freq[pair], &sine, &cosine);
    const float s = float(sine * op.number), c = float(cosine * op.number);
    const int64_t low = row * op.out_stride + head * op.head_dim + pair, high = low + half;
    const float a = At(op.out_type, op.out, low), b = At(op.out_type, op.out, high);
    Put(op.out_type, op.out, low, a * c - b * s);
    Put(op.out_type, op.out, high, b * c + a * s);
  }
}

__global__ void __launch_bounds__(kThreads) SmallWorkKernel(SmallWork work) {
  AwaitEarlierKernels();
  LetNextKernelBegin();
  for (int i = 0; i < work.count; ++i) {
    const SmallOp& op = work.ops[i];
    if (op.kind == SmallOp::Kind::kRope) {
      Turn(op);
    } else {
      const int size = int(op.rows * op.cols), cols = int(op.cols);
      for (int e = threadIdx.x; e < size; e += kThreads) {
        const int64_t row = e / cols, col = e % cols;
        const int64_t to = op.kind == SmallOp::Kind::kWrite ? op.slots[row] : row;
        if (to < 0) continue;
        const float value = op.kind == SmallOp::Kind::kFill
                                ? float(op.number)
                                : At(op.x_type, op.x, row * op.x_stride + col);
        Put(op.out_type, op.out, to * op.out_stride + col, value);
      }
    }
    __syncthreads();  // waits for what the next op may read
  }
}

}  // namespace

bool IsSmall(const SmallOp& op) {
  const auto plain = [](DType type) { return type == DType::kF32 || type == DType::kBF16; };
  return plain(op.out_type) && (op.x == nullptr || plain(op.x_type)) &&
         op.rows * op.cols <= SmallWork::kMostElements;
}

void RunSmallWork(CudaStream s, const SmallWork& work, bool overlap) {
  LaunchOverlapped(overlap, s, dim3(1), dim3(kThreads), SmallWorkKernel, work);
}

}  // namespace toroid
