// What `toroid bench` needs on GPUs: backends to time on, and the bounds of a device.
#pragma once

#include <functional>
#include <memory>

#include "absl/status/statusor.h"
#include "core/backend.h"
#include "launcher/bench.h"

namespace toroid {

// Seconds of one call of `enqueue`, which puts work on stream s: a warm-up, then the median of
// `samples` samples, each of so many calls that it lasts 10 ms or more and is waited for once.
double MedianSecondsOnDevice(int samples, Backend& ops, Stream s,
                             const std::function<void()>& enqueue);

// What a device does at best, measured: 1e9 FLOPs/s of a product of matrices 8192 x 8192, in the
// arithmetic of `ops`, and 1e9 bytes/s read and written by copying half a GiB.
struct DeviceBounds {
  double product = 0, copy = 0;
};
absl::StatusOr<DeviceBounds> MeasureDevice(Backend& ops, Stream s, int samples);

// The workload attention on GPU `device`, by each kernel that this toroid has for it.
absl::Status BenchAttentionOnGpu(BenchRun& run, int device);

}  // namespace toroid
