#include "rpc/rank_watch.h"

#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>

namespace toroid {
namespace {

// Ranks note themselves at their start; those of hosts that do not see the directory never do.
constexpr absl::Duration kLook = absl::Milliseconds(500);
constexpr absl::Duration kLookFor = absl::Minutes(1);

}  // namespace

void RankWatch::Begin(const std::string& directory, int ranks, const std::string& host) {
  End();
  directory_ = directory;
  host_ = host;
  ranks_ = ranks;
  next_look_ = absl::InfinitePast();
  last_look_ = absl::InfiniteFuture();
}

void RankWatch::End() {
  for (const Watched& each : watched_) close(each.fd);
  watched_.clear();
  known_ = 0;
  next_look_ = absl::InfiniteFuture();
}

void RankWatch::Look() {
  const std::vector<RankRecord> records = ReadRankRecords(directory_, ranks_);
  known_ = records.size();
  for (const RankRecord& record : records) {
    const bool watched = std::any_of(watched_.begin(), watched_.end(), [&](const Watched& each) {
      return each.rank.rank == record.rank;
    });
    if (watched || record.host != host_) continue;
    const int fd = static_cast<int>(syscall(SYS_pidfd_open, record.pid, 0u));
    if (fd >= 0) watched_.push_back({record, fd});
  }
}

std::optional<RankRecord> RankWatch::Ended(absl::Time now) {
  if (next_look_ <= now && static_cast<int>(known_) < ranks_) {
    if (last_look_ == absl::InfiniteFuture()) last_look_ = now + kLookFor;
    next_look_ = now < last_look_ ? now + kLook : absl::InfiniteFuture();
    Look();
  }
  for (const Watched& each : watched_) {
    pollfd ended = {each.fd, POLLIN, 0};
    if (poll(&ended, 1, 0) != 1) continue;
    const RankRecord rank = each.rank;
    End();
    return rank;
  }
  return std::nullopt;
}

}  // namespace toroid
