// Runs of training on threads: TrainingRunTest's Run(plan) gives what rank 0 saw of one,
// RunUntilKilled what it saw before its world was abandoned.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "core/random.h"
#include "parallel/thread_communicator.h"
#include "parallel/training_run.h"
#include "tests/support/engine_on_mesh.h"
#include "tests/support/run_on_ranks.h"
#include "tests/support/token_sets.h"

namespace toroid {

// Documents with something to learn: walks through the first `span` ids with some jumps.
inline Documents Walks(int64_t documents, int64_t span) {
  Documents all;
  for (int64_t d = 0; d < documents; ++d) {
    std::vector<int32_t> ids;
    for (int64_t i = 0; i < 5 + d * 7 % 60; ++i) {
      const auto random = Philox(9, uint64_t(i), uint64_t(d));
      const bool jump = i == 0 || random[0] % 6 == 0;
      ids.push_back(int32_t(jump ? random[1] % span : (ids.back() + 3) % span));
    }
    all.push_back(std::move(ids));
  }
  return all;
}

class TrainingRunTest : public testing::Test {
 protected:
  TrainingRunTest() : source_(TestSource("random:tiny-gqa")) {
    shard_ = WriteShard(directory_, "walks.tokens", Walks(40, vocab()), vocab());
  }
  int64_t vocab() const { return source_->config.vocab; }

  TrainingPlan Plan(MeshShape mesh, int64_t steps) const {
    TrainingPlan plan;
    plan.options.mesh = mesh;
    plan.options.token_block = 16;
    plan.options.optimizer.rate.peak = 3e-3;
    plan.options.optimizer.rate.warmup = 4;
    plan.data.paths = {shard_};
    plan.data.cache = directory_.path() + "/cache";
    plan.data.sequence_length = 32;
    plan.data.batch_tokens.stages = {{0, 4 * 32}};
    plan.seed = 5;
    plan.steps = steps;
    plan.directory = Directory("run");
    return plan;
  }
  std::string Directory(const std::string& name) const { return directory_.path() + "/" + name; }

  struct Outcome {
    absl::Status status;
    TrainingResult result;
    std::map<int64_t, double> losses;  // by step, the last time that it was done
    std::vector<StepReport> reports;
    std::vector<std::string> notes;  // alarms among them
    std::vector<std::string> alarms;
    // At the end: what each rank stores of weights and moments, and of rank 0 the
    std::map<int, std::vector<float>> shares;
    GradientNoiseScale noise;
    bool Notes(const std::string& part) const {
      return testing::Matches(testing::Contains(testing::HasSubstr(part)))(notes);
    }
  };

  // The hashes of the weights that launches of one run told, one after the other, as metrics.jsonl
  // keeps them: by steps done.
  static std::map<int64_t, uint64_t> ParamHashesOf(const std::vector<Outcome>& launches) {
    std::map<int64_t, uint64_t> hashes;
    for (const Outcome& launch : launches) {
      if (launch.reports.empty()) continue;
      hashes.erase(hashes.lower_bound(launch.reports[0].result.step + 1), hashes.end());
      for (const StepReport& report : launch.reports) {
        if (report.param_hash) hashes[report.result.step + 1] = *report.param_hash;
      }
    }
    return hashes;
  }

  static void CollectShare(Trainer& trainer, Outcome& outcome) {
    using Kind = ParamStore::Kind;
    std::vector<float>& share = outcome.shares[int(trainer.mesh().rank())];
    for (const Kind kind : {Kind::kWeights, Kind::kFirstMoments, Kind::kSecondMoments}) {
      for (int64_t g = 0; g < trainer.store().groups().count(); ++g) {
        const Tensor stored = trainer.store().Stored(kind, g);
        share.insert(share.end(), stored.as<float>(), stored.as<float>() + stored.size());
      }
    }
  }

  // One rank of a run; the first one fills `outcome`.
  void RunRank(const TrainingPlan& plan, const TrainingEvents& events,
               std::unique_ptr<Communicator> world, Outcome& outcome,
               PodLink* link = nullptr) const {
    const bool first = world->rank() == 0;
    auto run =
        TrainingRun::Create(std::move(world), source_, tokenizer_, plan, events, nullptr, link);
    absl::Status status = run.status();
    if (run.ok()) {
      const auto result = (*run)->Run();
      status = result.status();
      if (first && result.ok()) outcome.result = *result;
      if (first) outcome.noise = (*run)->trainer().noise();
      const std::lock_guard<std::mutex> lock(ranks_);
      CollectShare((*run)->trainer(), outcome);
      at_end_((*run)->trainer());
    }
    if (first) outcome.status = status;
  }

  static TrainingEvents Recording(TrainingEvents events, Outcome& outcome) {
    events.on_step = [&outcome, also = events.on_step](const StepReport& report) {
      outcome.losses[report.result.step] = report.result.loss;
      outcome.reports.push_back(report);
      also(report);
    };
    events.on_note = [&outcome](const std::string& note) { outcome.notes.push_back(note); };
    events.on_alarm = [&outcome, also = events.on_alarm](const std::string& alarm) {
      outcome.notes.push_back(alarm);
      outcome.alarms.push_back(alarm);
      also(alarm);
    };
    return events;
  }

  Outcome Run(const TrainingPlan& plan, TrainingEvents events = {}, const WrapWorld& wrap = {},
              int ranks = 0) const {
    Outcome outcome;
    events = Recording(std::move(events), outcome);
    RunOnRanks(ranks > 0 ? ranks : int(plan.options.mesh.size()),
               [&](std::unique_ptr<Communicator> world) {
                 if (wrap) world = wrap(std::move(world));
                 RunRank(plan, events, std::move(world), outcome);
               });
    return outcome;
  }

  // The same, killed when rank 0 has done step `last`: no verb works from then on.
  Outcome RunUntilKilled(const TrainingPlan& plan, int64_t last) const {
    Outcome outcome;
    std::shared_ptr<ThreadWorldMonitor> monitor;
    auto worlds = NewThreadWorld(int(plan.options.mesh.size()), &monitor);
    TrainingEvents events;
    events.on_step = [&](const StepReport& report) {
      if (report.result.step == last) monitor->Abandon("killed");
    };
    events = Recording(std::move(events), outcome);
    std::vector<std::thread> ranks;
    for (auto& world : worlds) {
      ranks.emplace_back([&, mine = std::move(world)]() mutable {
        RunRank(plan, events, std::move(mine), outcome);
      });
    }
    for (std::thread& rank : ranks) rank.join();
    return outcome;
  }

  TemporaryDirectory directory_;
  std::shared_ptr<const ModelSource> source_;
  std::shared_ptr<const Tokenizer> tokenizer_;  // null: shards of tokens alone
  std::string shard_;
  // Called on each rank behind its run, one at a time.
  std::function<void(Trainer&)> at_end_ = [](Trainer&) {};
  mutable std::mutex ranks_;
};

}  // namespace toroid
