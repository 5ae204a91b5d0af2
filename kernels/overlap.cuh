// Programmatic dependent launch: a kernel that begins while the one before it on the stream still
// runs. Included by kernel files alone.
#pragma once

#include "kernels/device.cuh"

namespace toroid {
namespace {

// Waits for all that stands before this kernel on the stream. Every block of a kernel launched with
// `overlap` calls it, before it reads or writes what others do: so the one behind may rely on it.
__device__ inline void AwaitEarlierKernels() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
// From here on the kernel behind this one may begin, once all blocks say so.
__device__ inline void LetNextKernelBegin() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// kernel<<<grid, block, 0, s>>>(args), beginning early if `overlap`; with a cluster of more than
// one block, of so many blocks to a cluster (compute capability 9.0).
template <typename... Params, typename... Args>
void LaunchClusters(int cluster, bool overlap, CudaStream s, dim3 grid, dim3 block,
                    void (*kernel)(Params...), Args... args) {
  cudaLaunchAttribute attributes[2] = {};
  cudaLaunchConfig_t config = {};
  config.gridDim = grid, config.blockDim = block, config.stream = s;
  config.attrs = attributes;
  if (overlap) {
    cudaLaunchAttribute& early = attributes[config.numAttrs++];
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
  }
  if (cluster > 1) {
    cudaLaunchAttribute& together = attributes[config.numAttrs++];
    together.id = cudaLaunchAttributeClusterDimension;
    together.val.clusterDim.x = unsigned(cluster);
    together.val.clusterDim.y = together.val.clusterDim.z = 1;
  }
  cudaLaunchKernelEx(&config, kernel, args...);
}

template <typename... Params, typename... Args>
void LaunchOverlapped(bool overlap, CudaStream s, dim3 grid, dim3 block, void (*kernel)(Params...),
                      Args... args) {
  LaunchClusters(1, overlap, s, grid, block, kernel, args...);
}

}  // namespace
}  // namespace toroid
