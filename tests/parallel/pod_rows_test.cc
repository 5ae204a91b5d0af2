// Rows of the embedding that no token is of are whole, and leave, before the rest of its gradient.
#include <gtest/gtest.h>

#include <cstring>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "parallel/exchange_rows.h"
#include "tests/support/engine_on_mesh.h"
#include "tests/support/run_on_ranks.h"
#include "tests/support/train_on_pods.h"

namespace toroid {
namespace {

using Mode = ExchangeSpec::Mode;

std::vector<double> Gradient(const ParamStore& store, int64_t group) {
  const Tensor stored = store.Stored(ParamStore::Kind::kGradients, group);
  return std::vector<double>(stored.as<double>(), stored.as<double>() + stored.rows());
}

// Nothing comes to them behind the head's, in the last of three micro-batches.
TEST(PodRowsTest, WhatIsToldWholeIs) {
  for (const char* model : {"random:tiny-gqa", "random:tiny-mqa", "random:gpt2-tiny"}) {
    SCOPED_TRACE(model);
    const auto source = TestSource(model);
    RunOnRanks(1, [&](std::unique_ptr<Communicator> world) {
      auto trainer = Trainer::Create(std::move(world), source, Options({1, 1, 1}), nullptr);
      ASSERT_TRUE(trainer.ok()) << trainer.status();
      ParamStore& store = (*trainer)->store();
      std::vector<StoredRows> told;
      std::vector<double> then;
      std::set<int64_t> before;  // groups
      store.OnWhole([&](int64_t group) {
        if (told.empty()) before.insert(group);
      });
      store.OnRowsWhole([&](int64_t group, const StoredRows& rows) {
        EXPECT_EQ(group, store.groups().embedding());
        told.push_back(rows);
        then = Gradient(store, group);
      });
      ASSERT_TRUE((*trainer)->Gradient(0, AwkwardBatch(0, source->config.vocab)).ok());
      ASSERT_EQ(told.size(), 1u);
      // Nothing but a head of its own comes before.
      const ParamGroups& groups = store.groups();
      EXPECT_EQ(before, groups.head() == groups.embedding() ? std::set<int64_t>()
                                                            : std::set<int64_t>{groups.head()});
      const std::vector<double> now = Gradient(store, groups.embedding());
      const StoredRows& rows = told[0];
      ASSERT_EQ(int64_t(rows.chosen.size()), source->config.vocab);
      int64_t chosen = 0, changed = 0;
      for (size_t r = 0; r < rows.chosen.size(); ++r) {
        const size_t at = size_t(rows.begin) + r * size_t(rows.width);
        const size_t bytes = size_t(rows.width) * sizeof(double);
        const bool same = std::memcmp(&then[at], &now[at], bytes) == 0;
        EXPECT_TRUE(same || !rows.chosen[r]) << "row " << r;
        chosen += rows.chosen[r];
        changed += !same;
      }
      EXPECT_GT(chosen, source->config.vocab / 2);
      // Control: those of tokens change, but of documents' last ones, that predict nothing.
      EXPECT_GT(changed, (source->config.vocab - chosen) / 2);
    });
  }
}

// Where other ranks add to what is stored, nothing is told.
TEST(PodRowsTest, OfSeveralRanksNothingIsTold) {
  for (const MeshShape mesh : {MeshShape{2, 1, 1}, MeshShape{1, 1, 2}}) {
    const auto source = TestSource("random:tiny-mqa");
    RunOnRanks(2, [&](std::unique_ptr<Communicator> world) {
      auto trainer = Trainer::Create(std::move(world), source, Options(mesh), nullptr);
      ASSERT_TRUE(trainer.ok()) << trainer.status();
      (*trainer)->store().OnRowsWhole([](int64_t, const StoredRows&) { ADD_FAILURE(); });
      ASSERT_TRUE((*trainer)->Gradient(0, AwkwardBatch(0, source->config.vocab)).ok());
    });
  }
}

struct Case {
  const char* model;
  ExchangeSpec spec;
  std::vector<MeshShape> meshes;
  int64_t messages;  // in two, of all pods in a step
};

std::vector<Case> Cases() {
  constexpr MeshShape kOne = {1, 1, 1};
  ExchangeSpec feedback = ExchangeOf(Mode::kExact, 1, Codec::kBf16);
  feedback.error_feedback = feedback.stochastic = true;
  return {
      {"random:tiny-mqa", ExchangeOf(Mode::kExact, 1, Codec::kBf16), {kOne, kOne}, 2},
      {"random:gpt2-tiny", feedback, {kOne, kOne, kOne}, 6},
      {"random:tiny-gqa", ExchangeOf(Mode::kDelayed, 1, Codec::kFp32), {kOne, kOne}, 2},
      // Of unlike meshes a pod of one rank alone: to two that have columns or rows of it each.
      {"random:tiny-mqa",
       ExchangeOf(Mode::kExact, 1, Codec::kBf16),
       {kOne, {1, 1, 2}, {2, 1, 1}},
       4},
      {"random:tiny-mqa", ExchangeOf(Mode::kExact, 1, Codec::kInt8), {kOne, kOne}, 0},
  };
}

// All bits; the bytes are those of the rows' numbers more.
TEST(PodRowsTest, MakeNoDifferenceButWhenTheyLeave) {
  constexpr int64_t kSteps = 2;
  for (const Case& c : Cases()) {
    SCOPED_TRACE(absl::StrCat(c.model, ", ", ToString(c.spec), ", ", c.meshes.size(), " pods"));
    TrainOptions options = Options({1, 1, 1}, Compute::kF32);
    options.pods.exchange = c.spec;
    const auto all_at_once = [](Trainer& trainer, int64_t, int64_t) {
      trainer.store().OnRowsWhole([](int64_t, const StoredRows&) {});
    };
    const auto two = TrainOnPods(NewInProcessNetwork, c.model, options, c.meshes, kSteps);
    const auto one = TrainOnPods(NewInProcessNetwork, c.model, options, c.meshes, kSteps,
                                 AwkwardBatch, all_at_once);
    int64_t more = 0;
    for (size_t pod = 0; pod < c.meshes.size(); ++pod) {
      EXPECT_EQ(two[pod].hashes, one[pod].hashes) << "pod " << pod;
      EXPECT_EQ(two[pod].losses, one[pod].losses) << "pod " << pod;
      EXPECT_EQ(two[pod].hashes, two[0].hashes) << "pod " << pod;
      more += two[pod].bytes_sent - one[pod].bytes_sent;
    }
    const int64_t vocab = TestSource(c.model)->config.vocab;
    EXPECT_EQ(more, kSteps * c.messages * RowsBytes(vocab));
    const std::vector<uint64_t>& hashes = one[0].hashes;  // control: the weights move
    EXPECT_EQ(std::set<uint64_t>(hashes.begin(), hashes.end()).size(), hashes.size());
  }
}

}  // namespace
}  // namespace toroid
