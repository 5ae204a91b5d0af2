#include "core/cuda_memory.h"

#include "kernels/attention.h"
#include "kernels/matmul.h"

namespace toroid {
namespace {

// What an H100 of 80 GB with driver 580.159.04 and CUDA 13.0 said, within 2 MiB of it for four
// models' work (tests/parallel/cuda_memory_test.cc).
constexpr int64_t kContextBytes = int64_t{536} << 20;

}  // namespace

int64_t CudaWorkspaceBytes() {
  return kMatMulWorkspaceBytes + kCudaFreeWorkspaceBytes +
         int64_t{sizeof(int32_t)} * (kCudaHopperCounters + kNarrowCounters);
}

int64_t CudaRankBytes() { return kContextBytes + CudaWorkspaceBytes(); }

}  // namespace toroid
