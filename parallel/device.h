// Which backend a rank computes on.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "core/backend.h"
#include "parallel/request.h"

namespace toroid {

// Whether one of `ranks` ranks computes on a GPU: kAuto takes one where this process sees one, the
// rank is alone and `compute` is not f64.
bool OnGpu(Device device, Compute compute, int ranks);

// One of `ranks` ranks, which all choose alike, as OnGpu says. threads, ticks: as NewCpuBackend.
// InvalidArgument for what a GPU cannot do; errors of NewCudaBackend.
absl::StatusOr<std::unique_ptr<Backend>> NewBackend(Device device, Compute compute, int threads,
                                                    int ranks, std::atomic<int64_t>* ticks);

}  // namespace toroid
