#include "parallel/stall_watch.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <deque>

namespace toroid {
namespace {

using std::chrono::milliseconds;
using ::testing::HasSubstr;

// The judge of one rank and the beats of the others, at a time that the test sets.
class StallJudgeTest : public ::testing::Test {
 protected:
  static constexpr int kRanks = 4;

  void Start(int rank, milliseconds timeout = milliseconds(5000)) {
    rank_ = rank;
    judge_.emplace(rank, std::vector<std::string>{"h0", "h0", "h1", "h1"}, timeout, now_);
  }
  // Lets time pass in the judge's own steps: ranks that `answers` says send beats; the ages of
  // those that do not `moves` grow.
  void Pass(milliseconds time) {
    for (milliseconds gone(0); gone < time; gone += milliseconds(250)) {
      now_ += milliseconds(250);
      for (int r = 0; r < kRanks; ++r) {
        if (moves_[r]) {
          at_[r].sequence += 1;
          unmoved_[r] = 0;
        } else if (ticks_[r]) {
          at_[r].ticks += 1;
          unmoved_[r] = 0;
        } else {
          unmoved_[r] += 250;
        }
        if (!at_[r].busy) unmoved_[r] = 0;
        if (r == rank_) {
          judge_->Look(at_[r], now_);
        } else if (answers_[r]) {
          judge_->Hear(r, StallBeat{at_[r], unmoved_[r], leaving_[r]}, now_);
        }
      }
      if (const auto verdict = judge_->Judge(now_); verdict.has_value() && !verdict_.has_value()) {
        verdict_ = verdict;
        after_ = gone + milliseconds(250);
      }
    }
  }
  static BoardReading Busy(const char* op, int64_t layer, int64_t round, int64_t sequence) {
    BoardReading p;
    std::snprintf(p.op, sizeof p.op, "%s", op);
    p.layer = layer, p.round = round, p.sequence = sequence, p.busy = true;
    return p;
  }

  int rank_ = 0;
  StallJudge::Time now_{};
  std::optional<StallJudge> judge_;
  std::vector<BoardReading> at_{kRanks, Busy("attention", 3, 1, 17)};
  std::vector<int64_t> unmoved_ = std::vector<int64_t>(kRanks);
  std::vector<bool> moves_{true, true, true, true}, ticks_{false, false, false, false},
      answers_{true, true, true, true}, leaving_{false, false, false, false};
  std::optional<StallVerdict> verdict_;
  milliseconds after_{0};
};

TEST_F(StallJudgeTest, ASilentRankIsNamedWithItsHostAndLastPlace) {
  Start(0);
  Pass(milliseconds(3000));
  at_[2] = Busy("ring", 3, 0, 20);
  Pass(milliseconds(250));
  answers_[2] = false;
  moves_ = {false, false, false, false};
  Pass(milliseconds(7000));
  ASSERT_TRUE(verdict_.has_value());
  EXPECT_LE(after_, milliseconds(5500));
  EXPECT_EQ(verdict_->blamed, 2);
  EXPECT_EQ(verdict_->speaker, 0);
  ASSERT_EQ(verdict_->lines.size(), 5u);
  EXPECT_THAT(verdict_->lines[0],
              HasSubstr("toroid: rank 0 on host h0: attention layer 3 round 1 (sequence "));
  EXPECT_THAT(verdict_->lines[0], HasSubstr("unmoved for 5"));
  EXPECT_THAT(verdict_->lines[2], HasSubstr("rank 2 on host h1: no answer for"));
  EXPECT_THAT(verdict_->lines[2], HasSubstr("last at ring layer 3 round 0 (sequence 21)"));
  EXPECT_THAT(verdict_->lines[4],
              HasSubstr("toroid: no progress for 5s: rank 2 on host h1 stopped answering, last at "
                        "ring layer 3 round 0 (sequence 21): "));
}

TEST_F(StallJudgeTest, AmongRanksThatAnswerTheFurthestBehindIsNamed) {
  Start(1);
  at_[3].sequence = 12;
  moves_ = {false, false, false, false};
  Pass(milliseconds(7000));
  ASSERT_TRUE(verdict_.has_value());
  EXPECT_EQ(verdict_->blamed, 3);
  EXPECT_FALSE(verdict_->silent);
  EXPECT_THAT(verdict_->lines.back(), HasSubstr("rank 3 on host h1 is furthest behind, at"));
}

TEST_F(StallJudgeTest, OneRankThatMovesIsOnlySlow) {
  Start(0);
  moves_ = {false, false, false, true};  // the others wait for it in a collective
  Pass(milliseconds(60000));
  EXPECT_FALSE(verdict_.has_value());
  moves_[3] = false;  // life signs from inside one long op
  ticks_[3] = true;
  Pass(milliseconds(60000));
  EXPECT_FALSE(verdict_.has_value());
  ticks_[3] = false;  // the control: the same without them
  Pass(milliseconds(5500));
  EXPECT_TRUE(verdict_.has_value());
}

TEST_F(StallJudgeTest, ASilentRankIsNoStallWhileOthersMove) {
  Start(0);
  answers_[2] = false;
  moves_ = {true, false, false, false};
  Pass(milliseconds(20000));
  EXPECT_FALSE(verdict_.has_value());
}

TEST_F(StallJudgeTest, AnIdleWorldDoesNotStall) {
  Start(0);
  moves_ = {false, false, false, false};
  for (BoardReading& p : at_) p.busy = false;
  Pass(milliseconds(60000));
  EXPECT_FALSE(verdict_.has_value());
  // The time spent idle does not count.
  for (BoardReading& p : at_) p.busy = true;
  Pass(milliseconds(4500));
  EXPECT_FALSE(verdict_.has_value());
  Pass(milliseconds(1000));
  EXPECT_TRUE(verdict_.has_value());
}

TEST_F(StallJudgeTest, AnIdleRankDoesNotHideOneThatHangs) {
  Start(1);
  moves_ = {false, false, false, false};
  at_[0].busy = at_[1].busy = at_[3].busy = false;
  at_[2].sequence = 16;
  Pass(milliseconds(6000));
  ASSERT_TRUE(verdict_.has_value());
  EXPECT_EQ(verdict_->blamed, 2);
  EXPECT_EQ(verdict_->speaker, 0);
}

TEST_F(StallJudgeTest, WhenRankZeroIsTheStoppedOneAnotherSpeaks) {
  Start(1);
  Pass(milliseconds(1000));
  answers_[0] = false;
  moves_ = {false, false, false, false};
  Pass(milliseconds(6000));
  ASSERT_TRUE(verdict_.has_value());
  EXPECT_EQ(verdict_->blamed, 0);
  EXPECT_EQ(verdict_->speaker, 1);
}

TEST_F(StallJudgeTest, ARankThatLeftIsNotBlamed) {
  Start(0);
  leaving_[3] = true;
  Pass(milliseconds(250));
  answers_[3] = false;
  moves_ = {false, false, false, false};
  at_[1].sequence -= 1;
  Pass(milliseconds(6000));
  ASSERT_TRUE(verdict_.has_value());
  EXPECT_EQ(verdict_->blamed, 1);
}

TEST_F(StallJudgeTest, AWatchThatWasStoppedItselfForgivesTheTime) {
  Start(0);
  Pass(milliseconds(1000));
  moves_ = {false, false, false, false};
  now_ += milliseconds(60000);             // the whole machine slept
  answers_ = {true, false, false, false};  // the other watches are not yet back
  Pass(milliseconds(1500));
  EXPECT_FALSE(verdict_.has_value());
}

// Watches joined by queues in memory.
TEST(StallWatchTest, WatchesOfAllRanksAgreeOnTheOneThatHangs) {
  constexpr int kRanks = 3;
  std::mutex mutex;
  std::condition_variable spoken;
  std::deque<std::pair<int, StallBeat>> inbox[kRanks];
  std::vector<std::pair<int, std::string>> reports;  // (speaker, final line)
  ProgressBoard boards[kRanks];
  for (ProgressBoard& board : boards) board.At("prefill");
  boards[0].At("ring", 4, 2);
  boards[2].At("ring", 4, 2);
  {
    std::vector<std::unique_ptr<StallWatch>> watches;
    for (int r = 0; r < kRanks; ++r) {
      StallChannel channel;
      channel.rank = r;
      channel.hosts = {"a", "b", "c"};
      channel.send = [&, r](int to, const StallBeat& beat) {
        std::lock_guard<std::mutex> lock(mutex);
        inbox[to].emplace_back(r, beat);
      };
      channel.receive = [&, r](int* from, StallBeat* beat) {
        std::lock_guard<std::mutex> lock(mutex);
        if (inbox[r].empty()) return false;
        std::tie(*from, *beat) = inbox[r].front();
        inbox[r].pop_front();
        return true;
      };
      channel.end_world = [&, r](const std::vector<std::string>& lines) {
        std::lock_guard<std::mutex> lock(mutex);
        reports.emplace_back(r, lines.back());
        spoken.notify_all();
      };
      watches.push_back(
          std::make_unique<StallWatch>(&boards[r], std::move(channel), milliseconds(300)));
    }
    std::unique_lock<std::mutex> lock(mutex);
    ASSERT_TRUE(spoken.wait_for(lock, std::chrono::seconds(30), [&] { return !reports.empty(); }));
    lock.unlock();
    EXPECT_EQ(watches[1]->Ranks()[0].progress.layer, 4);
  }
  EXPECT_EQ(reports[0].first, 0);
  EXPECT_THAT(reports[0].second, HasSubstr("rank 1 on host b is furthest behind, at prefill"));
}

}  // namespace
}  // namespace toroid
