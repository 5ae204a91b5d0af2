// Which backend a rank computes on, and the communicator that takes that backend's memory.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "core/backend.h"
#include "core/communicator.h"
#include "parallel/request.h"

namespace toroid {

struct DeviceWish {
  Device device = Device::kCpu;
  Compute compute = Compute::kF32;
  bool share_gpus = false;  // ranks may share a GPU
  int threads = 1;          // on CPUs: as NewCpuBackend
  bool measures = false;    // on GPUs: as CudaOptions
};

// world is destroyed before ops.
struct RankDevice {
  std::unique_ptr<Backend> ops;
  std::unique_ptr<Communicator> world;  // takes host memory, and that of ops
};

// Whether the ranks of `world`, a communicator of host memory, compute on GPUs: always with kCuda;
// with kAuto where each rank has one for itself and `compute` is not f64. Collective, the same
// answer on all ranks.
bool OnGpus(Communicator& world, Device device, Compute compute);

// Collective over `world`; the answer is of one kind on all ranks, as OnGpus says.
// A rank's GPU follows from its place on its host. Ranks with a GPU each speak through NCCL, ranks
// that share one through the host's memory, neighbours of one host by the copy engine (ipc_link.h).
// ticks: as NewCpuBackend. InvalidArgument for what a GPU cannot do; FailedPrecondition names the
// rank without a GPU, or the ranks that would share one; errors of NewCudaBackend.
absl::StatusOr<RankDevice> NewRankDevice(std::unique_ptr<Communicator> world,
                                         const DeviceWish& wish, std::atomic<int64_t>* ticks);

// FLOP/s that the devices of all ranks can do together at best, for MFU: of CPUs the multiply-adds
// of float (f64: half of it) that they do when they do nothing else, measured at the call on all
// ranks at once for some hundredths of a second; of GPUs the data sheet's (core/cuda_peak.h), one
// that is shared counted once. 0: not known. Collective over a communicator of host memory.
double PeakFlops(Communicator& world, const DeviceWish& wish);

}  // namespace toroid
