#include "parallel/param_store.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <map>
#include <thread>

#include "core/io/random_model.h"
#include "core/io/weights.h"
#include "core/random.h"
#include "tests/support/run_on_ranks.h"

namespace toroid {
namespace {

using Kind = ParamStore::Kind;

// One rank: float64, so that equal means equal.
struct Side {
  Side(Mesh& m, const ModelSource& s, bool prefetch, bool narrow = false)
      : mesh(m),
        source(s),
        ops(NewCpuBackend(narrow ? DType::kF32 : DType::kF64, 1)),
        stream(ops->NewStream(false)),
        layout(source.config, mesh.tensor_rank(), mesh.shape().tensor) {
    store = *ParamStore::Create(*ops, stream, mesh,
                                ParamGroups(source.config, layout, mesh.tensor_rank(),
                                            mesh.shard().size(), source.config.layers),
                                {prefetch, narrow});
    EXPECT_TRUE(store->Load(source).ok());
  }

  std::vector<double> Values(Tensor x) const {
    std::vector<double> values(x.size());
    Tensor wide(DType::kF64, {1, x.size()}, values.data());
    ops->Copy(stream, x.Reshape({1, x.size()}), wide);
    return values;
  }
  // The slice as the model has it.
  std::vector<double> Truth(const GroupMember& member) const {
    std::vector<double> values(member.size());
    EXPECT_TRUE(LoadParam(source, member.spec, member.slice, DType::kF64, values.data()).ok());
    return values;
  }

  Mesh& mesh;
  const ModelSource& source;
  std::unique_ptr<Backend> ops;
  Stream stream;
  ParamLayout layout;
  std::unique_ptr<ParamStore> store;
};

// A gradient that depends on the parameter, the element of the slice, and the rank.
double GradientAt(const std::string& name, int64_t i, int64_t rank) {
  return double(HashName(name.data(), name.size()) % 97) + double(i % 89) * (1.0 + double(rank));
}

// Forward over all groups, backward over all, as training walks. Returns what every group's weights
// were in the order of the walk.
std::vector<std::vector<double>> Walk(Side& side) {
  ParamStore& store = *side.store;
  std::vector<std::vector<double>> seen;
  std::vector<int64_t> order;
  for (int64_t g = 0; g < store.groups().count(); ++g) order.push_back(g);
  for (int64_t g = store.groups().count() - 1; g >= 0; --g) order.push_back(g);
  const int64_t forward = store.groups().count();
  for (size_t i = 0; i < order.size(); ++i) {
    const ParamGroup& group = store.groups().group(order[i]);
    const FindParam find = store.Gather(order[i], i + 1 < order.size() ? order[i + 1] : -1);
    for (const GroupMember& member : group.members) {
      seen.push_back(side.Values(find(member.spec.name)));
    }
    if (int64_t(i) < forward) continue;
    const FindParam gradient = store.Gradients(order[i]);
    for (const GroupMember& member : group.members) {
      const Tensor d = gradient(member.spec.name);
      for (int64_t e = 0; e < d.size(); ++e) {
        d.as<double>()[e] += GradientAt(member.spec.name, e, side.mesh.shard().rank());
      }
    }
    store.Reduce();
  }
  store.FinishReductions();
  return seen;
}

TEST(ParamStore, GathersTheModelAndSumsGradients) {
  const ModelSource source = *OpenRandom("tiny-qwen3", 3);
  for (const MeshShape shape : {MeshShape{1, 1, 1}, MeshShape{2, 1, 1}, MeshShape{1, 3, 1},
                                MeshShape{1, 1, 2}, MeshShape{2, 2, 2}}) {
    for (bool prefetch : {false, true}) {
      RunOnMesh(shape, [&](Mesh& mesh) {
        Side side(mesh, source, prefetch);
        ParamStore& store = *side.store;
        for (int micro_batch = 1; micro_batch <= 2; ++micro_batch) {
          const std::vector<std::vector<double>> seen = Walk(side);
          size_t next = 0;
          for (int64_t g = 0; g < store.groups().count(); ++g) {
            for (const GroupMember& member : store.groups().group(g).members) {
              EXPECT_EQ(seen[next++], side.Truth(member)) << member.spec.name;
            }
            for (const ParamPiece& piece : store.pieces(g)) {
              const std::string& name = store.groups().group(g).members[piece.member].spec.name;
              const Tensor d = store.Stored(Kind::kGradients, g, piece);
              for (int64_t i = 0; i < piece.count; ++i) {
                double sum = 0;
                for (int r = 0; r < mesh.shard().size(); ++r) {
                  sum += GradientAt(name, piece.begin + i, r);
                }
                ASSERT_EQ(d.as<double>()[i], micro_batch * sum) << name << " element " << i;
              }
            }
          }
        }
        store.ZeroGradients();
        for (double sum : store.SquaredSums(Kind::kGradients)) EXPECT_EQ(sum, 0);
      });
    }
  }
}

// With one group ahead the same verbs are called in another order: as many, as long.
TEST(ParamStore, TrafficIsTheFormulaWithPrefetchAndWithout) {
  const ModelSource source = *OpenRandom("tiny-gqa", 3);
  for (bool prefetch : {false, true}) {
    RunOnMesh({2, 2, 1}, [&](Mesh& mesh) {
      Side side(mesh, source, prefetch);
      const ParamGroups& groups = side.store->groups();
      Walk(side);
      // Every group is gathered twice but the two at the turn, which are still there.
      int64_t elements = 0;
      for (int64_t g = 0; g < groups.count(); ++g) {
        elements += groups.group(g).size * (g + 2 >= groups.count() ? 2 : 3);
      }
      EXPECT_EQ(mesh.shard().counters().calls, 3 * groups.count() - 2);
      EXPECT_EQ(mesh.shard().counters().bytes_sent, elements * 3 / 4 * 8);
    });
  }
}

// True once `flag` is set; gives up after ten seconds.
bool Await(const std::atomic<bool>& flag) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  while (!flag && std::chrono::steady_clock::now() < deadline) std::this_thread::yield();
  return flag;
}

// Rank 0 computes with a group while rank 1 keeps the next gather waiting, and goes on behind a
// reduction that rank 1 has not begun.
TEST(ParamStore, CollectivesTravelBehindTheComputation) {
  const ModelSource source = *OpenRandom("tiny-gqa", 3);
  std::atomic<bool> used = false, reduced = false;
  RunOnMesh({2, 1, 1}, [&](Mesh& mesh) {
    const bool first = mesh.world().rank() == 0;
    Side side(mesh, source, /*prefetch=*/true);
    ParamStore& store = *side.store;
    const std::string name = store.groups().group(0).members[0].spec.name;
    const FindParam find = store.Gather(0, first ? 1 : -1);
    EXPECT_EQ(side.Values(find(name)), side.Truth(store.groups().group(0).members[0]));
    if (first) used = true;
    EXPECT_TRUE(first || Await(used));
    store.Gather(1, -1);
    side.ops->Synchronize(side.stream);
    store.Gradients(1);
    EXPECT_TRUE(first || Await(reduced));
    store.Reduce();
    if (first) side.Values(store.Stored(Kind::kWeights, 1));
    if (first) reduced = true;
    store.FinishReductions();
  });
}

TEST(ParamStore, SquaredSumsCountReplicasOnceOnEveryMesh) {
  const ModelSource source = *OpenRandom("tiny-mqa", 5);
  std::map<std::string, double> alone;
  for (const MeshShape shape : {MeshShape{1, 1, 1}, MeshShape{1, 1, 2}, MeshShape{2, 1, 2}}) {
    RunOnMesh(shape, [&](Mesh& mesh) {
      Side side(mesh, source, true);
      const std::vector<double> sums = side.store->SquaredSums(Kind::kWeights);
      for (size_t i = 0; i < sums.size(); ++i) {
        const std::string& name = side.store->parameter_name(int64_t(i));
        if (mesh.world().size() == 1) {
          alone[name] = sums[i];
        } else {
          EXPECT_NEAR(sums[i] / alone.at(name), 1, 1e-12) << name;
        }
      }
      // What is not finite shows under its name alone.
      if (mesh.shard().rank() == 0) {
        side.store->Stored(Kind::kWeights, 1).as<double>()[0] = std::nan("");
      }
      const std::vector<double> spoilt = side.store->SquaredSums(Kind::kWeights);
      const std::string first = side.store->groups().group(1).members[0].spec.name;
      for (size_t i = 0; i < spoilt.size(); ++i) {
        EXPECT_EQ(std::isnan(spoilt[i]), side.store->parameter_name(int64_t(i)) == first);
      }
    });
  }
}

// A changed weight is seen by the next walk only once what was gathered is forgotten.
TEST(ParamStore, ForgetMakesTheNextWalkGatherAnew) {
  const ModelSource source = *OpenRandom("tiny-gqa", 3);
  RunOnMesh({2, 1, 1}, [&](Mesh& mesh) {
    Side side(mesh, source, true);
    ParamStore& store = *side.store;
    const std::string name = store.groups().group(0).members[0].spec.name;
    const double before = store.Gather(0, 1)(name).as<double>()[0];
    if (mesh.rank() == 0) store.Stored(Kind::kWeights, 0).as<double>()[0] = before + 1;
    EXPECT_EQ(store.Gather(0, 1)(name).as<double>()[0], before);
    store.Forget();
    EXPECT_EQ(store.Gather(0, 1)(name).as<double>()[0], before + 1);
  });
}

TEST(ParamStore, NarrowGathersMatricesInBf16AndVectorsInFloat32) {
  const ModelSource source = *OpenRandom("tiny-qwen2", 3);
  for (const MeshShape shape : {MeshShape{1, 1, 1}, MeshShape{2, 1, 1}}) {
    RunOnMesh(shape, [&](Mesh& mesh) {
      Side side(mesh, source, true, /*narrow=*/true);
      const ParamGroup& group = side.store->groups().group(1);
      const FindParam find = side.store->Gather(1, 2);
      for (const GroupMember& member : group.members) {
        const Tensor found = find(member.spec.name);
        EXPECT_EQ(found.dtype, member.spec.rows == 1 ? DType::kF32 : DType::kBF16);
        const std::vector<double> values = side.Values(found), truth = side.Truth(member);
        for (size_t i = 0; i < truth.size(); ++i) {
          ASSERT_NEAR(values[i], truth[i], std::abs(truth[i]) / 256) << member.spec.name;
        }
      }
      EXPECT_TRUE(find("no such parameter").empty());
    });
  }
}

}  // namespace
}  // namespace toroid
