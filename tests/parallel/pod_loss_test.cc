// What late and coarse exchange costs in loss, and saves in bytes: two pods beside the same two
// that exchange each step's gradients.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <mutex>

#include "absl/strings/str_cat.h"
#include "core/io/model_source.h"
#include "parallel/exchange_plan.h"
#include "tests/support/run_on_pods.h"
#include "tests/support/training_curves.h"

namespace toroid {
namespace {

using Mode = ExchangeSpec::Mode;

constexpr char kModel[] = "random:tiny-gqa";
const std::vector<MeshShape> kTwins = {{1, 1, 1}, {1, 1, 1}};

ExchangeSpec Streaming(int64_t every, Codec codec) {
  ExchangeSpec spec;
  spec.mode = Mode::kStreaming;
  spec.codec = codec;
  spec.every = every;
  spec.fragments = 2;
  spec.tau = 2;
  spec.alpha = 0.5;
  spec.outer_rate = 0.4;
  return spec;
}

ExchangeSpec Exact(Codec codec) {
  ExchangeSpec spec;
  spec.codec = codec;
  return spec;
}

struct LossRun {
  double loss = 0;   // mean of both pods, of the last 50 steps: no text comes twice
  int64_t sent = 0;  // payload bytes of pod 1
};

LossRun Train(const ExchangeSpec& spec, uint64_t seed, int64_t steps) {
  constexpr int64_t kLast = 50;
  LossRun run;
  std::mutex mutex;
  auto model = OpenModel(kModel, seed);
  EXPECT_TRUE(model.ok()) << model.status();
  const auto source = std::make_shared<const ModelSource>(*std::move(model));
  RunOnPods(
      kTwins,
      [&](int64_t pod, std::unique_ptr<Communicator> world, PodLink& link) {
        TrainOptions options = Options({1, 1, 1}, Compute::kF32);
        options.optimizer.rate.warmup = 20;
        options.pods = {2, spec};
        auto trainer =
            Trainer::Create(std::move(world), source, options, nullptr, Rounds, PodAccess{&link});
        ASSERT_TRUE(trainer.ok()) << trainer.status();
        double loss = 0;
        for (int64_t step = 0; step < steps; ++step) {
          const TrainBatch batch = BatchOf(int64_t(seed) * 1000000 + step, source->config.vocab,
                                           {{33}, {33}, {33}, {33}});
          const auto result = (*trainer)->Step(step, batch);
          ASSERT_TRUE(result.ok()) << result.status();
          if (step >= steps - kLast) loss += result->loss / kLast;
        }
        trainer->reset();  // what it posted is with the link
        const std::lock_guard<std::mutex> lock(mutex);
        run.loss += loss / 2;
        if (pod == 1) run.sent = link.counters().payload_sent;
      },
      std::chrono::seconds(900));
  return run;
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// Rounds of 20 steps, 1,000 steps, three seeds (spec A10).
TEST(PodLossSlow, StreamingLearnsAsMuch) {
  const auto median = [](const char* name, const ExchangeSpec& spec) {
    std::vector<double> losses;
    for (const uint64_t seed : {1, 2, 3}) losses.push_back(Train(spec, seed, 1000).loss);
    std::printf("%-14s %.4f %.4f %.4f\n", name, losses[0], losses[1], losses[2]);
    return Median(losses);
  };
  const double synchronous = median("synchronous", Exact(Codec::kFp32));
  const double int8 = median("streaming int8", Streaming(20, Codec::kInt8));
  const double e3m0 = median("streaming e3m0", Streaming(20, Codec::kE3m0));
  const double fp32 = median("streaming fp32", Streaming(20, Codec::kFp32));
  EXPECT_LE(int8, synchronous + 0.05);
  EXPECT_LE(e3m0, int8 + 0.02);
  EXPECT_LE(e3m0, fp32 + 0.02);
  // Control: pods that never apply what they hear of each other learn less than those that do.
  ExchangeSpec apart = Streaming(20, Codec::kInt8);
  apart.alpha = 1;
  EXPECT_GT(median("apart", apart), std::max(int8, e3m0) + 0.02);
}

// Rounds of 100 steps against bfloat16 gradients each step, on the wire and by the formula.
TEST(PodBytesSlow, ARoundOfAHundredStepsSendsLittle) {
  const auto sent = [](const ExchangeSpec& spec, int64_t steps) {
    return Train(spec, 1, 2 * steps).sent - Train(spec, 1, steps).sent;  // no greeting
  };
  const auto planned = [](const ExchangeSpec& spec) {
    const ModelConfig config = OpenModel(kModel, 1)->config;
    double bytes = 0;
    for (const auto& turn : PlanTurns(config, {kTwins, config.layers, false, spec}, 1)) {
      bytes += double(turn[0].sent);
    }
    return bytes / double(StepsOfRound(spec));
  };
  const ExchangeSpec gradients = Exact(Codec::kBf16);
  const double each_step = planned(gradients);
  EXPECT_EQ(sent(gradients, 2), 2 * each_step);
  for (const auto& [codec, times] : {std::pair(Codec::kInt8, 190.0), {Codec::kE3m0, 370.0}}) {
    const ExchangeSpec spec = Streaming(100, codec);
    EXPECT_DOUBLE_EQ(double(sent(spec, 100)), 100 * planned(spec));
    std::printf("%s: %.1f times fewer bytes\n", CodecName(codec), each_step / planned(spec));
    EXPECT_GE(each_step / planned(spec), times);
  }
}

}  // namespace
}  // namespace toroid
