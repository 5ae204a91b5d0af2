#include "tests/support/engine_on_mesh.h"

#include <gtest/gtest.h>

#include <map>
#include <mutex>

#include "core/check.h"
#include "tests/support/run_on_ranks.h"

namespace toroid {

std::string ToString(const EngineCase& c) {
  std::string text = ToString(c.mesh) + " " + ToString(c.layout);
  if (c.compute == Compute::kF64) text += " f64";
  return text;
}

std::vector<int32_t> MixedIds(int64_t count, int64_t vocab) {
  std::vector<int32_t> ids(count);
  for (int64_t i = 0; i < count; ++i) ids[i] = int32_t((i * 7919 + i * i * 31 + 5) % vocab);
  return ids;
}

std::shared_ptr<const ModelSource> TestSource(const std::string& model) {
  static std::mutex mutex;
  static std::map<std::string, std::shared_ptr<const ModelSource>> opened;
  std::lock_guard<std::mutex> lock(mutex);
  std::shared_ptr<const ModelSource>& entry = opened[model];
  if (entry == nullptr) {
    auto source = OpenModel(model, 7);
    TOROID_CHECK_MSG(source.ok(), source.status().ToString());
    entry = std::make_shared<const ModelSource>(*std::move(source));
  }
  return entry;
}

void OnEngines(const EngineCase& c, const std::function<void(Engine&)>& use,
               std::chrono::milliseconds deadline, const WrapWorld& wrap) {
  LoadRequest load;
  load.model = c.model;
  load.mesh = c.mesh;
  load.layout = c.layout;
  load.compute = c.compute;
  load.context = c.context;
  load.page_tokens = c.page_tokens;
  load.threads = c.threads;
  load.device = c.device;
  load.share_gpus = c.share_gpus;
  const auto source = TestSource(c.model);
  RunOnRanks(
      int(c.mesh.size()),
      [&](std::unique_ptr<Communicator> world) {
        if (wrap != nullptr) world = wrap(std::move(world));
        auto engine = Engine::CreatePart(std::move(world), source, load, c.layers, nullptr);
        ASSERT_TRUE(engine.ok()) << engine.status();
        (*engine)->ShufflePages(c.shuffle);
        use(**engine);
      },
      deadline);
}

namespace {

// What `call` answers on rank 0.
template <typename Result>
Result AnswerOn(const EngineCase& c, std::chrono::milliseconds deadline,
                const std::function<absl::StatusOr<Result>(Engine&)>& call) {
  Result answer;
  OnEngines(
      c,
      [&](Engine& engine) {
        const auto result = call(engine);
        ASSERT_TRUE(result.ok()) << result.status();
        if (engine.mesh().rank() == 0) answer = *result;
      },
      deadline);
  return answer;
}

}  // namespace

ScoreResult ScoreOn(const EngineCase& c, const ScoreRequest& request,
                    std::chrono::milliseconds deadline) {
  return AnswerOn<ScoreResult>(c, deadline, [&](Engine& e) { return e.Score(request, {}); });
}

GenerateResult GenerateOn(const EngineCase& c, const GenerateRequest& request,
                          std::chrono::milliseconds deadline) {
  return AnswerOn<GenerateResult>(c, deadline, [&](Engine& e) { return e.Generate(request, {}); });
}

std::vector<double> LogitsOn(const EngineCase& c, const std::vector<int32_t>& ids) {
  std::vector<double> logits;
  OnEngines(c, [&](Engine& engine) {
    const absl::Status status = engine.Observe(
        ids, [](int64_t, Tap, Tensor) {},
        [&](int64_t, const std::vector<double>& row) {  // on rank 0 alone
          logits.insert(logits.end(), row.begin(), row.end());
        });
    ASSERT_TRUE(status.ok()) << status;
  });
  return logits;
}

void ExpectClose(const ScoreResult& a, const ScoreResult& b, double tolerance) {
  ASSERT_EQ(a.logprobs.size(), b.logprobs.size());
  for (size_t i = 0; i < a.logprobs.size(); ++i) {
    ASSERT_NEAR(a.logprobs[i], b.logprobs[i], tolerance) << "position " << i;
  }
  EXPECT_NEAR(a.mean_nll, b.mean_nll, tolerance);
  EXPECT_NEAR(a.last_logsumexp, b.last_logsumexp, tolerance);
  ASSERT_EQ(a.last_top.size(), b.last_top.size());
  for (size_t i = 0; i < a.last_top.size(); ++i) {
    EXPECT_EQ(a.last_top[i].first, b.last_top[i].first);
    EXPECT_NEAR(a.last_top[i].second, b.last_top[i].second, tolerance);
  }
}

}  // namespace toroid
