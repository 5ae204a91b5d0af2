// Pods in one process of which some are lost and launched again, or come late, while the others
// train: policy `continue`.
#pragma once

#include <atomic>
#include <mutex>
#include <thread>

#include "absl/time/clock.h"
#include "parallel/pod_swap.h"
#include "tests/parallel/pod_continue_fixture.h"
#include "tests/support/run_on_ranks.h"
#include "tests/support/watched_link.h"

namespace toroid {

// A step that the others do not wait for.
inline constexpr absl::Duration kLong = absl::Seconds(40);

class PodReturnTest : public PodsGoOnTest {
 protected:
  PodReturnTest() : PodsGoOnTest(24) {}

  void Use(Mode mode) {
    PodsGoOnTest::Use(mode);
    ExchangeSpec& spec = plan_.options.pods.exchange;
    spec.error_feedback = !spec.gradients();
  }

  // What becomes of `pod` in launch `launch`.
  struct Loss {
    enum class How {
      kDropped,   // lost when it has done `step` steps: to the others, and to whoever makes views
      kCut,       // then its lines are cut, and it goes on
      kSlow,      // its next step then lasts until the others have gone on without it, or `kLong`
      kGiving,    // lost as it is about to give its state
      kGave,      // lost when a pod that returned has done a step
      kByItself,  // it ends with an error
      // It had no place when the others began: it comes, as launch 2, when one has done `step`.
      kAbsent
    };
    int64_t pod = 0;
    uint64_t launch = 1;
    int64_t step = 0;  // by then it is lost
    bool returns = true;
    int64_t wait = 3;  // if it returns, the others do no more steps until they have heard of it
    How how = How::kDropped;
  };
  using How = Loss::How;

  // outcomes by pod, then by launch. A pod whose launch ends with an error is launched again,
  // unless a loss says that it does not return.
  std::vector<std::vector<Outcome>> RunPods(const std::vector<MeshShape>& meshes,
                                            const std::vector<Loss>& losses) {
    const int64_t pods = int64_t(meshes.size());
    std::vector<PodRank> ranks;
    for (int64_t q = 0; q < pods; ++q) {
      for (int64_t r = 0; r < meshes[size_t(q)].size(); ++r) ranks.push_back({q, r});
    }
    InProcessPodNetwork network(ranks);
    Views views(pods);
    std::atomic<int64_t> newest = 0;  // steps done by any
    for (const Loss& loss : losses) {
      if (loss.how == How::kAbsent) views.Lose(loss.pod);
    }
    std::vector<std::vector<Outcome>> outcomes(meshes.size());
    for (auto& launches : outcomes) launches.resize(losses.size() + 3);
    const auto lost = [&](int64_t pod, uint64_t launch) -> const Loss* {
      for (const Loss& loss : losses) {
        if (loss.pod == pod && loss.launch == launch) return &loss;
      }
      return nullptr;
    };
    const auto cut = [&](int64_t pod, bool cut) {
      for (const PodRank& one : ranks) {
        for (const PodRank& other : ranks) {
          if (one.pod != pod || other.pod == pod) continue;
          cut ? network.Cut(one, other) : network.Heal(one, other);
        }
      }
    };
    const auto drop = [&](int64_t q) {
      for (int64_t r = 0; r < meshes[size_t(q)].size(); ++r) network.Drop({q, r});
      views.Lose(q);
    };
    std::vector<std::atomic<int64_t>> asked(meshes.size()), taking_part(meshes.size());
    // Until pod q, whose rank 0 does nothing else, knows the newest view, and tells of it in its
    // next card: its mail asks again and again, and has learnt the answer before when it does.
    const auto hear = [&](int64_t q) {
      const int64_t before = asked[size_t(q)];
      const absl::Time end = absl::Now() + kLong;
      while (asked[size_t(q)] < before + 2 && absl::Now() < end) {
        absl::SleepFor(absl::Milliseconds(1));
      }
    };
    // Until the others have made a merge without it: what it sends then comes too late.
    const auto dawdle = [&](int64_t q) {
      const absl::Time end = absl::Now() + kLong;
      for (int64_t other = 0; other < pods; ++other) {
        while (other != q && taking_part[size_t(other)] == pods && absl::Now() < end) {
          absl::SleepFor(absl::Milliseconds(2));
        }
      }
    };
    const auto launch_pod = [&](int64_t q, uint64_t launch) {
      Outcome& outcome = outcomes[size_t(q)][launch - 1];
      const Loss* const own = lost(q, launch);
      TrainingEvents events;
      events.view = [&, q] {
        ++asked[size_t(q)];
        return views.Now();
      };
      events.on_silent = [&, own](int64_t pod) {
        if (own == nullptr || own->how != How::kCut) views.Lose(pod);
      };
      events.on_slow = [&, q](int64_t pod, double) {
        {
          const std::lock_guard<std::mutex> lock(ranks_);
          ++told_slow_[{q, pod}];
        }
        if (views.Now()->LaunchOf(pod) == 1) views.Lose(pod);
      };
      events.on_step = [&, q, own, launch](const StepReport& report) {
        const int64_t done = report.result.step + 1;
        taking_part[size_t(q)] = report.pods->taking_part;
        after_step_(q, report);
        newest = std::max(newest.load(), done);
        if (own != nullptr && own->step == done) {
          if (own->how == How::kDropped) return drop(q);
          if (own->how == How::kCut) return cut(q, true);
          if (own->how == How::kSlow) return dawdle(q);
        }
        for (const Loss& loss : losses) {
          if (loss.pod == q) continue;
          const bool has_come = launch > 1 && report.result.step == outcome.reports[0].result.step;
          if (loss.how == How::kGave && has_come) drop(loss.pod);
          while (loss.returns && done >= loss.step + loss.wait &&
                 !views.Has(loss.pod, loss.launch + 1)) {
            absl::SleepFor(absl::Milliseconds(2));
          }
          if (done == loss.step + loss.wait) hear(q);
        }
      };
      events = Recording(std::move(events), outcome);
      TrainingPlan plan = PlanOf(q, meshes);
      plan.epoch = int64_t(launch);
      plan.joins = launch > 1;
      std::atomic<int64_t> attached = 0;
      RunOnRanks(int(meshes[size_t(q)].size()), [&](std::unique_ptr<Communicator> world) {
        PodIdentity identity;
        identity.job = "test";
        identity.self = {q, world->rank()};
        identity.epoch = launch;
        auto link = network.Attach(identity);
        ASSERT_TRUE(link.ok()) << link.status();
        if (++attached == meshes[size_t(q)].size() && launch > 1) views.Return(q, launch);
        while (launch > 1 && !views.Has(q, launch)) absl::SleepFor(absl::Milliseconds(1));
        *link = wrap_(q, launch, *std::move(link));
        if (own != nullptr && own->how == How::kGiving) {
          const auto sends = [&drop, q](const PodMessage& message) {
            if (message.kind == PodSwap::kStateText) drop(q);
          };
          *link = std::make_unique<WatchedLink>(*std::move(link), sends, nullptr);
        }
        RunRank(plan, events, std::move(world), outcome, link->get());
      });
    };
    std::vector<std::thread> threads;
    for (int64_t q = 0; q < pods; ++q) {
      threads.emplace_back([&, q] {
        const Loss* first = lost(q, 1);
        const bool absent = first != nullptr && first->how == How::kAbsent;
        while (absent && newest < first->step) absl::SleepFor(absl::Milliseconds(2));
        for (uint64_t launch = absent ? 2 : 1;; ++launch) {
          launch_pod(q, launch);
          const Loss* loss = lost(q, launch);
          if (loss != nullptr && !loss->returns) return;
          const std::vector<Outcome>& launches = outcomes[size_t(q)];
          if (launches[launch - 1].status.ok() || launch == launches.size()) return;
          if (views.Now()->LaunchOf(q) == launch) views.Lose(q);
          if (loss != nullptr && loss->how == How::kCut) cut(q, false);
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    return outcomes;
  }

  static int64_t FirstStep(const Outcome& pod) {
    EXPECT_FALSE(pod.reports.empty()) << pod.status;
    return pod.reports.empty() ? -1 : pod.reports.front().result.step;
  }

  static int64_t DroppedBy(const Outcome& pod) {
    int64_t dropped = 0;
    for (const StepReport& report : pod.reports) dropped += report.pods->dropped;
    return dropped;
  }

  // The last launch of each pod got to the end, all alike at every step that it did, and what they
  // logged can be made again.
  void ExpectAlike(const std::vector<std::vector<Outcome>>& pods,
                   const std::vector<uint64_t>& last) const {
    std::vector<int64_t> numbers;
    const auto all = Hashes(pods[0][last[0] - 1]);
    for (size_t q = 0; q < pods.size(); ++q) {
      SCOPED_TRACE(absl::StrCat("pod ", q));
      const Outcome& pod = pods[q][last[q] - 1];
      ASSERT_TRUE(pod.status.ok()) << pod.status;
      ASSERT_EQ(pod.result.steps, plan_.steps);  // it was launched
      EXPECT_EQ(pod.reports.back().pods->taking_part, int64_t(pods.size()));
      for (const auto& [step, hash] : Hashes(pod)) {
        const auto of_first = all.find(step);
        EXPECT_TRUE(of_first == all.end() || hash == of_first->second) << "step " << step;
      }
      const ReplayedMerges replayed = Replayed(int64_t(q), pods[q]);
      if (replayed.weights) {
        EXPECT_GT(replayed.weights->compared, 0);
      }
      numbers.push_back(int64_t(q));
      for (const MergeRecord& record : LogOf(int64_t(q))) {
        EXPECT_LE(record.inputs.size(), pods.size());  // each pod once
      }
    }
    ExpectLogsAlike(numbers);
    ASSERT_FALSE(LogOf(0).empty());
    EXPECT_EQ(LogOf(0).back().inputs.size(), pods.size());
  }

  // When pod 2 has done `done` steps its next one takes longer than the others wait: they tell of
  // it alone, and it is in no merge from that of step `without` on until it has returned.
  void ExpectNotWaitedFor(Mode mode, int64_t done, int64_t without) {
    SCOPED_TRACE(absl::StrCat(ExchangeModeName(mode), " after step ", done));
    Use(mode);
    plan_.directory = Directory(absl::StrCat(ExchangeModeName(mode), done));
    told_slow_.clear();
    const auto pods = RunPods(kThree, {{2, 1, done, true, 3, How::kSlow}});
    EXPECT_THAT(std::string(pods[2][0].status.message()), HasSubstr("takes part no more"));
    ExpectAlike(pods, {1, 1, 2});
    for (const auto& [who, times] : told_slow_) EXPECT_EQ(who.second, 2) << "by " << who.first;
    EXPECT_FALSE(told_slow_.empty());
    for (const size_t q : {0, 1}) {
      double longest = 0;
      for (const StepReport& report : pods[q][0].reports) {
        longest = std::max(longest, report.seconds);
      }
      EXPECT_GT(longest, 2.0);  // else it was not waited for
      EXPECT_LT(longest, absl::ToDoubleSeconds(kLong) / 2);
      EXPECT_GT(DroppedBy(pods[q][0]), 0);  // what it sent then
    }
    const int64_t first = FirstStep(pods[2][1]);
    for (const MergeRecord& record : LogOf(0)) {
      const bool away = record.step >= without && record.step <= first;
      EXPECT_EQ(record.inputs.size(), away ? 2u : 3u) << record.step;
      EXPECT_TRUE(!away || record.inputs.back().pod != 2) << record.step;
    }
  }

  // Of the state that pod 2 copies one bit flips on the way, in the values of that number: it says
  // so and is in no merge; its next launch is.
  void ExpectSpoiltIsNoticed(Mode mode, int32_t kind) {
    SCOPED_TRACE(absl::StrCat(ExchangeModeName(mode), ", values ", kind));
    Use(mode);
    plan_.directory = Directory(absl::StrCat(ExchangeModeName(mode), kind));
    const int64_t groups = source_->config.layers + 2;  // messages of each kind of values
    at_end_ = [groups](Trainer& trainer) { EXPECT_EQ(trainer.store().groups().count(), groups); };
    wrap_ = [kind, groups](int64_t pod, uint64_t launch,
                           std::unique_ptr<PodLink> link) -> std::unique_ptr<PodLink> {
      if (pod != 2 || launch != 2) return link;
      const auto spoils = [spoilt = int32_t(kind * groups) << 12](PodMessage& message) {
        if (message.kind != PodSwap::kState || message.fragment != spoilt) return;
        std::string spoilt{absl::string_view(message.payload)};
        spoilt[spoilt.size() / 2] ^= 1;  // the lowest of a mantissa
        message.payload = std::move(spoilt);
      };
      return std::make_unique<WatchedLink>(std::move(link), nullptr, spoils);
    };
    const auto pods =
        RunPods(kThree, {{2, 1, 6, true, /*wait=*/0}, {2, 2, 10, true, 3, How::kByItself}});
    EXPECT_TRUE(absl::IsDataLoss(pods[2][1].status)) << pods[2][1].status;
    EXPECT_THAT(std::string(pods[2][1].status.message()),
                HasSubstr("the state that pod 0 gave has the hash"));
    EXPECT_TRUE(pods[2][1].reports.empty());
    ExpectAlike(pods, {1, 1, 3});
    const int64_t first = FirstStep(pods[2][2]);
    for (const MergeRecord& record : LogOf(0)) {
      // That of its last share may have it.
      if (record.step < 6 + (mode == Mode::kExact ? 1 : 2)) continue;
      EXPECT_EQ(record.inputs.size(), record.step <= first ? 2u : 3u) << record.step;
    }
  }

  // Of so many steps pod 2 leaves out some, as it is slow; nobody tells of it. after_step_: makes
  // it so.
  void ExpectLeavesOutSteps(int64_t steps) {
    Use(Mode::kStreaming);
    plan_.options.pods.exchange.every = 12;
    plan_.steps = steps;
    const auto pods = RunPods(kThree, {});
    ExpectAlike(pods, {1, 1, 1});
    std::vector<bool> hurried;
    for (const StepReport& report : pods[2][0].reports) hurried.push_back(report.pods->hurried);
    EXPECT_FALSE(hurried.front());
    EXPECT_THAT(hurried, testing::Contains(true));
    for (const StepReport& report : pods[0][0].reports) EXPECT_FALSE(report.pods->hurried);
    EXPECT_THAT(told_slow_, testing::IsEmpty());
    const MergeRecord merge = LogOf(0).back();
    EXPECT_LT(merge.inputs[2].weight, merge.inputs[0].weight);
    EXPECT_GT(merge.inputs[2].weight, 0);
  }

  std::function<void(int64_t pod, const StepReport& report)> after_step_ = [](int64_t,
                                                                              const StepReport&) {};
  std::function<std::unique_ptr<PodLink>(int64_t pod, uint64_t launch, std::unique_ptr<PodLink>)>
      wrap_ = [](int64_t, uint64_t, std::unique_ptr<PodLink> link) { return link; };
  std::map<std::pair<int64_t, int64_t>, int64_t> told_slow_;  // by whom, of whom; guarded by ranks_
};

}  // namespace toroid
