// The history of merges: made again bit for bit from what was kept, on any meshes and codecs, over
// launches; what was changed in it is found and named.
#include "parallel/merge_replay.h"

#include <filesystem>
#include <fstream>
#include <limits>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "core/io/checkpoint_directory.h"
#include "core/io/merge_log.h"
#include "tests/support/run_on_pods.h"
#include "tests/support/training_runs.h"

namespace toroid {
namespace {

using testing::HasSubstr;
using testing::StartsWith;
namespace fs = std::filesystem;

constexpr int64_t kFirstWeight = 23 + 4 * 8 + 8;  // its place in begin.rank-..
const std::vector<MeshShape> kUnlike = {{1, 1, 2}, {2, 1, 1}};

class MergeReplayTest : public TrainingRunTest {
 protected:
  MergeReplayTest() {
    plan_ = Plan({1, 1, 1}, 12);
    plan_.options.pods.keep_contributions = true;
    plan_.param_hash_every = 1;
  }

  void UseStreaming() {
    ExchangeSpec& spec = plan_.options.pods.exchange;
    spec.mode = ExchangeSpec::Mode::kStreaming;
    spec.every = 4;
    spec.fragments = 2;
    spec.tau = 1;
    spec.alpha = 0.5;
    spec.codec = Codec::kInt8;
    spec.error_feedback = true;
  }

  // Exact or delayed, on documents that do not divide: in the first steps pod 1 has none. The clip
  // is at work.
  void UseGradients(ExchangeSpec::Mode mode) {
    plan_.options.pods.exchange.mode = mode;
    plan_.options.max_norm = 0.3;
    plan_.options.optimizer.rate.kind = LearningRateSchedule::Kind::kCosine;
    plan_.options.optimizer.rate.steps = 12;
    plan_.options.optimizer.decay.rate = 0.1;
    plan_.data.batch_tokens.stages = {{0, 32}, {2, 5 * 32}};
    plan_.directory = Directory(ExchangeModeName(mode));
    launches_.clear();
  }

  // A launch; on all pods, or on some, with another plan.
  std::vector<Outcome> RunPods(
      const std::vector<MeshShape>& meshes,
      const std::function<void(int64_t pod, TrainingPlan&)>& change = [](int64_t, TrainingPlan&) {
      }) {
    std::vector<Outcome> outcomes(meshes.size());
    RunOnPods(meshes, [&](int64_t pod, std::unique_ptr<Communicator> world, PodLink& link) {
      TrainingPlan own = plan_;
      own.options.mesh = meshes[size_t(pod)];
      own.options.pods.count = int64_t(meshes.size());
      own.directory = PodDirectory(plan_.directory, pod, own.options.pods.count);
      change(pod, own);
      TrainingEvents events;
      if (world->rank() == 0) events = Recording({}, outcomes[size_t(pod)]);
      RunRank(own, events, std::move(world), outcomes[size_t(pod)], &link);
    });
    launches_.resize(meshes.size());
    for (size_t q = 0; q < outcomes.size(); ++q) {
      EXPECT_TRUE(outcomes[q].status.ok()) << outcomes[q].status;
      launches_[q].push_back(outcomes[q]);
    }
    return outcomes;
  }

  std::string OfPod(int64_t pod) const { return PodDirectory(plan_.directory, pod, 2); }
  absl::StatusOr<ReplayedMerges> Replay(int64_t pod) const {
    ReplayOptions options;
    options.param_hashes = ParamHashesOf(launches_[size_t(pod)]);
    return ReplayMerges(PosixFiles(), OfPod(pod), options);
  }
  std::string Differs(int64_t pod) const {
    const auto replayed = Replay(pod);
    EXPECT_TRUE(replayed.ok()) << replayed.status();
    return replayed.ok() ? replayed->differs : "";
  }
  std::vector<MergeRecord> LogOf(int64_t pod) const {
    const auto log = ReadMergeLog(PosixFiles(), OfPod(pod) + "/merges.log");
    EXPECT_TRUE(log.ok()) << log.status();
    return log.ok() ? log->records : std::vector<MergeRecord>();
  }
  void ExpectSame(int64_t pods) const {
    for (int64_t q = 0; q < pods; ++q) {
      const auto replayed = Replay(q);
      ASSERT_TRUE(replayed.ok()) << replayed.status();
      EXPECT_EQ(replayed->differs, "");
      EXPECT_GT(replayed->merges, 0);
      EXPECT_EQ(replayed->replayed, replayed->merges);
      EXPECT_EQ(LogOf(q), LogOf(0));
      if (!replayed->weights) continue;
      const std::map<int64_t, uint64_t> told = ParamHashesOf(launches_[size_t(q)]);
      EXPECT_EQ(replayed->weights->compared, int64_t(told.size()));
      EXPECT_EQ(replayed->weights->first, told.begin()->first);
      EXPECT_EQ(replayed->weights->last, told.rbegin()->first);
      EXPECT_EQ(replayed->weights->hash, told.rbegin()->second);
    }
  }
  // Takes the checkpoint of `step` from all pods: the next launch goes on from the one before.
  void LoseCheckpoint(int64_t step) const {
    for (const int64_t pod : {0, 1}) {
      for (const auto& entry : fs::directory_iterator(OfPod(pod) + "/checkpoints")) {
        CheckpointEntry of;
        if (ParseCheckpointName(entry.path().filename().string(), of) && of.step == step) {
          fs::remove_all(entry.path());
        }
      }
    }
  }

  // Rewrites the log with one thing changed.
  void ChangeLog(int64_t pod, const std::function<void(std::vector<MergeRecord>&)>& change) const {
    std::vector<MergeRecord> records = LogOf(pod);
    change(records);
    const std::string path = OfPod(pod) + "/merges.log";
    fs::remove(path);
    const auto log = MergeLog::Open(PosixFiles(), path, 0);
    ASSERT_TRUE(log.ok());
    for (const MergeRecord& record : records) ASSERT_TRUE((*log)->Append(record).ok());
  }
  // Flips the lowest bit of a byte; at < 0: from the end.
  static void FlipBit(const std::string& path, int64_t at) {
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    ASSERT_TRUE(file) << path;
    const auto from = at < 0 ? std::ios::end : std::ios::beg;
    file.seekg(at, from);
    const char byte = char(file.get() ^ 1);
    file.seekp(at, from);
    file.put(byte);
  }

  // Rewrites a launch's about.json with one text in it changed.
  void ChangeAbout(int64_t pod, const std::string& from, const std::string& to) const {
    const std::string path = OfPod(pod) + "/contributions/from-00000000/about.json";
    std::stringstream text;
    text << std::ifstream(path).rdbuf();
    std::string changed = text.str();
    ASSERT_NE(changed.find(from), std::string::npos) << changed;
    changed.replace(changed.find(from), from.size(), to);
    std::ofstream(path) << changed;
  }
  // What is done to a pod's directory until it is put back.
  class Changed {
   public:
    explicit Changed(std::string directory) : directory_(std::move(directory)) {
      fs::copy(directory_, directory_ + "-copy", fs::copy_options::recursive);
    }
    ~Changed() {
      fs::remove_all(directory_);
      fs::rename(directory_ + "-copy", directory_);
    }

   private:
    const std::string directory_;
  };

  // Some steps make no update: on pod 1 the loss of the second launch is not finite.
  void ExpectWeightsOverLaunches(ExchangeSpec::Mode mode) {
    UseGradients(mode);
    plan_.checkpoint_every = 2;
    plan_.steps = 4;
    RunPods(kUnlike);
    LoseCheckpoint(4);
    plan_.steps = 5;
    RunPods(kUnlike, [](int64_t pod, TrainingPlan& own) {
      if (pod == 1) own.options.zeta = std::numeric_limits<double>::infinity();
    });
    plan_.steps = 7;
    const std::vector<Outcome> rest = RunPods(kUnlike);
    EXPECT_EQ(rest[0].result.skipped, 3);
    EXPECT_EQ(rest[0].reports.front().result.step, 5);
    ExpectSame(2);
    EXPECT_EQ(Replay(0)->weights->compared, 7);

    // What an earlier launch has told of steps behind the last one's beginning is not compared.
    ReplayOptions told;
    told.param_hashes = ParamHashesOf(launches_[0]);
    told.param_hashes[7] ^= 1;
    EXPECT_THAT(ReplayMerges(PosixFiles(), OfPod(0), told)->differs, StartsWith("step 7"));
    told.told_by_last_launch = false;
    const auto replayed = ReplayMerges(PosixFiles(), OfPod(0), told);
    EXPECT_EQ(replayed->differs, "");
    EXPECT_EQ(replayed->weights->compared, 5);

    FlipBit(OfPod(1) + "/contributions/from-00000005/begin.rank-0001", kFirstWeight);
    EXPECT_THAT(Differs(1), StartsWith("the launch from step 5 began with other weights"));
  }

  TrainingPlan plan_;
  std::vector<std::vector<Outcome>> launches_;  // by pod
};

TEST_F(MergeReplayTest, OuterWeightsAreMadeAgain) {
  UseStreaming();
  const std::vector<Outcome> pods = RunPods(kUnlike);
  ExpectSame(2);
  const auto replayed = Replay(1);
  ASSERT_TRUE(replayed.ok());
  EXPECT_TRUE(replayed->outer);
  EXPECT_EQ(replayed->merges, 6);  // two fragments in each round of four steps, the last on its way
  EXPECT_EQ(LogOf(0).front().step, 2);
  EXPECT_EQ(LogOf(0).front().inputs.size(), 2u);
  EXPECT_GT(LogOf(0).front().inputs[1].weight, 0);
  // The fragment of step 12 was not applied before the end: the outer weights of one merge more.
  EXPECT_NE(replayed->hash, *pods[0].reports.back().pods->outer_hash);

  // The last one that was applied is in the hash that the run itself has told.
  ChangeLog(1, [](std::vector<MergeRecord>& records) { records.pop_back(); });
  const auto applied = Replay(1);
  ASSERT_TRUE(applied.ok());
  EXPECT_EQ(applied->hash, *pods[0].reports.back().pods->outer_hash);
}

TEST_F(MergeReplayTest, GradientsAndWeightsAreMadeAgain) {
  for (const auto mode : {ExchangeSpec::Mode::kExact, ExchangeSpec::Mode::kDelayed}) {
    SCOPED_TRACE(ExchangeModeName(mode));
    UseGradients(mode);
    plan_.steps = 6;
    plan_.options.pods.exchange.codec = Codec::kBf16;
    const std::vector<Outcome> pods = RunPods(kUnlike);
    ExpectSame(2);
    const auto replayed = Replay(0);
    ASSERT_TRUE(replayed.ok());
    EXPECT_FALSE(replayed->outer);
    EXPECT_EQ(replayed->merges, 6);
    ASSERT_TRUE(replayed->weights.has_value());
    EXPECT_EQ(replayed->weights->compared, 6);
    EXPECT_EQ(LogOf(0).back().step, 6);
    EXPECT_EQ(LogOf(0).front().inputs[1].weight, 0);  // pod 1 had nothing to give
    EXPECT_GT(pods[0].reports.back().result.grad_norm, 0.3);
  }
}

// Adafactor's step has a sum over ranks in it too, of the weights.
TEST_F(MergeReplayTest, WeightsAreMadeAgainWithAdafactor) {
  UseGradients(ExchangeSpec::Mode::kExact);
  plan_.steps = 4;
  plan_.options.optimizer.kind = OptimizerSpec::Kind::kAdafactor;
  RunPods(kUnlike);
  ExpectSame(2);
  fs::remove(OfPod(1) + "/contributions/from-00000000/squares-00000003-1");
  EXPECT_THAT(std::string(Replay(1).status().message()), HasSubstr("squares-00000003-1"));
}

TEST_F(MergeReplayTest, WeightsOfExactAreMadeAgainOverLaunchesAndSkippedSteps) {
  ExpectWeightsOverLaunches(ExchangeSpec::Mode::kExact);
}
TEST_F(MergeReplayTest, WeightsOfDelayedAreMadeAgainOverLaunchesAndSkippedSteps) {
  ExpectWeightsOverLaunches(ExchangeSpec::Mode::kDelayed);
}

TEST_F(MergeReplayTest, WhatWeightsDependOnIsNamed) {
  UseGradients(ExchangeSpec::Mode::kExact);
  plan_.options.compute = Compute::kF64;  // nothing is too small to be seen
  plan_.options.pods.exchange.codec = Codec::kFp64;
  plan_.steps = 4;
  const std::vector<Outcome> pods = RunPods(kUnlike);
  EXPECT_EQ(Differs(0), "");  // control
  const std::string kept = OfPod(1) + "/contributions/from-00000000/";
  {  // the share of another pod
    const Changed put_back(OfPod(0));
    FlipBit(OfPod(0) + "/contributions/from-00000000/step-00000003-0.rank-0000", -8);
    EXPECT_THAT(Differs(0), StartsWith("merge of step 3, fragment 0: the share of pod 1 "));
  }
  {
    const Changed put_back(OfPod(1));
    FlipBit(kept + "begin.rank-0000", kFirstWeight + 3);
    EXPECT_THAT(Differs(1), StartsWith("step 1: the weights had the hash"));
  }
  {
    const Changed put_back(OfPod(1));
    ChangeAbout(1, "\"rate\": 0.003,", "\"rate\": 0.0030001,");
    EXPECT_THAT(Differs(1), StartsWith("step 1: the weights had the hash"));
  }
  {
    const Changed put_back(OfPod(1));
    ChangeAbout(1, "\"max_norm\": 0.3,", "\"max_norm\": 0.30001,");
    EXPECT_THAT(Differs(1), StartsWith("step 1: the weights had the hash"));
  }
  {  // the norm that all took: close to this mesh's own, or not at all
    const Changed put_back(OfPod(1));
    FlipBit(kept + "squares-00000002-0", -6);
    EXPECT_THAT(Differs(1), StartsWith("step 2: the weights had the hash"));
    FlipBit(kept + "squares-00000002-0", -2);
    EXPECT_THAT(Differs(1), StartsWith("step 2: the squared sums that pod 0 gave"));
  }
  {  // of the pod that gave them: to the bit
    const Changed put_back(OfPod(0));
    FlipBit(OfPod(0) + "/contributions/from-00000000/squares-00000002-0", -8);
    EXPECT_THAT(Differs(0), StartsWith("step 2: the squared sums that pod 0 gave"));
  }
  {
    const Changed put_back(OfPod(1));
    fs::remove(kept + "squares-00000002-0");
    EXPECT_THAT(std::string(Replay(1).status().message()), HasSubstr("squares-00000002-0"));
    fs::remove(kept + "begin.rank-0000");
    EXPECT_THAT(std::string(Replay(1).status().message()), HasSubstr("begin.rank-0000"));
  }
  {  // what the run has told
    launches_[1][0].reports[2].param_hash = *pods[1].reports[2].param_hash + 1;
    EXPECT_THAT(Differs(1), StartsWith("step 3: the weights had the hash"));
  }
  {  // of a version that kept less: merges alone
    const Changed put_back(OfPod(1));
    ChangeAbout(1, "\"update\"", "\"another\"");
    const auto replayed = Replay(1);
    ASSERT_TRUE(replayed.ok()) << replayed.status();
    EXPECT_EQ(replayed->differs, "");
    EXPECT_EQ(replayed->replayed, 4);
    EXPECT_EQ(replayed->weights->compared, 0);
    EXPECT_THAT(replayed->weights->not_made, HasSubstr("about.json"));
  }
}

// A run in parts, the second from the checkpoint before the last: the same log.
TEST_F(MergeReplayTest, OverLaunches) {
  UseStreaming();
  plan_.directory = Directory("whole");
  RunPods(kUnlike);
  const std::vector<MergeRecord> whole = LogOf(0);
  plan_.directory = Directory("parts");
  plan_.checkpoint_every = 3;  // with a fragment on its way at 6
  plan_.steps = 9;
  RunPods(kUnlike);
  LoseCheckpoint(9);
  plan_.steps = 12;
  const std::vector<Outcome> rest = RunPods(kUnlike);
  EXPECT_EQ(rest[0].reports.front().result.step, 6);
  EXPECT_EQ(LogOf(0), whole);
  ExpectSame(2);

  // Outer weights that are not those of the merges before.
  FlipBit(OfPod(0) + "/contributions/from-00000006/begin.rank-0001", kFirstWeight);
  const auto replayed = Replay(0);
  ASSERT_TRUE(replayed.ok()) << replayed.status();
  EXPECT_THAT(replayed->differs, StartsWith("the launch from step 6 began with other outer"));
}

TEST_F(MergeReplayTest, WhatWasChangedIsNamed) {
  UseStreaming();
  plan_.options.pods.exchange.codec = Codec::kFp32;
  RunPods(kUnlike);
  const std::string kept = OfPod(0) + "/contributions/from-00000000/";
  const auto differs = [&] { return Differs(0); };
  EXPECT_EQ(differs(), "");  // control
  fs::copy(OfPod(0), OfPod(0) + "-copy", fs::copy_options::recursive);
  const auto put_back = [&] {
    fs::remove_all(OfPod(0));
    fs::copy(OfPod(0) + "-copy", OfPod(0), fs::copy_options::recursive);
  };

  FlipBit(kept + "step-00000006-0.rank-0001", -1);
  EXPECT_THAT(differs(),
              StartsWith("merge of step 6, fragment 0: the share of pod 1 has the hash"));
  put_back();
  ChangeLog(0, [](std::vector<MergeRecord>& records) { records[2].inputs[0].weight += 1; });
  EXPECT_THAT(differs(), StartsWith("merge of step 6, fragment 0: pod 0 has the weight"));
  put_back();
  ChangeLog(0, [](std::vector<MergeRecord>& records) { records[1].result ^= 1; });
  EXPECT_THAT(differs(), StartsWith("merge of step 4, fragment 1: the result has the hash"));
  EXPECT_THAT(*CompareMergeLogs(PosixFiles(), {OfPod(0), OfPod(1)}),
              StartsWith("merge of step 4, fragment 1: the logs of"));
  put_back();
  EXPECT_EQ(*CompareMergeLogs(PosixFiles(), {OfPod(0), OfPod(1)}), "");
  ChangeLog(0, [](std::vector<MergeRecord>& records) { records[0].inputs.pop_back(); });
  EXPECT_THAT(differs(), HasSubstr("pod 1 is not in the log"));
  put_back();

  FlipBit(kept + "begin.rank-0000", kFirstWeight);
  EXPECT_THAT(differs(), StartsWith("merge of step 2, fragment 0: the result has the hash"));
  put_back();

  fs::remove(kept + "step-00000008-1.rank-0000");
  EXPECT_THAT(std::string(Replay(0).status().message()), HasSubstr("step-00000008-1.rank-0000"));
  fs::remove_all(OfPod(0) + "/contributions");
  EXPECT_TRUE(absl::IsNotFound(Replay(0).status()));
  EXPECT_THAT(std::string(Replay(0).status().message()), HasSubstr("keep_contributions"));
  fs::remove(OfPod(0) + "/merges.log");
  EXPECT_THAT(std::string(Replay(0).status().message()), HasSubstr("no log of merges"));
}

// A log is written without the option too; a disk that takes neither is an alarm, and no error.
TEST_F(MergeReplayTest, TheLogIsAlwaysWritten) {
  plan_.options.pods.keep_contributions = false;
  plan_.steps = 3;
  RunPods(kUnlike);
  EXPECT_EQ(LogOf(1).size(), 3u);
  EXPECT_FALSE(fs::exists(OfPod(0) + "/contributions"));

  plan_.directory = Directory("blocked");
  plan_.options.pods.keep_contributions = true;
  fs::create_directories(OfPod(0));
  std::ofstream(OfPod(0) + "/contributions") << "in the way";
  const std::vector<Outcome> pods = RunPods(kUnlike);
  EXPECT_EQ(pods[0].alarms.size(), 1u);
  EXPECT_THAT(pods[0].alarms[0], HasSubstr("the merges of pods are not kept whole"));
  EXPECT_EQ(pods[0].reports.size(), 3u);
  EXPECT_EQ(pods[1].alarms.size(), 0u);
}

}  // namespace
}  // namespace toroid
