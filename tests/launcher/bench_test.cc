#include "launcher/bench.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>

#include "kernels/dequantize.h"
#include "launcher/bench_attention_case.h"
#include "tests/support/run_on_ranks.h"

namespace toroid {
namespace {

TEST(BenchRow, RateIsWorkOverTimeInTheUnit) {
  const BenchRow flops = FlopsRow("a", 4e9, 2.0, 8.0);
  EXPECT_EQ(flops.unit, "GF/s");
  EXPECT_DOUBLE_EQ(flops.rate, 2.0);
  EXPECT_DOUBLE_EQ(PercentOfBound(flops), 25.0);
  const BenchRow bytes = BytesRow("b", 3e6, 1e-3, 12.0);
  EXPECT_EQ(bytes.unit, "GB/s");
  EXPECT_DOUBLE_EQ(bytes.rate, 3.0);
  EXPECT_DOUBLE_EQ(PercentOfBound(bytes), 25.0);
  const BenchRow tokens = TokensRow("c", 512, 0.5, 2048);
  EXPECT_EQ(tokens.unit, "tokens/s");
  EXPECT_DOUBLE_EQ(tokens.rate, 1024.0);
  EXPECT_DOUBLE_EQ(PercentOfBound(tokens), 50.0);
}

TEST(BenchRow, WithoutABoundOrATimeThereIsNoNumber) {
  EXPECT_TRUE(std::isnan(PercentOfBound(BytesRow("a", 1e9, 1.0, 0))));
  EXPECT_TRUE(std::isnan(BytesRow("a", 1e9, 0.0, 5).rate));
  const auto cells = BenchCells({BytesRow("a", 1e9, 0.0, 0)});
  EXPECT_THAT(cells.at(1), testing::ElementsAre("a", "1 GB", "0 us", "-", "GB/s", "-", "-"));
}

TEST(BenchRow, CellsAreForPeople) {
  const auto cells = BenchCells(
      {FlopsRow("matmul", 17179869184.0, 0.125, 200), TokensRow("prefill", 4000, 12.5, 1000)});
  EXPECT_THAT(cells.at(0),
              testing::ElementsAre("case", "size", "time", "rate", "unit", "bound", "% of bound"));
  EXPECT_THAT(cells.at(1), testing::ElementsAre("matmul", "17.18 GFLOP", "125 ms", "137.4", "GF/s",
                                                "200", "68.7"));
  EXPECT_THAT(cells.at(2), testing::ElementsAre("prefill", "4000 tokens", "12.5 s", "320",
                                                "tokens/s", "1000", "32"));
}

TEST(BenchRow, AnErrorIsShownWhereOneIsTold) {
  BenchRow told = FlopsRow("a", 1e9, 1, 2), untold = FlopsRow("b", 1e9, 1, 2);
  told.error = 0.00123;
  const auto cells = BenchCells({told, untold});
  EXPECT_EQ(cells.at(0).back(), "error");
  EXPECT_EQ(cells.at(1).back(), "0.0012");
  EXPECT_EQ(cells.at(2).back(), "-");
  EXPECT_NE(BenchCells({untold}).at(0).back(), "error");
  BenchRun run(1, 1, "");
  run.Add(told), run.Add(untold);
  const auto json = nlohmann::json::parse(BenchJson("attention", 1, run));
  EXPECT_DOUBLE_EQ(json["rows"][0].at("error").get<double>(), 0.00123);
  EXPECT_FALSE(json["rows"][1].contains("error"));
}

TEST(BenchAttention, ComparisonsSeeWhatIsOff) {
  Comparison same, off, nan;
  for (int i = 1; i <= 4; ++i) {
    same.Add(i, i), off.Add(i == 4 ? 4.5 : i, i);
    nan.Add(i == 2 ? std::numeric_limits<double>::quiet_NaN() : i, i);
  }
  EXPECT_EQ(same.error(), 0);
  EXPECT_TRUE(same.Check("a", 0).ok() && same.CheckError("a", 0).ok());
  EXPECT_DOUBLE_EQ(off.error(), std::sqrt(0.25 / 30));
  EXPECT_TRUE(off.Check("a", 0.11).ok() && off.CheckError("a", 0.1).ok());
  EXPECT_FALSE(off.Check("a", 0.09).ok());
  EXPECT_FALSE(off.CheckError("a", 0.09).ok());
  EXPECT_FALSE(nan.Check("a", 1e9).ok());
  EXPECT_FALSE(nan.CheckError("a", 1e9).ok());
}

// Negative control of what attention is verified by: a wrong element of each result is seen.
TEST(BenchAttention, AWrongElementIsSeen) {
  ThreadPool pool(1);
  AttentionInputs inputs({4, 2, 64}, DType::kF32, 64, 64, 1);
  inputs.Attend(pool);
  EXPECT_TRUE(inputs.Compare().Check("a", 1e-5).ok());
  AttentionGradients gradients(inputs);
  gradients.Backward(pool);
  EXPECT_TRUE(gradients.Compare().Check("a", 1e-4).ok());
  for (std::vector<float>* x : {&gradients.dq(), &gradients.dk(), &gradients.dv()}) {
    const float was = x->front();
    x->front() += 0.01f;
    EXPECT_FALSE(gradients.Compare().Check("a", 1e-4).ok());
    x->front() = was;
  }
  for (std::vector<float>* x : {&inputs.o(), &inputs.lse()}) {
    const float was = x->front();
    x->front() += 0.01f;
    EXPECT_FALSE(inputs.Compare().Check("a", 1e-5).ok());
    x->front() = was;
  }
}

TEST(BenchMedian, OfOddAndEvenCounts) {
  EXPECT_EQ(Median({5, 1, 3}), 3);
  EXPECT_EQ(Median({4, 1, 3, 2}), 2.5);
  EXPECT_EQ(Median({7}), 7);
}

TEST(BenchJson, OneRowPerCaseWithNullForWhatIsNotKnown) {
  BenchRun run(1, 3, "");
  run.Add(FlopsRow("matmul f32 2x2x2", 16, 1e-9, 32));
  run.Add(BytesRow("exchange", 100, 1e-9, 0));
  const auto json = nlohmann::json::parse(BenchJson("ops", 2, run));
  EXPECT_EQ(json.at("schema"), 1);
  EXPECT_EQ(json.at("workload"), "ops");
  EXPECT_EQ(json.at("ranks"), 2);
  EXPECT_EQ(json.at("threads"), 1);
  ASSERT_EQ(json.at("rows").size(), 2u);
  const auto& row = json["rows"][0];
  EXPECT_EQ(row.at("case"), "matmul f32 2x2x2");
  EXPECT_EQ(row.at("size"), 16);
  EXPECT_DOUBLE_EQ(row.at("seconds").get<double>(), 1e-9);
  EXPECT_DOUBLE_EQ(row.at("rate").get<double>(), 16);
  EXPECT_EQ(row.at("unit"), "GF/s");
  EXPECT_DOUBLE_EQ(row.at("bound").get<double>(), 32);
  EXPECT_DOUBLE_EQ(row.at("percent").get<double>(), 50);
  EXPECT_TRUE(json["rows"][1].at("bound").is_null());
  EXPECT_TRUE(json["rows"][1].at("percent").is_null());
}

TEST(BenchCase, IsVerifiedBeforeItIsTimed) {
  BenchRun run(1, 2, "");
  int calls = 0, calls_when_verified = -1;
  const auto row = [](double seconds) { return BytesRow("a", 1, seconds, 0); };
  ASSERT_TRUE(run.Case(
                     "a", [&] { ++calls; },
                     [&] {
                       calls_when_verified = calls;
                       return absl::OkStatus();
                     },
                     row)
                  .ok());
  EXPECT_EQ(calls_when_verified, 1);
  EXPECT_GT(calls, 3);  // warm-up and two samples
  EXPECT_EQ(run.rows().size(), 1u);

  calls = 0;  // negative control: a wrong result is not timed
  const absl::Status status = run.Case(
      "b", [&] { ++calls; }, [] { return ExpectClose("b", 1.5, 1.0, 1e-5); }, row);
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr("wrong result: b"));
  EXPECT_EQ(calls, 1);
  EXPECT_EQ(run.rows().size(), 1u);
}

TEST(BenchCase, OnlyNamesThatAreWanted) {
  BenchRun run(1, 1, "matvec");
  EXPECT_TRUE(run.Wants("matvec q4_1 1x8x8"));
  EXPECT_FALSE(run.Wants("matmul f32 8x8x8"));
}

TEST(BenchCase, NotANumberIsNotClose) {
  EXPECT_FALSE(ExpectClose("a", std::numeric_limits<double>::quiet_NaN(), 1.0, 1.0).ok());
  EXPECT_TRUE(std::isnan(Poisoned(3).at(2)));
}

TEST(BenchInputs, StoredWeightsAreOrdinaryNumbers) {
  for (const DType type : {DType::kF32, DType::kBF16, DType::kQ8_0, DType::kQ4_0, DType::kQ4_1}) {
    const auto bytes = RandomStored(type, 4096, 1);
    std::vector<double> row(4096);
    DecodeRow(type, bytes.data(), 0, 4096, row.data());
    for (const double x : row) ASSERT_LT(std::abs(x), 100) << Info(type).name;
    EXPECT_GT(std::set<double>(row.begin(), row.end()).size(), 50u) << Info(type).name;
  }
}

TEST(BenchWorkloads, CollectivesOfThreeThreads) {
  RunOnRanks(3, [](std::unique_ptr<Communicator> world) {
    BenchRun run(1, 1, "1008 B");  // the largest multiple of 12 bytes in 1 KiB is 1,020
    EXPECT_TRUE(BenchCollectives(run, *world).ok());
    EXPECT_TRUE(run.rows().empty());
    BenchRun small(1, 1, " 1020 B");
    EXPECT_TRUE(BenchCollectives(small, *world).ok());
    EXPECT_EQ(small.rows().size(), world->rank() == 0 ? 6u : 0u);
    for (const BenchRow& row : small.rows()) EXPECT_GT(row.rate, 0) << row.name;
  });
}

TEST(BenchWorkloads, RingOfTwoThreads) {
  RunOnRanks(2, [](std::unique_ptr<Communicator> world) {
    const bool first = world->rank() == 0;
    BenchRun run(1, 1, "");
    LoadRequest load;
    load.threads = 1;
    const absl::Status status = BenchRing(run, std::move(world), load, 128);
    EXPECT_TRUE(status.ok()) << status;
    std::vector<std::string> names;
    for (const BenchRow& row : run.rows()) names.push_back(row.name);
    if (!first) {
      EXPECT_TRUE(names.empty());
      return;
    }
    const std::string ring = "attention s128 striped:16, ring=2";
    EXPECT_THAT(
        names, testing::ElementsAre("attention s128 striped:16, one rank, 2 threads",
                                    ring + " (bound: one rank)", ring + ", copies skipped",
                                    ring + ", round 0 compute", ring + ", round 0 exposed exchange",
                                    ring + ", round 1 compute", ring + ", exchange alone"));
  });
}

TEST(BenchWorkloads, TrainingOfTwoThreads) {
  RunOnRanks(2, [](std::unique_ptr<Communicator> world) {
    const bool first = world->rank() == 0;
    BenchRun run(1, 1, "");
    LoadRequest load;
    load.model = "preset:gpt3-tiny";  // 2,048 learned positions
    load.mesh = {.data = 2};
    load.threads = 1;
    const absl::Status status = BenchTrain(run, std::move(world), load, {40, 33}, Remat::kBlock);
    EXPECT_TRUE(status.ok()) << status;
    std::vector<std::string> names;
    for (const BenchRow& row : run.rows()) names.push_back(row.name);
    if (!first) {
      EXPECT_TRUE(names.empty());
      return;
    }
    EXPECT_THAT(names, testing::ElementsAre(
                           "train 40 remat=block, one rank, 2 threads",
                           "train 40 remat=block data=2,ring=1,tensor=1 (bound: one rank)",
                           "train 33 remat=block, one rank, 2 threads",
                           "train 33 remat=block data=2,ring=1,tensor=1 (bound: one rank)"));
    EXPECT_EQ(run.rows()[0].size, 80);  // tokens of both data ranks
  });
}

TEST(BenchWorkloads, TrainingBeyondTheLearnedPositionsOfAPreset) {
  BenchRun run(1, 1, "");
  LoadRequest load;
  load.model = "preset:gpt3-tiny";
  load.threads = 1;
  const absl::Status status =
      BenchTrain(run, std::make_unique<SelfCommunicator>(), load, {2049}, Remat::kBlock);
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_EQ(run.rows().size(), 1u);
}

}  // namespace
}  // namespace toroid
