// A page of keys that is lost shows in the log-probabilities, on the way around the ring and in the
// cache: the negative control of what compares meshes.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "tests/support/engine_on_mesh.h"
#include "tests/support/passing_communicator.h"

namespace toroid {
namespace {

// Passes every verb on, and zeroes the first `bytes` bytes of the first message that comes by
// SendRecv on any communicator split from it: keys of one page.
class LosingCommunicator final : public PassingCommunicator {
 public:
  LosingCommunicator(std::unique_ptr<Communicator> inner, int64_t bytes)
      : PassingCommunicator(std::move(inner)), bytes_(bytes) {}

  using Communicator::Split;
  std::unique_ptr<Communicator> Split(const RankFunction& color, const RankFunction& key) override {
    return std::make_unique<LosingCommunicator>(inner().Split(color, key), bytes_);
  }

 protected:
  void DoSendRecv(Stream s, const void* send, int64_t send_bytes, int to, void* recv,
                  int64_t recv_bytes, int from) override {
    PassingCommunicator::DoSendRecv(s, send, send_bytes, to, recv, recv_bytes, from);
    const int64_t lost = std::min(bytes_, recv_bytes);
    bytes_ = 0;
    s.cpu->Enqueue([recv, lost] {
      std::memset(recv, 0, lost);
      return true;
    });
  }

 private:
  int64_t bytes_;
};

double LargestDifference(const GenerateResult& a, const GenerateResult& b) {
  double worst = a.prompt_logprobs.size() == b.prompt_logprobs.size() ? 0 : INFINITY;
  for (size_t i = 0; i < a.prompt_logprobs.size(); ++i) {
    worst = std::max(worst, std::abs(a.prompt_logprobs[i].second - b.prompt_logprobs[i].second));
  }
  return worst;
}

class LostPageTest : public ::testing::Test {
 protected:
  const EngineCase c_{.model = "random:tiny-1m", .mesh = {1, 4, 1}, .compute = Compute::kF32};

  GenerateResult Generate(MeshShape mesh, const WrapWorld& wrap, int64_t lost_page) const {
    EngineCase c = c_;
    c.mesh = mesh;
    GenerateRequest request;
    request.prompt_ids = MixedIds(1000, TestSource(c.model)->config.vocab);
    request.max_tokens = 8;
    request.prompt_logprobs = 64;
    request.logprobs = true;
    GenerateResult answer;
    OnEngines(
        c,
        [&](Engine& engine) {
          if (engine.mesh().rank() == 0) engine.LosePage(lost_page);
          const auto made = engine.Generate(request, {});
          ASSERT_TRUE(made.ok()) << made.status();
          if (engine.mesh().rank() == 0) answer = *made;
        },
        std::chrono::minutes(2), wrap);
    return answer;
  }
};

TEST_F(LostPageTest, TheRingGivesTheLogProbabilitiesOfOneRank) {
  const GenerateResult one = Generate({1, 1, 1}, nullptr, -1);
  ASSERT_EQ(one.prompt_logprobs.size(), 64u);
  const auto whole = [](std::unique_ptr<Communicator> world) -> std::unique_ptr<Communicator> {
    return std::make_unique<LosingCommunicator>(std::move(world), 0);
  };
  for (const WrapWorld& wrap : {WrapWorld(), WrapWorld(whole)}) {
    const GenerateResult four = Generate({1, 4, 1}, wrap, -1);
    EXPECT_LE(LargestDifference(four, one), 1e-4);
    EXPECT_EQ(four.ids, one.ids);
  }
}

TEST_F(LostPageTest, OnePageLostOnTheRingShows) {
  const GenerateResult one = Generate({1, 1, 1}, nullptr, -1);
  const ModelConfig& config = TestSource(c_.model)->config;
  const int64_t page = 16 * config.kv_heads * config.head_dim * 4;
  const GenerateResult lost = Generate(
      {1, 4, 1},
      [&](std::unique_ptr<Communicator> world) -> std::unique_ptr<Communicator> {
        if (world->rank() != 2) return world;
        return std::make_unique<LosingCommunicator>(std::move(world), page);
      },
      -1);
  EXPECT_GT(LargestDifference(lost, one), 1e-4);
}

TEST_F(LostPageTest, OnePageLostInTheCacheShows) {
  const GenerateResult whole = Generate({1, 4, 1}, nullptr, -1);
  const GenerateResult lost = Generate({1, 4, 1}, nullptr, 5);
  EXPECT_EQ(LargestDifference(lost, whole), 0);  // the prompt's own come before
  ASSERT_EQ(lost.logprobs.size(), 8u);
  double worst = 0;
  for (size_t i = 0; i < 8; ++i) {
    worst = std::max(worst, std::abs(lost.logprobs[i] - whole.logprobs[i]));
  }
  EXPECT_EQ(lost.logprobs[0], whole.logprobs[0]);  // drawn from the prefill's logits
  EXPECT_GT(worst, 1e-4);
}

}  // namespace
}  // namespace toroid
