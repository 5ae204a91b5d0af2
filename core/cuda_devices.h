// What this process sees of CUDA and what its devices can do with each other: for people
// (`toroid doctor`), not for the way to a backend (core/backend.h).
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace toroid {

struct CudaDevice {
  std::string name;
  std::array<char, 16> uuid = {};
  int64_t total_bytes = 0, free_bytes = 0;
  int major = 0, minor = 0;  // compute capability
  int multiprocessors = 0;
  std::vector<int> peers;  // devices whose memory it can reach
};

struct CudaInstallation {
  bool built = false;  // this toroid has a CUDA backend
  int runtime = 0;     // of the build: 13000 is CUDA 13.0
  int driver = 0;      // newest CUDA that the driver runs; 0: there is none
  std::string error;   // why there are no devices, in CUDA's words
  std::vector<CudaDevice> devices;
};

// Takes hold of every device for a moment.
CudaInstallation DescribeCuda();

// Bytes of a device's memory that are in use, by whom ever, as the driver's management library
// (NVML) counts them: asking takes hold of no device. FailedPrecondition: no such library.
absl::StatusOr<int64_t> CudaUsedBytes(int device);

// Memory of `device` as other processes of this host open it (CUDA IPC), held as long as this
// process lives; any bytes. FailedPrecondition: the driver gives none.
absl::StatusOr<std::string> CudaIpcHandle(int device);
// What such a process does: OK if `device` can reach the memory.
absl::Status OpenCudaIpcHandle(int device, absl::string_view handle);

}  // namespace toroid
