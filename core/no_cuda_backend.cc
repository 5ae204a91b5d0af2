// In the place of cuda_backend.cc in a build without CUDA.
#include "absl/status/status.h"
#include "core/backend.h"
#include "core/check.h"
#include "core/cuda_devices.h"
#include "core/cuda_peak.h"

namespace toroid {

int CudaDevices() { return 0; }

std::array<char, 16> CudaDeviceUuid(int) { return {}; }

double CudaPeakFlops(int, DType) { return 0; }

CudaInstallation DescribeCuda() { return {}; }

absl::StatusOr<int64_t> CudaUsedBytes(int) { return CudaIpcHandle(0).status(); }

absl::StatusOr<std::string> CudaIpcHandle(int) {
  return absl::FailedPreconditionError("this toroid was built without CUDA");
}

absl::Status OpenCudaIpcHandle(int, absl::string_view) { return CudaIpcHandle(0).status(); }

absl::StatusOr<std::unique_ptr<Backend>> NewCudaBackend(const CudaOptions&) {
  return absl::FailedPreconditionError(
      "this toroid was built without CUDA: use --device cpu, or build it with -DTOROID_CUDA=ON");
}

void CopyOnDevice(Stream, const void*, void*, int64_t) {
  TOROID_CHECK_MSG(false, "a device's stream in a build without CUDA");
}

}  // namespace toroid
