// Training jobs as text and as messages, and the directory that a run leaves.
#include "rpc/training_job.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "rpc/client.h"
#include "rpc/convert.h"

namespace toroid {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

constexpr char kShort[] =
    "seed: 5 output { dir: 'runs/{name}' } model { shape { preset: 'tiny-gqa' } } train { steps: "
    "40 "
    "data { path: 'a.txt' sequence_length: 128 batch_tokens: 512 } "
    "optimizer { adamw { lr: 0.01 } } }";

TrainTask TaskOf(const JobSpec& spec) { return std::get<TrainTask>(spec.task); }

std::string Message(const std::string& text, const std::vector<std::string>& settings) {
  return std::string(ParseJobSpec(text, settings).status().message());
}

TEST(TrainText, WhatIsNotSaidHasADefault) {
  const auto spec = ParseJobSpec(kShort, {});
  ASSERT_TRUE(spec.ok()) << spec.status();
  const TrainTask task = TaskOf(*spec);
  EXPECT_EQ(spec->placement.load.model, "preset:tiny-gqa");
  EXPECT_EQ(spec->placement.load.layout.kind, LayoutRule::Kind::kZigzag);
  EXPECT_EQ(*ResolveMesh(spec->placement.mesh, 4), (MeshShape{4, 1, 1}));
  EXPECT_EQ(spec->placement.load.seed, 5u);
  EXPECT_EQ(task.plan.seed, 5u);
  EXPECT_EQ(task.plan.options.dropout_seed, 5u);
  EXPECT_EQ(task.plan.keep, 3);
  EXPECT_EQ(task.plan.options.max_norm, 1);
  EXPECT_EQ(task.plan.options.remat, Remat::kAttentionOutput);
  EXPECT_TRUE(task.plan.data.shuffle);
  EXPECT_FALSE(task.plan.spike.has_value());
  EXPECT_EQ(task.plan.options.optimizer.adamw.beta2, 0.95);
  EXPECT_EQ(OutputDirectory(*spec, "x"), "runs/x");
}

TEST(TrainText, EveryFieldSurvivesTheRoundTrip) {
  const auto spec = ParseJobSpec(
      R"(name: "n" output { dir: "r" } mesh { data: 2 ring: -1 } model { path: "m" layout: "striped:4" tokenizer: "t" }
         compute: BF16 train { seed: 9 steps: 70 peak_flops: 1e11
         data { path: "a*.txt" path: "b" format: JSONL field: "body" separator: "<s>" cache: "c"
                sequence_length: 64 batch_tokens: 128 ramp { first_step: 5 batch_tokens: 256 }
                shuffle: false epochs: 2 join_documents: true skip: "64-128" }
         optimizer { adafactor { lr: 0.5 beta1: 0.8 epsilon: 1e-20 weight_decay: 0.25 } }
         schedule { kind: WSD warmup: 3 final_lr: 0.1 decay: 10 }
         checkpoint { every: 4 keep: 7 }
         spike { window: 30 least_losses: 10 deviations: 5 least_rise: 0.25 rewind_steps: 6
                 skip_steps: 8 max_rewinds: 2 }
         clip: 0 zeta: 0.125 dropout: 0.5 remat: NONE packs_per_rank: 3 token_block: 99
         prefetch: false skip_limit: 4 noise_scale_every: 6 memory_limit: 77 param_hash_every: 5
         export_model: true deterministic: true } verify { tokens: 9 layers: 1 })",
      {});
  ASSERT_TRUE(spec.ok()) << spec.status();
  const v1::JobSpec once = ToProto(*spec);
  const auto again = FromProto(once);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(ToProto(*again).SerializeAsString(), once.SerializeAsString());
  const TrainingPlan plan = TaskOf(*again).plan;
  EXPECT_THAT(plan.data.paths, ElementsAre("a*.txt", "b"));
  EXPECT_EQ(plan.data.batch_tokens.Tokens(5), 256);
  EXPECT_EQ(plan.data.skipped.ToString(), "64-128");
  EXPECT_EQ(plan.options.optimizer.decay.kind, WeightDecay::Kind::kTimesRate);
  EXPECT_EQ(plan.options.optimizer.rate.steps, 70);
  EXPECT_EQ(plan.spike->max_rewinds, 2);
  EXPECT_EQ(plan.options.max_norm, 0);
  EXPECT_FALSE(plan.options.prefetch);
  EXPECT_TRUE(plan.options.deterministic);
  EXPECT_EQ(again->verify->tokens, 9);
  // The program for the ranks loses nothing either.
  JobSpec here = *again;
  std::get<TrainTask>(here.task).export_model = false;  // it would look at the model
  const auto job = TrainingJob::Open(here, testing::TempDir() + "/trip", 3);
  ASSERT_TRUE(job.ok());
  const auto parsed = ParseProgram(SerialiseProgram((*job)->program()));
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  JobSpec same = *again;
  std::get<TrainTask>(same.task).plan = parsed->train;
  EXPECT_EQ(ToProto(same).SerializeAsString(), once.SerializeAsString());
  EXPECT_EQ(parsed->train.epoch, 3);
  EXPECT_EQ(parsed->train.spike->window, 30);
  EXPECT_EQ(parsed->train.memory_limit, 77);
  EXPECT_EQ(parsed->train.param_hash_every, 5);
}

constexpr char kPods[] =
    R"(output { dir: "r" } mesh { pods: 2 data: 1 } model { path: "m" }
       train { steps: 4 data { path: "a" sequence_length: 8 batch_tokens: 16 }
               optimizer { adamw { lr: 1e-3 } } exchange { exact {} } })";

TEST(TrainText, TheExchangeOfPodsSurvivesTheRoundTrip) {
  const auto exchange = [](const std::vector<std::string>& set) {
    const auto spec = ParseJobSpec(kPods, set);
    EXPECT_TRUE(spec.ok()) << spec.status();
    const auto again = FromProto(ToProto(*spec));
    EXPECT_TRUE(again.ok()) << again.status();
    EXPECT_EQ(TaskOf(*again).plan.options.pods.count, 2);
    EXPECT_EQ(again->placement.mesh.data, 1);
    EXPECT_EQ(TaskOf(*again).plan.options.pods.exchange, TaskOf(*spec).plan.options.pods.exchange);
    return TaskOf(*again).plan.options.pods.exchange;
  };
  EXPECT_EQ(exchange({}), ExchangeSpec());
  ExchangeSpec delayed;
  delayed.mode = ExchangeSpec::Mode::kDelayed;
  delayed.codec = Codec::kE3m0;
  delayed.stochastic = delayed.error_feedback = true;
  EXPECT_EQ(exchange({"train.exchange.delayed={}", "train.exchange.codec=E3M0",
                      "train.exchange.stochastic=true", "train.exchange.error_feedback=true"}),
            delayed);
  const ExchangeSpec streaming =
      exchange({"train.exchange.streaming.every=20", "train.exchange.streaming.fragments=4",
                "train.exchange.streaming.tau=2", "train.exchange.codec=INT8"});
  EXPECT_EQ(ToString(streaming),
            "streaming every 20, outer rate 0.4, momentum 0.9, fragments 4, tau 2, alpha 0.5, "
            "codec int8");
}

// A mode may name the codec in the exchange's stead: the rest of the program knows of one.
TEST(TrainText, TheCodecMayStandInTheMode) {
  const std::string pods = kPods;
  const auto parse = [&](const std::string& exchange, const std::vector<std::string>& set = {}) {
    return ParseJobSpec(absl::StrReplaceAll(pods, {{"exact {}", exchange}}), set);
  };
  const auto codec = [&](const std::string& exchange, const std::vector<std::string>& set = {}) {
    const auto spec = parse(exchange, set);
    EXPECT_TRUE(spec.ok()) << spec.status();
    if (!spec.ok()) return std::string();
    EXPECT_THAT(JobSpecText(*spec), HasSubstr("  exchange {\n"));
    EXPECT_EQ(JobSpecText(*ParseJobSpec(JobSpecText(*spec), {})), JobSpecText(*spec));
    return std::string(CodecName(TaskOf(*spec).plan.options.pods.exchange.codec));
  };
  EXPECT_EQ(codec("exact { codec: FP64 }"), "fp64");
  EXPECT_EQ(codec("delayed { codec: BF16 }"), "bf16");
  EXPECT_EQ(codec("diloco { every: 9 codec: E3M0 }"), "e3m0");
  EXPECT_EQ(codec("streaming { every: 50  fragments: 4  codec: INT8 }"), "int8");
  EXPECT_EQ(codec("streaming { every: 50  fragments: 4  codec: INT8 } codec: INT8"), "int8");
  EXPECT_EQ(codec("streaming { every: 50  fragments: 4 }"), "fp32");
  // Both, and not the same: which one was meant?
  const auto both =
      HasSubstr("train.exchange.codec: BF16, and streaming { codec: INT8 }: name one");
  EXPECT_THAT(std::string(parse("codec: BF16 streaming { codec: INT8 }").status().message()), both);
  EXPECT_THAT(std::string(parse("exact {}", {"train.exchange.streaming.codec=INT8",
                                             "train.exchange.codec=BF16"})
                              .status()
                              .message()),
              both);
  // A setting beats the text, wherever either stands, and stays when the mode changes.
  EXPECT_EQ(codec("streaming { codec: INT8 }", {"train.exchange.codec=E3M0"}), "e3m0");
  EXPECT_EQ(codec("streaming {} codec: INT8", {"train.exchange.streaming.codec=E3M0"}), "e3m0");
  EXPECT_EQ(codec("streaming { codec: INT8 }", {"train.exchange.streaming.codec=E3M0"}), "e3m0");
  EXPECT_EQ(codec("streaming { codec: INT8 }", {"train.exchange.diloco={}"}), "int8");
  // As a message that no text was.
  v1::JobSpec message = ToProto(*parse("streaming { codec: INT8 }"));
  EXPECT_EQ(message.train().exchange().codec(), v1::Exchange::INT8);
  message.mutable_train()->mutable_exchange()->mutable_streaming()->set_codec(v1::Exchange::FP32);
  EXPECT_THAT(std::string(FromProto(message).status().message()),
              HasSubstr("INT8, and streaming { codec: FP32 }"));
}

TEST(TrainText, AnExchangeThatCannotBeIsRefusedByItsField) {
  const auto refusal = [](const std::vector<std::string>& set) {
    const auto spec = ParseJobSpec(kPods, set);
    EXPECT_EQ(spec.status().code(), absl::StatusCode::kInvalidArgument) << spec.status();
    return std::string(spec.status().message());
  };
  EXPECT_THAT(refusal({"mesh.pods=1"}), HasSubstr("train.exchange"));
  EXPECT_THAT(refusal({"mesh.pods=-2"}), HasSubstr("mesh.pods"));
  EXPECT_THAT(refusal({"train.spike.window=30"}), HasSubstr("train.spike"));
  EXPECT_THAT(refusal({"train.exchange.outer_lr=1"}), HasSubstr("diloco and streaming"));
  EXPECT_THAT(refusal({"train.exchange.streaming.fragments=101"}), HasSubstr("fragments is 101"));
  EXPECT_THAT(refusal({"train.exchange.streaming.tau=100"}), HasSubstr("tau is 100"));
}

TEST(TrainText, ASettingReplacesAListAndTheNextAddsToIt) {
  const auto spec =
      ParseJobSpec(kShort, {"train.data.path=b", "train.data.path=c", "train.steps=7"});
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_THAT(TaskOf(*spec).plan.data.paths, ElementsAre("b", "c"));
  EXPECT_EQ(TaskOf(*spec).plan.steps, 7);
}

TEST(TrainText, WhatIsWrongIsNamed) {
  EXPECT_THAT(Message(kShort, {"train.step=7"}), HasSubstr("did you mean steps?"));
  EXPECT_THAT(Message(kShort, {"train.data.sequence_lenght=7"}),
              HasSubstr("did you mean sequence_length?"));
  EXPECT_THAT(Message(kShort, {"train.steps=0"}), HasSubstr("train.steps"));
  EXPECT_THAT(Message(kShort, {"train.data.batch_tokens=500"}),
              HasSubstr("train.data.batch_tokens"));
  EXPECT_THAT(Message(kShort, {"train.optimizer.adamw.lr=-1"}),
              HasSubstr("train.optimizer.adamw.lr"));
  EXPECT_THAT(Message(kShort, {"train.optimizer.adamw.beta2=1"}), HasSubstr("beta2"));
  EXPECT_THAT(Message(kShort, {"train.schedule.kind=COSINE", "train.schedule.warmup=40"}),
              HasSubstr("train.schedule"));
  EXPECT_THAT(Message(kShort, {"train.data.skip=9-3"}), HasSubstr("train.data.skip"));
  EXPECT_THAT(Message(kShort, {"train.spike.window=-1"}), HasSubstr("train.spike"));
  EXPECT_THAT(Message(kShort, {"model.path=m"}), HasSubstr("model.shape"));
  EXPECT_THAT(Message(kShort, {"train.memory_limit=-1"}), HasSubstr("train.memory_limit"));
  EXPECT_THAT(Message(kShort, {"verify.tokens=0"}), HasSubstr("tokens"));
  EXPECT_THAT(Message(kShort, {"verify.text.text=x"}), HasSubstr("verify.text"));
  EXPECT_THAT(Message("model { path: 'm' } score { text { text: 'T' } } verify {}", {}),
              HasSubstr("give train"));
  const std::string text = kShort;
  EXPECT_THAT(Message(absl::StrReplaceAll(text, {{"'a.txt'", "''"}}), {}),
              HasSubstr("train.data.path"));
  EXPECT_THAT(Message(absl::StrReplaceAll(text, {{"runs/{name}", ""}}), {}),
              HasSubstr("output.dir"));
  EXPECT_THAT(Message(absl::StrReplaceAll(text, {{"adamw { lr: 0.01 }", ""}}), {}),
              HasSubstr("train.optimizer"));
  EXPECT_TRUE(ParseJobSpec(kShort, {}).ok());  // negative control
}

TEST(TrainText, TheSchemaHasDefaultsOfBothOptimizers) {
  const std::string schema = JobSpecSchema();
  EXPECT_THAT(schema, HasSubstr("    sequence_length: int64\n"));  // has to be said
  EXPECT_THAT(schema, HasSubstr("beta2: double  # default 0.95\n"));
  EXPECT_THAT(schema, HasSubstr("epsilon: double  # default 1e-30\n"));
  EXPECT_THAT(schema, HasSubstr("rewind_steps: int64  # default 100\n"));
  EXPECT_THAT(schema, HasSubstr("keep: int64  # default 3\n"));
  EXPECT_THAT(schema, testing::Not(HasSubstr("UNSPECIFIED")));  // no name for users
  EXPECT_THAT(schema, HasSubstr("codec: FP64 | FP32 | BF16 | INT8 | E3M0  # default FP32\n"));
  EXPECT_THAT(schema, HasSubstr("policy: HALT | CONTINUE  # default HALT\n"));
  EXPECT_THAT(schema, HasSubstr("format: TEXT | JSONL | TOKENS  # default by the file's name\n"));
  // Where what is left out is no number, or another of a job that trains.
  EXPECT_THAT(schema, HasSubstr("weight_decay: double  # default lr^2\n"));
  EXPECT_THAT(schema, HasSubstr("weight_decay: double  # default 0\n"));  // of AdamW
  EXPECT_THAT(schema,
              HasSubstr("layout: string  # default striped:16; of a job that trains zigzag"));
  EXPECT_THAT(schema,
              HasSubstr("data: int32  # default 0; of a job that trains and says no mesh -1"));
  const auto text = [](const std::vector<std::string>& settings) {
    return JobSpecText(*ParseJobSpec(kShort, settings));
  };
  EXPECT_THAT(text({}), HasSubstr("layout: \"zigzag\""));
  EXPECT_THAT(text({}), HasSubstr("data: -1"));
  EXPECT_THAT(JobSpecText(*ParseJobSpec("model { path: 'm' } score { text { text: 'T' } }", {})),
              HasSubstr("layout: \"striped:16\""));
}

TEST(TrainText, EveryDeviceIsToldAsItIs) {
  for (const char* device : {"AUTO", "CPU", "CUDA"}) {
    const auto spec = ParseJobSpec(kShort, {absl::StrCat("device=", device)});
    ASSERT_TRUE(spec.ok()) << spec.status();
    EXPECT_THAT(JobSpecText(*spec), HasSubstr(absl::StrCat("device: ", device, "\n")));
  }
  EXPECT_THAT(JobSpecText(*ParseJobSpec(kShort, {})), HasSubstr("device: AUTO\n"));
  EXPECT_THAT(Message(kShort, {"device=7"}), HasSubstr("CUDA"));
}

// --- the run directory

std::vector<nlohmann::json> Lines(const std::string& path) {
  std::ifstream file(path);
  std::vector<nlohmann::json> lines;
  for (std::string line; std::getline(file, line);) lines.push_back(nlohmann::json::parse(line));
  return lines;
}

std::vector<std::pair<int, double>> Losses(const std::string& directory) {
  std::vector<std::pair<int, double>> losses;
  for (const auto& line : Lines(directory + "/metrics.jsonl")) {
    losses.emplace_back(line["step"], line["loss"].is_null() ? -1 : line["loss"].get<double>());
  }
  return losses;
}

StepReport Report(int64_t step, double loss) {
  StepReport report;
  report.result.step = step;
  report.result.loss = loss;
  report.result.labels = 500;
  report.result.tokens = 512;
  report.seconds = 0.5;
  report.tokens_per_s = 1024;
  report.flops = {1e9, 2e9};
  return report;
}

class TrainingJobTest : public testing::Test {
 protected:
  TrainingJobTest() { fs::remove_all(directory_); }
  ~TrainingJobTest() override { fs::remove_all(directory_); }
  // A launch that does these steps.
  TrainResult Launch(const std::vector<StepReport>& steps) {
    auto job = TrainingJob::Open(*ParseJobSpec(kShort, {"name=n"}), directory_, 2);
    EXPECT_TRUE(job.ok()) << job.status();
    TrainingEvents events;
    events.on_step = [this](const StepReport&) { ++seen_; };
    events.on_note = [this](const std::string& note) { notes_.push_back(note); };
    events.on_alarm = events.on_note;
    events = (*job)->Record(std::move(events));
    events.on_note("resumed");
    for (const StepReport& step : steps) events.on_step(step);
    TrainingResult run;
    run.tokens = 512 * static_cast<int64_t>(steps.size());
    const TrainResult result = (*job)->Result(run);
    (*job)->End(absl::OkStatus());
    return result;
  }
  const std::string directory_ = absl::StrCat(testing::TempDir(), "/run_directory_", getpid());
  int seen_ = 0;
  std::vector<std::string> notes_;
};

TEST_F(TrainingJobTest, WritesWhatAToolReads) {
  const TrainResult result =
      Launch({Report(0, 5), Report(1, std::numeric_limits<double>::quiet_NaN())});
  EXPECT_EQ(seen_, 2);
  EXPECT_THAT(notes_, ElementsAre("resumed"));
  EXPECT_EQ(result.seconds, 1);
  EXPECT_EQ(result.tokens_per_s, 1024);
  EXPECT_FALSE(result.mfu.has_value());
  EXPECT_THAT(Losses(directory_), ElementsAre(std::pair(1, 5.0), std::pair(2, -1.0)));
  const nlohmann::json line = Lines(directory_ + "/metrics.jsonl")[0];
  for (const char* field : {"schema", "step", "loss", "grad_norm", "lr", "tokens", "tokens_per_s",
                            "mfu", "hfu", "step_s", "comm_exposed_s", "peak_bytes"}) {
    EXPECT_TRUE(line.contains(field)) << field;
  }
  EXPECT_TRUE(line["mfu"].is_null());
  EXPECT_TRUE(line["comm_exposed_s"].is_null());  // a GPU's
  EXPECT_EQ(line["epoch"], 2);
  EXPECT_FALSE(line.contains("param_hash"));
  std::ifstream config(directory_ + "/config.textproto");
  std::stringstream text;
  text << config.rdbuf();
  const auto again = ParseJobSpec(text.str(), {});
  ASSERT_TRUE(again.ok()) << again.status() << text.str();
  EXPECT_EQ(TaskOf(*again).plan.steps, 40);
  std::vector<std::string> events;
  for (const auto& entry : Lines(directory_ + "/logs/rank-0000.log")) {
    EXPECT_EQ(entry["epoch"], 2);
    events.push_back(entry["event"]);
  }
  EXPECT_THAT(events, ElementsAre("begin", "note", "end"));
}

// Of the peak of all ranks: 1e9 model FLOPs, 2e9 with what is computed again, in half a second.
TEST_F(TrainingJobTest, UseOfThePeakIsOfAllRanks) {
  const auto open = [&](MeshShape mesh, double peak) {
    JobSpec spec = *ParseJobSpec(kShort, {"name=n", absl::StrCat("train.peak_flops=", peak)});
    spec.placement.load.mesh = mesh;
    return *TrainingJob::Open(spec, directory_, 2);
  };
  const auto job = open({2, 1, 2}, 1e9);
  const TrainingEvents events = job->Record({});
  StepReport slow = Report(1, 4);
  slow.seconds = 1.5;
  events.on_step(Report(0, 5));
  events.on_step(slow);
  const auto lines = Lines(directory_ + "/metrics.jsonl");
  EXPECT_DOUBLE_EQ(lines[0]["mfu"], 0.5);
  EXPECT_DOUBLE_EQ(lines[0]["hfu"], 1.0);
  EXPECT_DOUBLE_EQ(lines[1]["mfu"], 0.5 / 3);
  EXPECT_DOUBLE_EQ(lines[1]["hfu"], 1.0 / 3);
  EXPECT_DOUBLE_EQ(*job->Result({}).mfu, 0.25);  // of both steps, by their time
  EXPECT_THAT(StepLine(slow, 9, job->Use(slow)), HasSubstr("  mfu 16.7%"));
  // Control: of one rank it would be four times as much.
  EXPECT_DOUBLE_EQ(*open({1, 1, 1}, 1e9)->Use(slow).model, 2.0 / 3);
  // A job that does not say: what the run found, of all its ranks; nothing if it found none.
  EXPECT_FALSE(open({2, 1, 2}, 0)->Use(slow).model.has_value());
  slow.peak_flops = 2e9;
  EXPECT_DOUBLE_EQ(*open({2, 1, 2}, 0)->Use(slow).model, 1.0 / 3);
  EXPECT_DOUBLE_EQ(*job->Use(slow).model, 0.5 / 3);  // control: the job's own beats it
}

TEST_F(TrainingJobTest, WhatAStepHasNotIsNull) {
  StepReport without = Report(0, 0);
  without.result.labels = 0;
  without.exposed_seconds = 0.25;
  without.param_hash = 0xabc;
  Launch({without, Report(1, 0)});
  const auto lines = Lines(directory_ + "/metrics.jsonl");
  EXPECT_TRUE(lines[0]["loss"].is_null());
  EXPECT_EQ(lines[0]["comm_exposed_s"], 0.25);
  EXPECT_EQ(lines[0]["param_hash"], "0000000000000abc");
  EXPECT_EQ(lines[1]["loss"], 0.0);  // control
  EXPECT_THAT(StepLine(without, 9, {}), HasSubstr("no update: no token"));
}

// What a pod tells the controller of the exchange: sums over its steps, and the most of staleness.
TEST_F(TrainingJobTest, WhatPodsHaveToDoWithEachOtherIsTold) {
  const auto job = *TrainingJob::Open(
      *ParseJobSpec(kPods, {"name=n", "train.exchange.streaming.every=4"}), directory_, 2);
  const TrainingEvents events = job->Record({});
  StepReport late = Report(0, 5), hurried = Report(1, 4);
  late.pods = {.taking_part = 3, .staleness = 2, .bytes_sent = 10, .seconds_waited = 0.1};
  hurried.pods = {
      .taking_part = 2, .bytes_sent = 5, .dropped = 7, .reconnects = 3, .hurried = true};
  late.pods->reconnects = 1;
  hurried.pods->outer_hash = 0xab;
  events.on_step(late);
  events.on_step(hurried);
  TaskProgress progress{"train", 2, 4, 4.0, 100};
  progress.exchange = job->exchange();
  const TaskProgress told = FromProto(ToProto(progress));
  ASSERT_TRUE(told.exchange.has_value());
  EXPECT_EQ(told.exchange->taking_part, 2);
  EXPECT_EQ(told.exchange->staleness, 2);
  EXPECT_EQ(told.exchange->bytes_sent, 15);
  EXPECT_DOUBLE_EQ(told.exchange->wait_share, 0.1);
  EXPECT_EQ(told.exchange->dropped, 7);
  EXPECT_EQ(told.exchange->hurried, 1);
  EXPECT_EQ(told.exchange->reconnects, 4);
  EXPECT_EQ(told.exchange->hash_step, 2);
  EXPECT_EQ(told.exchange->hash, 0xabu);
  const auto lines = Lines(directory_ + "/metrics.jsonl");
  EXPECT_EQ(lines[0]["pods"]["staleness"], 2);
  EXPECT_EQ(lines[1]["pods"]["staleness"], 0);
  EXPECT_EQ(lines[1]["pods"]["dropped"], 7);
  EXPECT_EQ(lines[0]["pods"]["reconnects"], 1);
  EXPECT_EQ(lines[1]["pods"]["reconnects"], 3);
}

TEST_F(TrainingJobTest, NoiseAndSkippedStepsAreTold) {
  StepReport step = Report(0, 5);
  step.result.noise_scale = 321.5;
  step.result.skipped = "model.norm.weight";
  Launch({step, Report(1, 4)});
  const auto lines = Lines(directory_ + "/metrics.jsonl");
  EXPECT_EQ(lines[0]["noise_scale"], 321.5);
  EXPECT_EQ(lines[0]["skipped"], "model.norm.weight");
  EXPECT_FALSE(lines[1].contains("noise_scale") || lines[1].contains("skipped"));  // control
  EXPECT_THAT(StepLine(step, 9, {}), HasSubstr("the gradient of model.norm.weight is not finite"));
  EXPECT_THAT(StepLine(Report(1, 4), 9, {}), Not(HasSubstr("not finite")));
  int64_t scalars = 0;
  for (const auto& entry : fs::directory_iterator(directory_)) {
    if (entry.path().filename().string().rfind("events.", 0) != 0) continue;
    std::stringstream bytes;  // a scalar's name stands in its record as it is
    bytes << std::ifstream(entry.path()).rdbuf();
    const std::string text = bytes.str(), name = "train/noise_scale";
    for (size_t at = text.find(name); at != std::string::npos; at = text.find(name, at + 1)) {
      ++scalars;
    }
  }
  EXPECT_EQ(scalars, 1);
}

TEST_F(TrainingJobTest, WhatCannotBeExportedIsRefusedAtOnce) {
  const auto open = [&](const char* preset) {
    const auto spec = ParseJobSpec(
        kShort, {absl::StrCat("model.shape.preset=", preset), "train.export_model=true"});
    return TrainingJob::Open(*spec, directory_, 0).status();
  };
  EXPECT_EQ(open("palm-tiny").code(), absl::StatusCode::kUnimplemented);
  EXPECT_TRUE(open("tiny-gqa").ok());
}

TEST_F(TrainingJobTest, ALaterLaunchTakesBackWhatItDoesAnew) {
  Launch({Report(0, 5), Report(1, 4), Report(2, 3)});
  std::ofstream(directory_ + "/metrics.jsonl", std::ios::app) << "{\"step\": 4, \"lo";  // killed
  Launch({Report(1, 4.5), Report(2, 3.5)});
  EXPECT_THAT(Losses(directory_),
              ElementsAre(std::pair(1, 5.0), std::pair(2, 4.5), std::pair(3, 3.5)));
  // So does a run that goes back after a spike.
  Launch({Report(3, 9), Report(1, 2)});
  EXPECT_THAT(Losses(directory_), ElementsAre(std::pair(1, 5.0), std::pair(2, 2.0)));
  // Nothing changes before the first step.
  Launch({});
  EXPECT_EQ(Losses(directory_).size(), 2u);
}

// So lines of an earlier launch may be beside the log of a later one.
TEST_F(TrainingJobTest, TellsWhoseHashesOfWeightsItHas) {
  fs::create_directories(directory_ + "/logs");
  const auto begin = [&](int64_t epoch) {
    std::ofstream(directory_ + "/logs/rank-0000.log", std::ios::app)
        << "{\"epoch\":" << epoch << ",\"event\":\"begin\"}\n";
  };
  const auto tell = [&](int64_t step, int64_t epoch, const char* hash) {
    std::ofstream(directory_ + "/metrics.jsonl", std::ios::app)
        << "{\"step\":" << step << ",\"epoch\":" << epoch << ",\"param_hash\":\"" << hash
        << "\"}\n";
  };
  EXPECT_TRUE(ParamHashes(directory_).by_step.empty());
  begin(3);
  tell(1, 3, "00000000000000aa");
  tell(2, 3, "00000000000000bb");
  EXPECT_THAT(ParamHashes(directory_).by_step,
              ElementsAre(std::pair(1, 0xaau), std::pair(2, 0xbbu)));
  EXPECT_TRUE(ParamHashes(directory_).by_last_launch);
  begin(4);
  EXPECT_FALSE(ParamHashes(directory_).by_last_launch);
  tell(3, 4, "00000000000000cc");
  EXPECT_TRUE(ParamHashes(directory_).by_last_launch);
}

TEST_F(TrainingJobTest, AFullDiskIsToldOnceAndStopsNothing) {
  fs::create_directories(directory_ + "/metrics.jsonl.new");  // where a file has to be
  Launch({Report(0, 5), Report(1, 4)});
  EXPECT_EQ(seen_, 2);
  ASSERT_EQ(notes_.size(), 2u);
  EXPECT_THAT(notes_[1], HasSubstr("training goes on"));
}

TEST(ResolveTraining, FilesMustLieUnderARoot) {
  const std::string top = testing::TempDir() + "/roots_of_training";
  fs::remove_all(top);
  fs::create_directories(top + "/text");
  std::ofstream(top + "/text/a.txt") << "a";
  std::ofstream(top + "/text/b.txt") << "b";
  std::ofstream(top + "/outside.txt") << "c";
  const std::vector<Root> roots = {{"text", fs::canonical(top + "/text").string()}};
  const auto resolve = [&](const std::string& path) {
    return ResolveTraining(*ParseJobSpec(kShort, {absl::StrCat("train.data.path=", path)}), roots);
  };
  auto spec = resolve("text/*.txt");
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_THAT(TaskOf(*spec).plan.data.paths,
              ElementsAre(roots[0].dir + "/a.txt", roots[0].dir + "/b.txt"));
  EXPECT_TRUE(resolve("text/a.txt").ok());
  EXPECT_FALSE(resolve("text/../outside.txt").ok());
  EXPECT_FALSE(resolve("text/*/../../outside.txt").ok());
  EXPECT_FALSE(resolve("*.txt").ok());
  EXPECT_FALSE(resolve(top + "/out*.txt").ok());
  fs::create_symlink("../outside.txt", top + "/text/c.txt");
  EXPECT_FALSE(resolve("text/*.txt").ok());
}

}  // namespace
}  // namespace toroid
