// The hash of all weights: of what they are, not of who holds them.
#include "parallel/param_hash.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <set>
#include <utility>

#include "parallel/trainer.h"
#include "tests/support/engine_on_mesh.h"
#include "tests/support/run_on_ranks.h"

namespace toroid {
namespace {

using Kind = ParamStore::Kind;

// Of the weights that training begins with, once `change` has been at the last rank's.
uint64_t HashOn(const MeshShape& mesh, const char* model,
                const std::function<void(ParamStore&)>& change = {}) {
  std::vector<uint64_t> hashes(size_t(mesh.size()));
  RunOnRanks(int(mesh.size()), [&](std::unique_ptr<Communicator> world) {
    const int rank = world->rank();
    TrainOptions options;
    options.mesh = mesh;
    options.optimizer.rate.peak = 1e-3;
    auto trainer = Trainer::Create(std::move(world), TestSource(model), options, nullptr);
    ASSERT_TRUE(trainer.ok()) << trainer.status();
    if (change && rank + 1 == mesh.size()) change((*trainer)->store());
    hashes[size_t(rank)] = ParamHash((*trainer)->store());
  });
  for (const uint64_t hash : hashes) EXPECT_EQ(hash, hashes[0]);
  return hashes[0];
}

TEST(ParamHash, IsTheSameOnEveryMesh) {
  for (const char* model : {"random:tiny-gqa", "random:tiny-mqa", "random:gpt3-tiny"}) {
    const uint64_t alone = HashOn({1, 1, 1}, model);
    for (const MeshShape mesh : {MeshShape{2, 1, 1}, MeshShape{1, 3, 1}, MeshShape{1, 1, 3},
                                 MeshShape{2, 2, 2}}) {  // shared KV heads, replicated gains
      EXPECT_EQ(HashOn(mesh, model), alone) << model << " " << ToString(mesh);
    }
  }
}

// Control: one bit, and the places of two elements, show.
TEST(ParamHash, OneBitChangesIt) {
  std::set<uint64_t> hashes = {HashOn({1, 1, 1}, "random:tiny-gqa"),
                               HashOn({1, 1, 1}, "random:tiny-mha")};
  const auto flip = [](ParamStore& store) {
    float& w = store.Stored(Kind::kWeights, 1).as<float>()[5];
    w = std::nextafter(w, 2.0f);
  };
  const auto swap = [](ParamStore& store) {
    float* w = store.Stored(Kind::kWeights, store.groups().layer(1)).as<float>();
    std::swap(w[1000], w[1001]);
  };
  hashes.insert(HashOn({1, 1, 1}, "random:tiny-gqa", flip));
  hashes.insert(HashOn({1, 1, 1}, "random:tiny-gqa", swap));
  hashes.insert(HashOn({2, 1, 1}, "random:tiny-gqa", swap));
  EXPECT_EQ(hashes.size(), 5u);
}

}  // namespace
}  // namespace toroid
