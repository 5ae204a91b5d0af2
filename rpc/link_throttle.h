// LinkThrottle: a slow and unreliable line, made of times alone: when what is sent now comes out at
// the other end, and when the line is cut. For tests and demonstrations. The seed alone says how
// long the n-th piece lingers and when the n-th cut comes, whatever is sent and asked when. Not
// thread-safe.
#pragma once

#include <cstdint>

#include "absl/time/time.h"

namespace toroid {

struct ThrottleOptions {
  double bytes_per_second = 0;                      // 0: as fast as it goes
  absl::Duration latency = absl::ZeroDuration();    // each way of the data
  absl::Duration jitter = absl::ZeroDuration();     // added to it, uniform in [0, jitter)
  absl::Duration cut_every = absl::ZeroDuration();  // mean time between cuts; 0: none
  uint64_t seed = 1;
  bool on() const {
    return bytes_per_second > 0 || latency > absl::ZeroDuration() ||
           jitter > absl::ZeroDuration() || cut_every > absl::ZeroDuration();
  }
};

class LinkThrottle {
 public:
  LinkThrottle(const ThrottleOptions& options, absl::Time now);

  // When `bytes` that are put on the line now have come out: behind what is on it, never before it.
  absl::Time Send(int64_t bytes, absl::Time now);
  // When the line is free to take more.
  absl::Time free_at() const { return free_; }
  // Whether a cut's time has come since the last call.
  bool Cut(absl::Time now);
  absl::Time next_cut() const { return cut_; }

 private:
  double Uniform(uint64_t& draws, uint64_t salt);  // [0, 1)
  absl::Time CutAfter(absl::Time last);

  const ThrottleOptions options_;
  uint64_t jitters_ = 0, cuts_ = 0;  // drawn
  absl::Time free_, last_out_, cut_;
};

}  // namespace toroid
