// RankWatch: whether a rank of this host is still there, while mpirun has not said a word: it takes
// seconds to end after one of its processes was killed.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "rpc/rank_record.h"

namespace toroid {

// Not thread-safe.
class RankWatch {
 public:
  RankWatch() = default;
  ~RankWatch() { End(); }
  RankWatch(const RankWatch&) = delete;
  RankWatch& operator=(const RankWatch&) = delete;

  // From here on the world whose ranks note themselves in `directory`; those of `host` are watched.
  void Begin(const std::string& directory, int ranks, const std::string& host);
  void End();
  // The first whose process has ended; once. Does not block.
  std::optional<RankRecord> Ended(absl::Time now);

 private:
  struct Watched {
    RankRecord rank;
    int fd = -1;  // of its process
  };
  void Look();

  std::string directory_, host_;
  int ranks_ = 0;
  size_t known_ = 0;  // that have noted themselves
  absl::Time next_look_ = absl::InfiniteFuture(), last_look_ = absl::InfinitePast();
  std::vector<Watched> watched_;
};

}  // namespace toroid
