// Training on pods of threads: `exact` is the whole batch on one pod, bit for bit the same on all.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <mutex>
#include <string>

#include "absl/strings/str_cat.h"
#include "parallel/param_hash.h"
#include "parallel/progress_board.h"
#include "tests/support/engine_on_mesh.h"
#include "tests/support/pod_identities.h"
#include "tests/support/run_on_pods.h"
#include "tests/support/run_on_ranks.h"
#include "tests/support/train_on_pods.h"

namespace toroid {
namespace {

class GradientIdentityTest : public ::testing::TestWithParam<PodIdentityCase> {};

TEST_P(GradientIdentityTest, Holds) { GetParam().run(NewInProcessNetwork); }

const auto name_of = [](const auto& info) { return std::string(info.param.name); };
INSTANTIATE_TEST_SUITE_P(InProcess, GradientIdentityTest, ::testing::ValuesIn(GradientIdentities()),
                         name_of);
INSTANTIATE_TEST_SUITE_P(InABowl, GradientIdentityTest, ::testing::ValuesIn(DelayedIdentities()),
                         name_of);

// A gradient that is not finite on one pod is skipped by all.
TEST(PodTrainerTest, WhatOnePodMustSkipAllSkip) {
  for (const Codec codec : {Codec::kFp64, Codec::kInt8}) {
    TrainOptions options = Float64();
    options.pods.exchange.codec = codec;
    std::mutex mutex;
    std::vector<std::string> skipped;
    const auto source = TestSource("random:tiny-gqa");
    RunOnPods({{1, 1, 1}, {1, 1, 2}},
              [&](int64_t pod, std::unique_ptr<Communicator> world, PodLink& link) {
                TrainOptions own = options;
                own.mesh = pod == 0 ? MeshShape{1, 1, 1} : MeshShape{1, 1, 2};
                own.pods.count = 2;
                if (pod == 1) own.zeta = std::numeric_limits<double>::infinity();
                auto trainer = Trainer::Create(std::move(world), source, own, nullptr, Rounds,
                                               PodAccess{&link});
                ASSERT_TRUE(trainer.ok()) << trainer.status();
                const uint64_t before = ParamHash((*trainer)->store());
                const auto result = (*trainer)->Step(0, BatchOf(0, source->config.vocab));
                ASSERT_TRUE(result.ok()) << result.status();
                EXPECT_EQ(ParamHash((*trainer)->store()), before);
                const std::lock_guard<std::mutex> lock(mutex);
                skipped.push_back(result->skipped);
              });
    ASSERT_EQ(skipped.size(), 3u);
    EXPECT_NE(skipped[0], "");
    EXPECT_THAT(skipped, testing::Each(skipped[0]));
  }
}

// All clip by the norm of one pod's mesh. Each with its own, a sum in another order, has other
// weights soon.
TEST(PodTrainerTest, UnlikeMeshesClipByOneNorm) {
  const std::vector<MeshShape> meshes = {{1, 1, 1}, {2, 1, 2}};
  const auto source = TestSource("random:tiny-gqa");
  for (const bool own_norm : {false, true}) {
    std::mutex mutex;
    std::vector<std::vector<uint64_t>> hashes(meshes.size());  // by pod and step
    std::vector<std::vector<double>> factors(meshes.size());
    RunOnPods(meshes, [&](int64_t pod, std::unique_ptr<Communicator> world, PodLink& link) {
      TrainOptions options = Float64();
      options.mesh = meshes[size_t(pod)];
      options.pods.count = 2;
      const bool first = world->rank() == 0;
      auto made =
          Trainer::Create(std::move(world), source, options, nullptr, Rounds, PodAccess{&link});
      ASSERT_TRUE(made.ok()) << made.status();
      Trainer& trainer = **made;
      auto optimizer = Optimizer::Create(trainer.backend(), trainer.stream(), trainer.store(),
                                         options.optimizer);
      ASSERT_TRUE(optimizer.ok()) << optimizer.status();
      int64_t updates = 0;
      for (int64_t step = 0; step < 8; ++step) {
        ASSERT_TRUE(trainer.Gradient(step, BatchOf(step, source->config.vocab)).ok());
        constexpr auto kGradients = ParamStore::Kind::kGradients;
        const std::vector<double> squares = own_norm ? trainer.store().SquaredSums(kGradients)
                                                     : trainer.exchange()->SquaredSums(kGradients);
        const auto clipped = (*optimizer)->ClipAndUpdate(step, squares, /*max_norm=*/0.1, updates);
        const uint64_t hash = ParamHash(trainer.store());
        const std::lock_guard<std::mutex> lock(mutex);
        if (first) hashes[size_t(pod)].push_back(hash);
        if (first) factors[size_t(pod)].push_back(clipped.clip.factor);
      }
    });
    EXPECT_EQ(hashes[0] == hashes[1], !own_norm);
    EXPECT_EQ(factors[0] == factors[1], !own_norm);
    for (const double factor : factors[0]) EXPECT_LT(factor, 1);
  }
}

// A group is whole while the backward of the next one runs or waits to; in the last micro-batch
// alone, once each, those whose gradient comes in two parts (a tied head) at their second.
TEST(PodTrainerTest, GroupsAreWholeWhileTheBackwardStillRuns) {
  for (const char* model : {"random:tiny-gqa", "random:gpt3-tiny"}) {
    for (const MeshShape mesh : {MeshShape{1, 1, 1}, MeshShape{2, 1, 1}, MeshShape{1, 1, 2}}) {
      SCOPED_TRACE(absl::StrCat(model, " ", ToString(mesh)));
      const auto source = TestSource(model);
      RunOnRanks(int(mesh.size()), [&](std::unique_ptr<Communicator> world) {
        ProgressBoard board;
        auto trainer =
            Trainer::Create(std::move(world), source, Options(mesh, Compute::kF32), &board);
        ASSERT_TRUE(trainer.ok()) << trainer.status();
        ParamStore& store = (*trainer)->store();
        std::vector<int64_t> groups;
        std::vector<int64_t> places;  // that the rank had passed then
        store.OnWhole([&](int64_t group) {
          groups.push_back(group);
          places.push_back(board.Read().sequence);
        });
        const auto loss = (*trainer)->Gradient(0, BatchOf(0, source->config.vocab));
        ASSERT_TRUE(loss.ok()) << loss.status();
        const ParamGroups& of = store.groups();
        std::vector<int64_t> expected;
        if (of.head() != of.embedding()) expected.push_back(of.head());
        for (int64_t layer = (*trainer)->layers() - 1; layer >= 0; --layer) {
          expected.push_back(of.layer(layer));
        }
        expected.push_back(of.embedding());
        EXPECT_EQ(groups, expected);
        // On more ranks a reduction travels while the layer below computes.
        const int64_t later = mesh.size() == 1 ? 1 : 2;
        if ((*trainer)->layers() > later) {
          EXPECT_LT(places.front(), board.Read().sequence);
        }
      });
    }
  }
}

}  // namespace
}  // namespace toroid
