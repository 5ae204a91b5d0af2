// The proof of a training step: it passes what is right, on every kind of mesh and at every
// compute, and finds each planted fault.
#include "parallel/verify_training.h"

#include <gtest/gtest.h>

#include <map>
#include <string>

#include "core/random.h"
#include "parallel/verify_self_test.h"
#include "tests/support/engine_on_mesh.h"
#include "tests/support/run_on_ranks.h"

namespace toroid {
namespace {

TrainBatch BatchOf(int64_t vocab) {
  TrainBatch batch;
  batch.documents = {{21, 8}, {5, 1, 25}, {31}};
  batch.read = [=, documents = batch.documents](int64_t p) -> absl::StatusOr<Pack> {
    Pack pack;
    pack.document_lengths = documents[size_t(p)];
    for (const int64_t length : pack.document_lengths) {
      for (int64_t i = 0; i < length; ++i) {
        pack.ids.push_back(int32_t(Philox(3, pack.ids.size(), uint64_t(p))[0] % vocab));
        if (i > 0) pack.labels.push_back(pack.ids.back());
      }
      pack.labels.push_back(-1);
    }
    return pack;
  };
  return batch;
}

using Change = std::function<void(int rank, TrainOptions& options)>;

VerifyResult VerifyOn(
    const std::string& model, MeshShape mesh, Compute compute,
    const Change& change = [](int, TrainOptions&) {}) {
  VerifyResult result;
  const auto source = TestSource(model);
  RunOnRanks(int(mesh.size()), [&](std::unique_ptr<Communicator> world) {
    const int rank = world->rank();
    TrainOptions options;
    options.mesh = mesh;
    options.compute = compute;
    options.optimizer.rate.peak = 1e-3;
    change(rank, options);
    const auto verified =
        VerifyTraining(std::move(world), source, options, BatchOf(source->config.vocab), nullptr);
    ASSERT_TRUE(verified.ok()) << verified.status();
    if (rank == 0) result = *verified;
  });
  return result;
}

std::string Worst(const VerifyResult& result) {
  return result.worst.tensor + " " + std::to_string(result.worst.error) + " bound " +
         std::to_string(result.worst.bound);
}

TEST(VerifyTrainingTest, PassesOnMeshesAndComputes) {
  for (const char* model : {"random:tiny-gqa", "random:tiny-qwen2", "random:gpt3-tiny"}) {
    for (const Compute compute : {Compute::kF64, Compute::kF32, Compute::kBF16}) {
      for (const MeshShape mesh : {MeshShape{2, 1, 2}, MeshShape{1, 3, 2}}) {
        SCOPED_TRACE(std::string(model) + " " + ToString(mesh) + " compute " +
                     std::to_string(int(compute)));
        const VerifyResult result = VerifyOn(model, mesh, compute);
        EXPECT_TRUE(result.pass) << Worst(result);
        EXPECT_GT(result.worst.error, 0) << "nothing was compared";
      }
    }
  }
}

// One rank runs the reference's own lines.
TEST(VerifyTrainingTest, OneRankInFloat64IsTheReference) {
  const VerifyResult result = VerifyOn("random:tiny-gqa", {1, 1, 1}, Compute::kF64);
  EXPECT_TRUE(result.pass);
  EXPECT_EQ(result.worst.error, 0);
}

TEST(VerifyTrainingTest, ComparesEveryParameterOnce) {
  const VerifyResult result = VerifyOn("random:tiny-gqa", {1, 2, 2}, Compute::kF64,
                                       [](int, TrainOptions& options) { options.layers = 1; });
  std::map<std::string, int> seen;
  for (const TensorError& tensor : result.tensors) {
    ++seen[tensor.tensor];
    EXPECT_LT(tensor.layer, 1);
  }
  int64_t parameters = 0;
  for (const ParamSpec& spec : ParamTable(TestSource("random:tiny-gqa")->config)) {
    if (spec.layer > 0 || !spec.alias.empty()) continue;
    ++parameters;
    EXPECT_EQ(seen["gradient of " + spec.name], 1) << spec.name;
    EXPECT_EQ(seen["updated " + spec.name], 1) << spec.name;
  }
  EXPECT_EQ(seen["loss"], 1);
  EXPECT_EQ(seen["gradient norm"], 1);
  EXPECT_EQ(int64_t(seen.size()), 2 * parameters + 2);
}

// The update is judged by itself: a learning rate that differs on one rank leaves gradients right.
TEST(VerifyTrainingTest, AnUpdateThatDiffersIsNamed) {
  for (const Compute compute : {Compute::kF64, Compute::kF32}) {
    const VerifyResult result =
        VerifyOn("random:tiny-gqa", {2, 1, 2}, compute, [](int rank, TrainOptions& options) {
          if (rank == 3) options.optimizer.rate.peak *= 1.01;
        });
    EXPECT_FALSE(result.pass);
    for (const TensorError& tensor : result.tensors) {
      const bool update = tensor.tensor.rfind("updated ", 0) == 0;
      EXPECT_TRUE(update || tensor.error <= tensor.bound) << tensor.tensor;
    }
  }
}

TEST(VerifyTrainingTest, FirstTokensCutsPacksAndKeepsWhatIsLeft) {
  const TrainBatch batch = BatchOf(100);
  const TrainBatch cut = FirstTokens(batch, 2, 14);
  EXPECT_EQ(cut.documents, (std::vector<std::vector<int64_t>>{{7}, {5, 1, 1}}));
  const Pack whole = *batch.read(1), part = *cut.read(1);
  EXPECT_EQ(part.document_lengths, cut.documents[1]);
  EXPECT_EQ(part.ids, std::vector<int32_t>(whole.ids.begin(), whole.ids.begin() + 7));
  EXPECT_EQ(part.labels, std::vector<int32_t>(whole.labels.begin(), whole.labels.begin() + 7));
  EXPECT_EQ(FirstTokens(batch, 0, 0).documents, batch.documents);
  EXPECT_EQ(FirstTokens(batch, 9, 1).documents, (std::vector<std::vector<int64_t>>{{2}, {2}, {2}}));
}

// --- planted faults

TEST(VerifySelfTest, FindsEveryBugAndNamesWhereItShows) {
  const auto result = VerifySelfTest();
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_TRUE(result->pass);
  EXPECT_TRUE(result->clean.pass) << Worst(result->clean);
  // What the worst tensor's name must contain.
  const std::map<std::string, std::string> shows = {
      {"hop-0 KV reused in the ring backward", "gradient of model.layers."},
      {"dK not returned home", "k_proj"},
      {"bf16 partials", "gradient of "},
      {"replica sum for W_k dropped", "gradient of model.layers."},
      {"striped mask off by one", "gradient of model.layers."},
      {"last token of a packed document lost", "gradient of "},
      {"norm counts replicas twice", "gradient norm"},
      {"random numbers keyed by rank", "gradient of "},
  };
  ASSERT_EQ(result->bugs.size(), shows.size());
  for (const PlantedBug& bug : result->bugs) {
    SCOPED_TRACE(bug.bug + ": " + bug.worst.tensor);
    EXPECT_TRUE(bug.found);
    EXPECT_GT(bug.worst.error, 1e3 * bug.worst.bound);  // far from rounding
    ASSERT_EQ(shows.count(bug.bug), 1u);
    EXPECT_NE(bug.worst.tensor.find(shows.at(bug.bug)), std::string::npos);
    if (bug.bug.find("W_k") != std::string::npos) {
      EXPECT_NE(bug.worst.tensor.find("k_proj"), std::string::npos);
    }
  }
}

}  // namespace
}  // namespace toroid
