// A model whose KV heads were pooled: on every mesh it computes what the unpooled one did where
// heads were equal, its cache is as much smaller, and after training the mean is the best beginning
// (Ainslie et al. 2023, 2305.13245, figure 4).
#include <fstream>

#include "core/io/convert.h"
#include "tests/support/repeated_heads.h"
#include "tests/support/training_runs.h"

namespace toroid {
namespace {

using Kind = KvPooling::Kind;

TEST(PooledModel, ComputesTheSameWhereHeadsWereEqual) {
  const TemporaryDirectory directory;
  const std::string repeated = directory.path() + "/repeated",
                    pooled = directory.path() + "/pooled";
  WriteWithRepeatedKvHeads("random:tiny-mqa", 7, 6, repeated);
  ModelSource source = *OpenModel(repeated);
  ASSERT_TRUE(PoolKvHeads(source, 2, Kind::kMean).ok());
  ASSERT_TRUE(WriteHuggingFace(source, pooled, {}).ok());
  const std::vector<int32_t> ids = MixedIds(37, source.config.vocab);
  const std::vector<double> whole = LogitsOn({.model = repeated, .mesh = {1, 1, 1}}, ids);
  const auto difference = [&](const EngineCase& c) {
    const std::vector<double> logits = LogitsOn(c, ids);
    double worst = 0;
    for (size_t i = 0; i < whole.size(); ++i) {
      worst = std::max(worst, std::abs(logits.at(i) - whole[i]));
    }
    return worst;
  };
  for (const std::string& model : {repeated, pooled, std::string("random:tiny-mqa")}) {
    for (const MeshShape& mesh : {MeshShape{1, 1, 1}, {1, 1, 2}, {1, 1, 4}, {1, 2, 2}}) {
      EXPECT_LT(difference({.model = model, .mesh = mesh}), 1e-12) << model;
    }
  }
  EXPECT_GT(difference({.model = "random:tiny-mha", .mesh = {1, 1, 1}}), 1e-3);  // control
  // The cache holds G heads of H.
  const auto kv = [&](const std::string& model) {
    int64_t bytes = 0;
    OnEngines({.model = model, .mesh = {1, 1, 1}}, [&](Engine& engine) {
      const auto foreseen = engine.ForeseeGenerate({.prompt_ids = ids, .max_tokens = 1});
      ASSERT_TRUE(foreseen.ok()) << foreseen.status();
      bytes = foreseen->kv;
    });
    return bytes;
  };
  const int64_t tokens = 48;  // whole pages
  const int64_t head = 2 * source.config.layers * source.config.head_dim * tokens * 8;  // K, V: f64
  EXPECT_EQ(kv(repeated) - kv("random:tiny-mqa"), 5 * head);
  EXPECT_EQ(kv(pooled) - kv("random:tiny-mqa"), head);
}

// Letters of a licence: what a letter is depends on those before.
class UptrainingSlow : public TrainingRunTest {
 protected:
  UptrainingSlow() {
    source_ = TestSource("preset:tiny-mha");
    std::ifstream file("/usr/share/common-licenses/GPL-3");
    const std::string text((std::istreambuf_iterator<char>(file)), {});
    Documents documents;
    for (size_t at = 0; at + 512 <= text.size(); at += 512) {
      const auto* const begin = reinterpret_cast<const uint8_t*>(text.data()) + at;
      documents.emplace_back(begin, begin + 512);
    }
    shard_ = WriteShard(directory_, "licence.tokens", documents, vocab());
  }
};

TEST_F(UptrainingSlow, TheMeanIsTheBestBeginning) {
  constexpr int64_t kSteps = 1000, kUptraining = kSteps / 20;
  TrainingPlan plan = Plan({1, 1, 1}, kSteps);
  plan.data.sequence_length = 64;
  plan.data.batch_tokens.stages = {{0, 16 * 64}};
  plan.directory = Directory("mha");
  const Outcome whole = Run(plan);
  ASSERT_TRUE(whole.status.ok()) << whole.status;
  plan.directory = "";
  plan.steps = kUptraining;
  std::map<Kind, double> begin, end;
  for (const Kind kind : {Kind::kMean, Kind::kFirst, Kind::kRandom}) {
    ModelSource source = *OpenModel(whole.result.checkpoint);
    ASSERT_TRUE(PoolKvHeads(source, 1, kind, /*seed=*/11).ok());
    source_ = std::make_shared<const ModelSource>(std::move(source));
    const Outcome run = Run(plan);
    ASSERT_TRUE(run.status.ok()) << run.status;
    begin[kind] = run.losses.at(0);
    for (int64_t step = kUptraining - 5; step < kUptraining; ++step) {
      end[kind] += run.losses.at(step) / 5;
    }
    RecordProperty("kind" + std::to_string(int(kind)),
                   std::to_string(begin[kind]) + " -> " + std::to_string(end[kind]));
  }
  EXPECT_GT(begin[Kind::kMean], whole.losses.at(kSteps - 1) + 0.01);  // something was lost
  EXPECT_LT(begin[Kind::kMean], begin[Kind::kFirst]);
  EXPECT_LT(begin[Kind::kFirst], begin[Kind::kRandom]);
  EXPECT_LT(end[Kind::kMean], end[Kind::kFirst]);
  EXPECT_LT(end[Kind::kMean], end[Kind::kRandom]);
  EXPECT_LT(end[Kind::kMean], begin[Kind::kMean]);
}

}  // namespace
}  // namespace toroid
