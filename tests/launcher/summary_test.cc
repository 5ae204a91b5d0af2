#include "launcher/summary.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "launcher/exit_code.h"

namespace toroid {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

// Rank r of mesh data x ring x tensor, as mesh.h counts.
TEST(Summary, WorldDetailsNameEveryRanksPlace) {
  LoadRequest load;
  load.compute = Compute::kF64;
  const MeshShape mesh = {2, 1, 2};
  EXPECT_THAT(WorldDetails(load, mesh, {"a", "a", "b", "c"}),
              ElementsAre("world: mesh data=2,ring=1,tensor=2; layout striped:16; compute f64; "
                          "context the model's own; pages of 16 tokens",
                          "rank 0: data 0, ring 0, tensor 0, host a",
                          "rank 1: data 0, ring 0, tensor 1, host a",
                          "rank 2: data 1, ring 0, tensor 0, host b",
                          "rank 3: data 1, ring 0, tensor 1, host c"));
  load.context = 512;
  const std::vector<std::string> unknown = WorldDetails(load, {1, 2, 1}, {});
  EXPECT_THAT(unknown.at(0), HasSubstr("context 512 tokens"));
  EXPECT_EQ(unknown.at(2), "rank 1: data 0, ring 1, tensor 0");
}

TEST(Summary, TheProgressOfAJobOnSeveralPodsShowsEachPodsLoss) {
  JobStatus job;
  job.id = "j";
  job.progress = TaskProgress{"train", 3, 7, 2.5, 100};
  EXPECT_EQ(JobProgressLine(job), "j  train 3/7  loss 2.5000  100.0 tokens/s");
  job.pods.resize(3);
  job.pods[0].pod = "a";
  job.pods[0].progress = job.progress;
  job.pods[0].progress->exchange = ExchangeProgress{2, 5, 1000000, 0.25};
  job.pods[1].pod = "b";
  job.pods[1].progress = TaskProgress{"train", 2, 7, 2.25, 50};
  job.pods[1].progress->exchange = ExchangeProgress{2, 5, 500000, 0.5};
  job.pods[1].progress->exchange->reconnects = 4;
  job.pods[2].pod = "c";  // not heard of yet
  job.progress = job.pods[0].progress;
  EXPECT_EQ(JobProgressLine(job),
            "j  train 3/7  loss a 2.5000, b 2.2500  150.0 tokens/s  sent 1.5 MB  waited 50%  "
            "staleness 5  4 streams cut");
}

TEST(Summary, AVerificationThatIsOutEndsWithOne) {
  VerifyResult result;
  result.worst = {"gradient of q", 3, 2e-3, 1e-5};
  const absl::Status verdict = Verdict(result);
  EXPECT_EQ(ExitCodeOf(verdict), 1);
  EXPECT_THAT(std::string(verdict.message()),
              HasSubstr("gradient of q of layer 3, error 2.000e-03, bound 1.0e-05"));
  result.pass = true;
  EXPECT_TRUE(Verdict(result).ok());  // control
}

TEST(Summary, RunDetailsHaveALineForEachPhaseThatWas) {
  RunReport report;
  report.mesh = {1, 2, 1};
  EXPECT_TRUE(RunDetails(report).empty());
  report.timing = {1.5, 2, 4, 100, 12.5};
  report.memory = {{10, 20}, {30, 40}, {1, 1}, {2, 2}, {3, 3}, {4, 4}, {90, 90}};
  report.comm = {{"ring", {100, 200}, {60, 110}, {4, 4}}, {"world", {9, 9}, {9, 9}, {1, 1}}};
  EXPECT_THAT(
      RunDetails(report),
      ElementsAre("load: 1.500s",
                  "prefill: 2.000s, 100.0 tokens/s; sent per rank: ring 60 B / 110 B, world 9 B",
                  "decode: 4.000s, 12.5 tokens/s; sent per rank: ring 40 B / 90 B, world 0 B",
                  "memory per rank: 30 B / 40 B foreseen, 10 B / 20 B used; weights 1 B, "
                  "cache 2 B, scratch 3 B; resident 90 B"));
  report.timing.load_s = report.timing.decode_s = 0;  // loaded before, nothing decoded
  EXPECT_EQ(RunDetails(report).size(), 2u);
}

}  // namespace
}  // namespace toroid
