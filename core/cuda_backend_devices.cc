#include <cuda_runtime.h>

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "core/cuda_devices.h"

namespace toroid {
namespace {

absl::Status Refused(absl::string_view what, cudaError_t error) {
  cudaGetLastError();  // forgets it
  return absl::FailedPreconditionError(absl::StrCat(what, ": ", cudaGetErrorString(error)));
}

CudaDevice Describe(int device, int devices) {
  CudaDevice own;
  cudaDeviceProp properties;
  if (cudaGetDeviceProperties(&properties, device) == cudaSuccess) {
    own.name = properties.name;
    std::copy_n(properties.uuid.bytes, own.uuid.size(), own.uuid.begin());
    own.major = properties.major, own.minor = properties.minor;
    own.multiprocessors = properties.multiProcessorCount;
    own.total_bytes = int64_t(properties.totalGlobalMem);
  }
  size_t free = 0, total = 0;
  if (cudaSetDevice(device) == cudaSuccess && cudaMemGetInfo(&free, &total) == cudaSuccess) {
    own.free_bytes = int64_t(free), own.total_bytes = int64_t(total);
  }
  for (int other = 0; other < devices; ++other) {
    int can = 0;
    if (other == device || cudaDeviceCanAccessPeer(&can, device, other) != cudaSuccess) continue;
    if (can != 0) own.peers.push_back(other);
  }
  cudaGetLastError();  // forgets what went wrong: the numbers stay 0
  return own;
}

}  // namespace

CudaInstallation DescribeCuda() {
  CudaInstallation cuda;
  cuda.built = true;
  cudaRuntimeGetVersion(&cuda.runtime);
  cudaDriverGetVersion(&cuda.driver);
  int devices = 0;
  const cudaError_t error = cudaGetDeviceCount(&devices);
  if (error != cudaSuccess) {
    cuda.error = cudaGetErrorString(error);
    cudaGetLastError();  // forgets it
    return cuda;
  }
  for (int device = 0; device < devices; ++device) {
    cuda.devices.push_back(Describe(device, devices));
  }
  return cuda;
}

absl::StatusOr<std::string> CudaIpcHandle(int device) {
  constexpr size_t kBytes = 2 << 20;
  void* memory = nullptr;
  cudaError_t error = cudaSetDevice(device);
  if (error == cudaSuccess) error = cudaMalloc(&memory, kBytes);
  if (error != cudaSuccess) return Refused("memory", error);
  cudaIpcMemHandle_t handle;
  error = cudaIpcGetMemHandle(&handle, memory);
  if (error != cudaSuccess) return Refused("a handle", error);
  return std::string(reinterpret_cast<const char*>(&handle), sizeof handle);
}

absl::Status OpenCudaIpcHandle(int device, absl::string_view bytes) {
  cudaIpcMemHandle_t handle;
  if (bytes.size() != sizeof handle) {
    return absl::InvalidArgumentError(absl::StrCat("a handle of ", bytes.size(), " bytes"));
  }
  std::memcpy(&handle, bytes.data(), sizeof handle);
  void* memory = nullptr;
  cudaError_t error = cudaSetDevice(device);
  if (error == cudaSuccess) {
    error = cudaIpcOpenMemHandle(&memory, handle, cudaIpcMemLazyEnablePeerAccess);
  }
  if (error != cudaSuccess) return Refused("opening", error);
  cudaIpcCloseMemHandle(memory);
  return absl::OkStatus();
}

}  // namespace toroid
