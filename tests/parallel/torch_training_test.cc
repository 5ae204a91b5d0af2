// Training of real weights in float32 against torch in float64: tests/checks/train_against_torch.py
// says why, makes the peer's run and starts these tests.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "core/io/weights.h"
#include "parallel/trainer.h"
#include "tests/support/engine_on_mesh.h"
#include "tests/support/run_on_ranks.h"

namespace toroid {
namespace {

using Kind = ParamStore::Kind;

constexpr double kLoss = 1e-5;  // relative
constexpr double kWay = 2e-3;   // of a tensor's way from its first to its last value, in norm

// Of a tensor: |w - w_torch|^2 and |w_torch - w_0|^2.
struct Way {
  double apart = 0, length = 0;
};

class TorchTrainingSlow : public ::testing::Test {
 protected:
  void SetUp() override {
    const char* directory = std::getenv("TOROID_TORCH_RUN");
    if (directory == nullptr) GTEST_SKIP() << "tests/checks/train_against_torch.py runs this";
    std::ifstream(std::string(directory) + "/run.json") >> run_;
    first_ = Open(run_["model"].get<std::string>());
    last_ = Open(std::string(directory) + "/final");
  }

  static std::shared_ptr<const ModelSource> Open(const std::string& path) {
    auto source = OpenModel(path);
    TOROID_CHECK_MSG(source.ok(), source.status().ToString());
    return std::make_shared<const ModelSource>(*std::move(source));
  }

  TrainBatch BatchOf(int64_t step) const {
    const auto rows = run_["ids"][size_t(step)].get<std::vector<std::vector<int32_t>>>();
    TrainBatch batch;
    for (const auto& row : rows) batch.documents.push_back({int64_t(row.size()) - 1});
    batch.read = [rows](int64_t p) -> absl::StatusOr<Pack> {
      const std::vector<int32_t>& row = rows[size_t(p)];
      return Pack{
          {row.begin(), row.end() - 1}, {row.begin() + 1, row.end()}, {int64_t(row.size()) - 1}};
    };
    return batch;
  }

  // Elements of this rank, each counted by one rank alone.
  void Measure(const ParamStore& store, std::map<std::string, Way>& ways) const {
    for (int64_t g = 0; g < store.groups().count(); ++g) {
      for (const ParamPiece& piece : store.pieces(g)) {
        const GroupMember& member = store.groups().group(g).members[piece.member];
        const int64_t cols = member.slice.col_count;
        ParamSlice rows = member.slice;  // those that the piece touches
        const int64_t begin = piece.begin / cols, end = (piece.begin + piece.count - 1) / cols + 1;
        rows.row_begin += begin;
        rows.row_count = end - begin;
        std::vector<double> from(rows.row_count * cols), to(rows.row_count * cols);
        ASSERT_TRUE(LoadParam(*first_, member.spec, rows, DType::kF64, from.data()).ok());
        ASSERT_TRUE(LoadParam(*last_, member.spec, rows, DType::kF64, to.data()).ok());
        const float* w = store.Stored(Kind::kWeights, g, piece).as<float>();
        Way& way = ways[member.spec.name];
        for (int64_t i = std::max<int64_t>(0, member.counted_from - piece.begin); i < piece.count;
             ++i) {
          const int64_t at = piece.begin + i - begin * cols;
          way.apart += std::pow(w[i] - to[at], 2);
          way.length += std::pow(to[at] - from[at], 2);
        }
      }
    }
  }

  void ExpectTorchsRun(MeshShape mesh) {
    TrainOptions options;
    options.mesh = mesh;
    options.packs_per_rank = 2;
    options.max_norm = 0;
    options.optimizer.rate.peak = run_["rate"].get<double>();
    options.optimizer.adamw.beta1 = run_["betas"][0].get<double>();
    options.optimizer.adamw.beta2 = run_["betas"][1].get<double>();
    options.optimizer.adamw.epsilon = run_["epsilon"].get<double>();
    const auto losses = run_["losses"].get<std::vector<double>>();
    double worst_loss = 0;
    std::map<std::string, Way> ways;
    std::mutex mutex;
    const auto body = [&](std::unique_ptr<Communicator> world) {
      const int rank = world->rank();
      auto trainer = Trainer::Create(std::move(world), first_, options, nullptr);
      ASSERT_TRUE(trainer.ok()) << trainer.status();
      for (int64_t step = 0; step < int64_t(losses.size()); ++step) {
        const auto result = (*trainer)->Step(step, BatchOf(step));
        ASSERT_TRUE(result.ok()) << result.status();
        const double error = std::abs(result->loss / losses[step] - 1);
        if (rank == 0) worst_loss = std::max(worst_loss, error);
        EXPECT_LE(error, kLoss) << "step " << step << ": " << result->loss;
      }
      const std::lock_guard<std::mutex> lock(mutex);
      Measure((*trainer)->store(), ways);
    };
    RunOnRanks(int(mesh.size()), body, std::chrono::minutes(25));
    double worst = 0;
    std::string name;
    for (const auto& [tensor, way] : ways) {
      ASSERT_GT(way.length, 0) << tensor << " did not move";
      const double part = std::sqrt(way.apart / way.length);
      EXPECT_LE(part, kWay) << tensor;
      if (part > worst) worst = part, name = tensor;
    }
    EXPECT_GT(worst, 0);
    std::printf("%s: losses within %.2e; tensors within %.2e of their way (%s)\n",
                ToString(mesh).c_str(), worst_loss, worst, name.c_str());
  }

  nlohmann::json run_;
  std::shared_ptr<const ModelSource> first_, last_;
};

TEST_F(TorchTrainingSlow, Ring) { ExpectTorchsRun({1, 2, 1}); }
TEST_F(TorchTrainingSlow, Data) { ExpectTorchsRun({2, 1, 1}); }
TEST_F(TorchTrainingSlow, Tensor) { ExpectTorchsRun({1, 1, 3}); }

}  // namespace
}  // namespace toroid
