#include "rpc/link_throttle.h"

#include <algorithm>
#include <cmath>

namespace toroid {
namespace {

constexpr uint64_t kOfJitter = 0, kOfCuts = 0xd1b54a32d192ed03u;

}  // namespace

LinkThrottle::LinkThrottle(const ThrottleOptions& options, absl::Time now)
    : options_(options), free_(now), last_out_(now), cut_(CutAfter(now)) {}

// SplitMix64 (Steele, Lea, Flood 2014) of the seed, what is drawn, and the number of the draw.
double LinkThrottle::Uniform(uint64_t& draws, uint64_t salt) {
  uint64_t z = options_.seed + salt + 0x9e3779b97f4a7c15u * ++draws;
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
  if (options_.jitter > absl::ZeroDuration()) out += options_.jitter * Uniform(jitters_, kOfJitter);
  last_out_ = std::max(last_out_, out);
  return last_out_;
}

absl::Time LinkThrottle::CutAfter(absl::Time last) {
  if (options_.cut_every <= absl::ZeroDuration()) return absl::InfiniteFuture();
  const double exponential = -std::log1p(-Uniform(cuts_, kOfCuts));
  return last + std::max(options_.cut_every * exponential, absl::Microseconds(1));
}

bool LinkThrottle::Cut(absl::Time now) {
  if (now < cut_) return false;
  while (cut_ <= now) cut_ = CutAfter(cut_);
  return true;
}

}  // namespace toroid
