#include "parallel/stall_judge.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace toroid {
namespace {

int64_t MillisecondsBetween(StallJudge::Time from, StallJudge::Time to) {
  return std::chrono::duration_cast<StallJudge::Milliseconds>(to - from).count();
}

// "5s", "2.5s"
std::string Seconds(int64_t ms) { return absl::StrFormat("%gs", double(ms / 100) / 10); }

}  // namespace

StallJudge::StallJudge(int rank, std::vector<std::string> hosts, Milliseconds timeout, Time now)
    : rank_(rank),
      hosts_(std::move(hosts)),
      timeout_(timeout),
      known_(hosts_.size(), Known{StallBeat{}, now}),
      looked_(now),
      moved_(now) {}

StallJudge::Milliseconds StallJudge::Interval() const {
  return std::clamp(timeout_ / 10, Milliseconds(50), Milliseconds(500));
}

StallBeat StallJudge::Look(const BoardReading& mine, Time now) {
  StallBeat& beat = known_[rank_].beat;
  const bool moved = mine.sequence != beat.progress.sequence || mine.ticks != beat.progress.ticks;
  if (now - looked_ > kOwnGap) {
    for (Known& known : known_) known.heard = now;
    moved_ = now;
  }
  if (moved || !mine.busy || !beat.progress.busy) moved_ = now;
  looked_ = now;
  beat.progress = mine;
  beat.unmoved_ms = MillisecondsBetween(moved_, now);
  known_[rank_].heard = now;
  return beat;
}

void StallJudge::Hear(int rank, const StallBeat& beat, Time now) {
  known_[rank].beat = beat;
  known_[rank].heard = now;
}

std::vector<RankProgress> StallJudge::Ranks(Time now) const {
  std::vector<RankProgress> ranks;
  for (const Known& known : known_) {
    const bool mine = &known == &known_[rank_];
    RankProgress r;
    r.progress = known.beat.progress;
    r.unmoved_ms = known.beat.unmoved_ms;
    r.silent_ms = mine ? 0 : MillisecondsBetween(known.heard, now);
    r.answers = mine || known.beat.leaving || now - known.heard <= kSilence;
    if (known.beat.leaving) r.progress.busy = false;
    ranks.push_back(r);
  }
  return ranks;
}

std::string StallJudge::Place(int rank) const {
  const BoardReading& at = known_[rank].beat.progress;
  std::string place(at.op, strnlen(at.op, sizeof at.op));
  if (at.layer >= 0) absl::StrAppend(&place, " layer ", at.layer);
  if (at.round >= 0) absl::StrAppend(&place, " round ", at.round);
  return absl::StrCat(place, " (sequence ", at.sequence, ")");
}

std::optional<StallVerdict> StallJudge::Judge(Time now) const {
  const std::vector<RankProgress> ranks = Ranks(now);
  const int size = static_cast<int>(ranks.size());
  bool any_busy = false;
  int silent = -1, behind = -1, speaker = -1;
  for (int r = 0; r < size; ++r) {
    if (!ranks[r].answers) {
      if (silent < 0) silent = r;
      continue;
    }
    if (speaker < 0) speaker = r;
    if (behind < 0 || ranks[r].progress.sequence < ranks[behind].progress.sequence) behind = r;
    if (!ranks[r].progress.busy) continue;
    if (ranks[r].unmoved_ms < timeout_.count()) return std::nullopt;  // it moves
    any_busy = true;
  }
  if (!any_busy) return std::nullopt;

  StallVerdict verdict;
  verdict.silent = silent >= 0;
  verdict.blamed = verdict.silent ? silent : behind;
  verdict.speaker = speaker;
  for (int r = 0; r < size; ++r) {
    const std::string who = absl::StrCat("toroid: rank ", r, " on host ", hosts_[r], ": ");
    verdict.lines.push_back(ranks[r].answers
                                ? absl::StrCat(who, Place(r),
                                               ranks[r].progress.busy
                                                   ? ", unmoved for " + Seconds(ranks[r].unmoved_ms)
                                                   : std::string(", idle"))
                                : absl::StrCat(who, "no answer for ", Seconds(ranks[r].silent_ms),
                                               ", last at ", Place(r)));
  }
  verdict.lines.push_back(absl::StrCat(
      "toroid: no progress for ", Seconds(timeout_.count()), ": rank ", verdict.blamed, " on host ",
      hosts_[verdict.blamed],
      verdict.silent ? " stopped answering, last at " : " is furthest behind, at ",
      Place(verdict.blamed), ": ",
      verdict.silent ? "see whether that process is stopped or its host gone, then start again"
                     : "see what that process waits for, or give more time by --stall-timeout"));
  return verdict;
}

}  // namespace toroid
