#include "rpc/link_throttle.h"

#include <algorithm>
#include <cmath>

namespace toroid {

LinkThrottle::LinkThrottle(const ThrottleOptions& options, absl::Time now)
    : options_(options), free_(now), last_out_(now), cut_(AfterCut(now)) {}

// SplitMix64 (Steele, Lea, Flood 2014) of the seed and the number of the draw.
double LinkThrottle::Uniform() {
  uint64_t z = options_.seed + 0x9e3779b97f4a7c15u * ++draws_;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return static_cast<double>((z ^ (z >> 31)) >> 11) * 0x1p-53;
}

absl::Time LinkThrottle::Send(int64_t bytes, absl::Time now) {
  free_ = std::max(free_, now);
  if (options_.bytes_per_second > 0) {
    free_ += absl::Seconds(static_cast<double>(bytes) / options_.bytes_per_second);
  }
  absl::Time out = free_ + options_.latency;
  if (options_.jitter > absl::ZeroDuration()) out += options_.jitter * Uniform();
  last_out_ = std::max(last_out_, out);
  return last_out_;
}

absl::Time LinkThrottle::AfterCut(absl::Time now) {
  if (options_.cut_every <= absl::ZeroDuration()) return absl::InfiniteFuture();
  return now - options_.cut_every * std::log1p(-Uniform());  // exponential
}

bool LinkThrottle::Cut(absl::Time now) {
  if (now < cut_) return false;
  cut_ = AfterCut(now);
  return true;
}

}  // namespace toroid
