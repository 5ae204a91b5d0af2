// What the contract shows of a job on several pods is taken as it is written, and means what it
// says, in each of the three forms that a spec may have.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "launcher/job_spec.h"
#include "rpc/client.h"

namespace toroid {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

// The example of the contract, line by line.
constexpr char kExample[] =
    R"(name: "book"   seed: 1   device: AUTO   compute: FP32   output { dir: "runs/{name}" }
mesh { pods: 2  data: 1  ring: 2  tensor: 1 }   # pod_mesh { pod: "b" ring: 1 tensor: 2 } where one differs
model { path: "models/smollm2" }              # or shape { preset: "palm-8b" } for training from nothing
train {                                       # oneof train | generate | score | pool
  data { path: "text/*.txt"  sequence_length: 8192  batch_tokens: 65536 }
  optimizer { adamw { lr: 3e-4 } }  steps: 1000
  exchange { streaming { every: 50  fragments: 4  codec: INT8 } }
  checkpoint { every: 100  keep: 3 }
}
max_restarts: 3   active_deadline: "2h"   priority: 0
)";

absl::StatusOr<JobSpec> Read(const std::string& name, const std::string& text,
                             const std::vector<std::string>& settings = {}) {
  const std::string path = absl::StrCat(testing::TempDir(), "/", name);
  std::ofstream(path) << text;
  return ReadJobSpec(path, settings);
}

const TrainingPlan& PlanOf(const JobSpec& spec) { return std::get<TrainTask>(spec.task).plan; }
const ExchangeSpec& ExchangeOf(const JobSpec& spec) { return PlanOf(spec).options.pods.exchange; }

TEST(Interface, TheExampleOfAJobMeansWhatItSays) {
  const auto spec = Read("example.textproto", kExample);
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->name, "book");
  EXPECT_EQ(spec->device, Device::kAuto);
  EXPECT_EQ(spec->output_dir, "runs/{name}");
  EXPECT_EQ(spec->max_restarts, 3);
  EXPECT_EQ(spec->active_deadline, absl::Hours(2));
  EXPECT_EQ(spec->placement.load.seed, 1u);
  EXPECT_EQ(spec->placement.load.model, "models/smollm2");
  EXPECT_EQ(*ResolveMesh(spec->placement.mesh, 2), (MeshShape{1, 2, 1}));
  const TrainingPlan& plan = PlanOf(*spec);
  EXPECT_THAT(plan.data.paths, ElementsAre("text/*.txt"));
  EXPECT_EQ(plan.data.sequence_length, 8192);
  EXPECT_EQ(plan.data.batch_tokens.Tokens(0), 65536);
  EXPECT_EQ(plan.options.optimizer.rate.peak, 3e-4);
  EXPECT_EQ(plan.steps, 1000);
  EXPECT_EQ(plan.checkpoint_every, 100);
  EXPECT_EQ(plan.keep, 3);
  EXPECT_EQ(plan.options.pods.count, 2);
  EXPECT_EQ(ToString(ExchangeOf(*spec)),
            "streaming every 50, outer rate 0.4, momentum 0.9, fragments 4, tau 0, alpha 0.5, "
            "codec int8");
}

TEST(Interface, WhatTheCommentsOfTheExampleOffer) {
  const std::string other = absl::StrReplaceAll(
      kExample,
      {{"# pod_mesh { pod: \"b\" ring: 1 tensor: 2 } where one differs",
        "pod_mesh { pod: \"b\" ring: 1 tensor: 2 }"},
       {"model { path: \"models/smollm2\" }", "model { shape { preset: \"palm-8b\" } }"}});
  const auto spec = Read("other.textproto", other);
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->placement.load.model, "preset:palm-8b");
  ASSERT_EQ(spec->placement.pod_meshes.count("b"), 1u);
  EXPECT_EQ(*ResolveMesh(spec->placement.pod_meshes.at("b"), 2), (MeshShape{1, 1, 2}));
}

TEST(Interface, TheSameAsYamlAndAsJson) {
  const auto text = Read("same.textproto", kExample);
  ASSERT_TRUE(text.ok()) << text.status();
  const auto yaml = Read("same.yaml", R"(name: book
seed: 1
device: AUTO
compute: FP32
output: {dir: 'runs/{name}'}
mesh: {pods: 2, data: 1, ring: 2, tensor: 1}
model: {path: models/smollm2}
train:
  data: {path: 'text/*.txt', sequence_length: 8192, batch_tokens: 65536}
  optimizer: {adamw: {lr: 3e-4}}
  steps: 1000
  exchange: {streaming: {every: 50, fragments: 4, codec: INT8}}
  checkpoint: {every: 100, keep: 3}
max_restarts: 3
active_deadline: 2h
priority: 0
)");
  ASSERT_TRUE(yaml.ok()) << yaml.status();
  EXPECT_EQ(JobSpecText(*yaml), JobSpecText(*text));
  const auto json = Read("same.json", R"({"name": "book", "seed": 1, "device": "AUTO",
    "compute": "FP32", "output": {"dir": "runs/{name}"},
    "mesh": {"pods": 2, "data": 1, "ring": 2, "tensor": 1}, "model": {"path": "models/smollm2"},
    "train": {"data": {"path": ["text/*.txt"], "sequence_length": 8192, "batch_tokens": 65536},
      "optimizer": {"adamw": {"lr": 3e-4}}, "steps": 1000,
      "exchange": {"streaming": {"every": 50, "fragments": 4, "codec": "INT8"}},
      "checkpoint": {"every": 100, "keep": 3}},
    "max_restarts": 3, "active_deadline": "2h", "priority": 0})");
  ASSERT_TRUE(json.ok()) << json.status();
  EXPECT_EQ(JobSpecText(*json), JobSpecText(*text));
}

// Each mode, codec and policy by its name; --set as the contract writes it.
TEST(Interface, ModesCodecsAndPoliciesByName) {
  for (const char* mode : {"exact", "delayed", "diloco", "streaming"}) {
    for (const char* codec : {"FP64", "FP32", "BF16", "INT8", "E3M0"}) {
      const std::string exchange = absl::StrCat(mode, " { codec: ", codec, " } policy: CONTINUE");
      const auto spec =
          Read("mode.textproto",
               absl::StrReplaceAll(
                   kExample, {{"streaming { every: 50  fragments: 4  codec: INT8 }", exchange}}));
      ASSERT_TRUE(spec.ok()) << spec.status();
      EXPECT_STREQ(ExchangeModeName(ExchangeOf(*spec).mode), mode);
      EXPECT_EQ(absl::AsciiStrToUpper(CodecName(ExchangeOf(*spec).codec)), codec);
      EXPECT_EQ(PlanOf(*spec).options.pods.policy, PodsOptions::Policy::kContinue);
    }
  }
  const auto set = Read("set.textproto", kExample, {"train.steps=200", "mesh.pods=3"});
  ASSERT_TRUE(set.ok()) << set.status();
  EXPECT_EQ(PlanOf(*set).steps, 200);
  EXPECT_EQ(PlanOf(*set).options.pods.count, 3);
  // Negative control: what the contract does not have is refused, with what it might have been.
  EXPECT_THAT(std::string(Read("wrong.textproto",
                               absl::StrReplaceAll(kExample, {{"codec: INT8", "codek: INT8"}}))
                              .status()
                              .message()),
              HasSubstr("did you mean codec?"));
}

}  // namespace
}  // namespace toroid
