#include "kernels/overlap.cuh"
#include "kernels/small_work.h"

namespace toroid {

namespace {

constexpr int kThreads = 512;
constexpr int kClusterBlocks = 8;

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

// Pair i of heads' elements.
__device__ void Turn(const SmallOp& op, int i) {
  const int half = int(op.head_dim / 2), cols = int(op.cols / 2);
  const int row = i / cols, col = i % cols, head = col / half, pair = col % half;
  const int64_t low = row * op.out_stride + head * op.head_dim + pair, high = low + half;
  const float a = At(op.out_type, op.out, low), b = At(op.out_type, op.out, high);
  double sine, cosine;
  sincos(double(op.positions[row]) * op.inv_freq[pair], &sine, &cosine);
  const float s = float(sine * op.number), c = float(cosine * op.number);
  Put(op.out_type, op.out, low, a * c - b * s);
  Put(op.out_type, op.out, high, b * c + a * s);
}

// Element i.
__device__ void Move(const SmallOp& op, int i) {
  const int64_t row = i / int(op.cols), col = i % int(op.cols);
  const int64_t to = op.kind == SmallOp::Kind::kWrite ? op.slots[row] : row;
  if (to < 0) return;
  const float value = op.kind == SmallOp::Kind::kFill
                          ? float(op.number)
                          : At(op.x_type, op.x, row * op.x_stride + col);
  Put(op.out_type, op.out, to * op.out_stride + col, value);
}

__device__ inline int UnitsOf(const SmallOp& op) {
  return int(op.rows * op.cols) / (op.kind == SmallOp::Kind::kRope ? 2 : 1);
}

// Waits for all blocks of the launch, which are one cluster, and for what they wrote.
template <int kBlocks>
__device__ inline void AwaitAll() {
#if __CUDA_ARCH__ >= 900
  if constexpr (kBlocks > 1) {
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
    return;
  }
#endif
  __syncthreads();
}

// Ops between two that wait are done at once, a thread to a unit.
template <int kBlocks>
__global__ void __launch_bounds__(kThreads) SmallWorkKernel(SmallWork work) {
  AwaitEarlierKernels();
  LetNextKernelBegin();
  for (int begin = 0, end; begin < work.count; begin = end) {
    if (begin > 0) AwaitAll<kBlocks>();
    int units = 0;
    for (end = begin; end == begin || (end < work.count && !work.ops[end].waits); ++end) {
      units += UnitsOf(work.ops[end]);
    }
    for (int at = int(blockIdx.x) * kThreads + int(threadIdx.x); at < units;
         at += kBlocks * kThreads) {
      int i = at, op = begin;
      while (i >= UnitsOf(work.ops[op])) i -= UnitsOf(work.ops[op++]);
      work.ops[op].kind == SmallOp::Kind::kRope ? Turn(work.ops[op], i) : Move(work.ops[op], i);
    }
  }
}

}  // namespace

bool IsSmall(const SmallOp& op) {
  const auto plain = [](DType type) { return type == DType::kF32 || type == DType::kBF16; };
  return plain(op.out_type) && (op.x == nullptr || plain(op.x_type)) &&
         op.rows * op.cols <= SmallWork::kMostElements;
}

void RunSmallWork(CudaStream s, const SmallWork& work, bool overlap) {
  if (overlap) {
    LaunchClusters(kClusterBlocks, overlap, s, dim3(kClusterBlocks), dim3(kThreads),
                   SmallWorkKernel<kClusterBlocks>, work);
  } else {
    SmallWorkKernel<1><<<1, kThreads, 0, s>>>(work);
  }
}

}  // namespace toroid
