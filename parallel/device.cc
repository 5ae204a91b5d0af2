#include "parallel/device.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace toroid {

bool OnGpu(Device device, Compute compute, int ranks) {
  return device == Device::kCuda ||
         (device == Device::kAuto && ranks == 1 && compute != Compute::kF64 && CudaDevices() > 0);
}

absl::StatusOr<std::unique_ptr<Backend>> NewBackend(Device device, Compute compute, int threads,
                                                    int ranks, std::atomic<int64_t>* ticks) {
  const bool f64 = compute == Compute::kF64;
  if (device == Device::kCuda && ranks > 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("--device cuda with ", ranks,
                     " ranks: GPUs work alone in this version: use one rank, or --device cpu"));
  }
  if (device == Device::kCuda && f64) {
    return absl::InvalidArgumentError(
        "--device cuda with --compute f64: use --device cpu, or --compute f32 or bf16");
  }
  if (OnGpu(device, compute, ranks)) {
    CudaOptions options;
    options.product = compute == Compute::kBF16 ? DType::kBF16 : DType::kF32;
    return NewCudaBackend(options);
  }
  return NewCpuBackend(f64 ? DType::kF64 : DType::kF32, std::max(1, threads), ticks);
}

}  // namespace toroid
