#include "parallel/stall_watch.h"

#include <optional>
#include <utility>

#include "parallel/evidence.h"

namespace toroid {
namespace {

// How long another rank than the speaker holds its tongue.
constexpr std::chrono::seconds kPatience{3};

}  // namespace

StallWatch::StallWatch(const ProgressBoard* board, StallChannel channel,
                       std::chrono::milliseconds timeout)
    : board_(board),
      channel_(std::move(channel)),
      judge_(channel_.rank, channel_.hosts, timeout, std::chrono::steady_clock::now()) {
  thread_ = std::thread([this] { Run(); });
}

StallWatch::~StallWatch() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  thread_.join();
}

std::vector<RankProgress> StallWatch::Ranks() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return judge_.Ranks(std::chrono::steady_clock::now());
}

void StallWatch::Listen(StallJudge::Time now) {
  int from = 0;
  StallBeat beat;
  while (channel_.receive(&from, &beat)) judge_.Hear(from, beat, now);
}

void StallWatch::Run() {
  const int size = static_cast<int>(channel_.hosts.size());
  StallJudge::Time last_good = std::chrono::steady_clock::now();  // without a verdict
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    const auto now = std::chrono::steady_clock::now();
    StallBeat beat = judge_.Look(board_->Read(), now);
    beat.leaving = stopping_;
    Listen(now);
    for (int r = 0; r < size; ++r) {
      if (r != channel_.rank) channel_.send(r, beat);
    }
    if (stopping_) return;
    const std::optional<StallVerdict> verdict = judge_.Judge(now);
    if (!verdict.has_value()) {
      last_good = now;
    } else if (verdict->speaker == channel_.rank || now - last_good > kPatience) {
      lock.unlock();
      if (!verdict->lines.empty()) WriteStallEvidence(verdict->lines.back());
      channel_.end_world(verdict->lines);
      return;
    }
    wake_.wait_for(lock, judge_.Interval(), [this] { return stopping_; });
  }
}

}  // namespace toroid
