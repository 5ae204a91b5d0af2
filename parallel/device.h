// Which backend a rank computes on.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "core/backend.h"
#include "parallel/request.h"

namespace toroid {

// One of `ranks` ranks, which all choose alike: kAuto takes a GPU where this process sees one, the
// rank is alone and `compute` is not f64. threads, ticks: as NewCpuBackend. InvalidArgument for
// what a GPU cannot do; errors of NewCudaBackend.
absl::StatusOr<std::unique_ptr<Backend>> NewBackend(Device device, Compute compute, int threads,
                                                    int ranks, std::atomic<int64_t>* ticks);

}  // namespace toroid
