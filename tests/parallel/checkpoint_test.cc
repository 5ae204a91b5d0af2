#include "parallel/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "core/io/checkpoint_directory.h"
#include "core/io/random_model.h"
#include "tests/support/faulty_files.h"
#include "tests/support/model_files.h"
#include "tests/support/run_on_ranks.h"
#include "tests/support/training_store.h"

namespace toroid {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

TrainingState StateAt(int64_t step, int64_t branch = 0) {
  TrainingState state;
  state.step = step;
  state.branch = branch;
  state.data_position = step * 1000 + 7;
  state.seed = 0xdeadbeefcafef00du;
  state.skipped = *SkipList::Parse("4096-8192");
  state.numbers["loss"] = {0.1, 1.0 / 3, double(step)};
  state.texts["data"] = "hash";
  return state;
}

CheckpointOutcome SaveAndWait(CheckpointWriter& writer, const TrainingState& state) {
  CheckpointOutcome outcome;
  outcome.status = writer.Save(state);
  if (outcome.status.ok()) outcome = *writer.Wait();
  EXPECT_FALSE(writer.in_flight());
  return outcome;
}

// Saves these versions at these steps, by a world of its own.
void SaveAll(const std::string& directory, const ModelConfig& config, MeshShape shape,
             const std::vector<std::pair<int64_t, uint64_t>>& steps, int64_t keep = 10,
             DType type = DType::kF32) {
  RunOnMesh(shape, [&](Mesh& mesh) {
    TrainingStore store(mesh, config, type);
    const auto writer = CheckpointWriter::Create(*store, config, {directory, keep});
    ASSERT_TRUE(writer.ok()) << writer.status();
    for (const auto& [step, version] : steps) {
      store.Fill(version);
      const CheckpointOutcome outcome = SaveAndWait(**writer, StateAt(step));
      EXPECT_TRUE(outcome.status.ok()) << outcome.status;
      EXPECT_TRUE(outcome.removal.ok()) << outcome.removal;
      EXPECT_EQ(outcome.path, absl::StrCat(directory, "/", CheckpointName(step, 0)));
    }
  });
}

TEST(Checkpoint, AnyMeshLoadsWhatAnyOtherWrote) {
  struct Pair {
    const char* model;
    MeshShape from, to;
    DType type;
  };
  const Pair pairs[] = {
      {"tiny-gqa", {2, 2, 2}, {1, 3, 1}, DType::kF32},    // 8 ranks to 3; KV heads shared by two
      {"tiny-gqa", {1, 1, 5}, {1, 1, 4}, DType::kF32},    // other heads shared
      {"tiny-gqa", {8, 1, 1}, {1, 1, 3}, DType::kF64},    //
      {"tiny-gqa", {1, 1, 1}, {2, 2, 2}, DType::kF32},    //
      {"tiny-mqa", {1, 2, 3}, {1, 1, 1}, DType::kF32},    // one KV head, on all; a tied head
      {"tiny-mqa", {3, 1, 1}, {1, 1, 6}, DType::kF32},    //
      {"tiny-qwen2", {2, 1, 4}, {3, 1, 2}, DType::kF64},  // biases of shared heads
      {"tiny-qwen3", {2, 2, 2}, {2, 2, 2}, DType::kF32},  // norms of heads; the same mesh
      {"palm-tiny", {2, 1, 2}, {1, 3, 1}, DType::kF32},   // parallel blocks
      {"gpt3-tiny", {1, 2, 2}, {3, 1, 1}, DType::kF32},   // learned positions, biases everywhere
  };
  for (const Pair& pair : pairs) {
    SCOPED_TRACE(absl::StrCat(pair.model, " ", ToString(pair.from), " to ", ToString(pair.to)));
    TemporaryDirectory directory;
    const ModelConfig config = *RandomShape(pair.model);
    SaveAll(directory.path(), config, pair.from, {{100, 1}}, 2, pair.type);
    RunOnMesh(pair.to, [&](Mesh& mesh) {
      TrainingStore store(mesh, config, pair.type);
      store.Fill(2);
      EXPECT_GT(store.Differences(1), 0);  // control: what is compared differs before
      const auto loaded = LoadNewestCheckpoint(directory.path(), config, *store);
      ASSERT_TRUE(loaded.ok()) << loaded.status();
      EXPECT_EQ(store.Differences(1), 0);
      EXPECT_EQ(loaded->state, StateAt(100));
      EXPECT_EQ(loaded->mesh, pair.from);
      EXPECT_THAT(loaded->refused, IsEmpty());
    });
  }
}

TEST(Checkpoint, EveryElementIsWrittenOnce) {
  const ModelConfig config = *RandomShape("tiny-gqa");
  for (const MeshShape shape : {MeshShape{1, 1, 1}, MeshShape{2, 1, 4}, MeshShape{1, 3, 2}}) {
    std::vector<CheckpointParameter> parameters;
    std::vector<CheckpointShard> shards(shape.size());
    int64_t replicas = 0;
    for (int64_t t = 0; t < shape.tensor; ++t) {
      const ParamGroups groups(config, ParamLayout(config, t, shape.tensor), t,
                               shape.data * shape.ring, config.layers);
      for (int64_t g = 0; g < groups.count(); ++g) {
        for (const GroupMember& member : groups.group(g).members) {
          replicas += member.counted_from;
          if (t == 0) parameters.push_back({member.spec.name, member.spec.rows, member.spec.cols});
        }
      }
      for (int64_t i = 0; i < shape.data * shape.ring; ++i) {
        shards[i * shape.tensor + t].pieces = CountedPieces(groups, i);
      }
    }
    EXPECT_EQ(replicas > 0, shape.tensor > 1);
    EXPECT_TRUE(CoversOnce(parameters, shards).ok()) << CoversOnce(parameters, shards);
  }
}

// The checkpoint holds the values of the moment of Save, however long it takes to be written.
TEST(Checkpoint, StepsGoOnWhileItIsWritten) {
  TemporaryDirectory directory, graveyard;
  FaultyFiles files(PosixFiles(), graveyard.path());
  const ModelConfig config = SmallestModel();
  files.Hold();
  RunOnMesh({2, 1, 1}, [&](Mesh& mesh) {
    TrainingStore store(mesh, config);
    const auto writer = CheckpointWriter::Create(*store, config, {directory.path()}, files);
    EXPECT_FALSE((*writer)->Poll().has_value());
    EXPECT_FALSE((*writer)->Wait().has_value());
    store.Fill(1);
    ASSERT_TRUE((*writer)->Save(StateAt(100)).ok());
    files.WaitForWriter();
    for (uint64_t step = 2; step < 5; ++step) {
      store.Fill(step);
      EXPECT_FALSE((*writer)->Poll().has_value());
      EXPECT_TRUE((*writer)->in_flight());
    }
    EXPECT_FALSE(std::filesystem::exists(directory.path() + "/step-00000100"));
    mesh.Agree(0);
    if (mesh.rank() == 0) files.Release();
    // Polled as often as it takes, as steps do.
    std::optional<CheckpointOutcome> outcome;
    while (!outcome.has_value()) outcome = (*writer)->Poll();
    EXPECT_TRUE(outcome->status.ok()) << outcome->status;
    EXPECT_EQ(outcome->step, 100);
    EXPECT_NE(outcome->hash, 0u);
    EXPECT_EQ(store.Differences(4), 0);
    // One copy of what this rank counts: without pads no more than it stores.
    EXPECT_LE((*writer)->host_bytes(), 3 * (*store).state_bytes());
    EXPECT_GT((*writer)->host_bytes(), 0);
    const auto loaded = LoadNewestCheckpoint(directory.path(), config, *store, files);
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    EXPECT_EQ(store.Differences(1), 0);
    EXPECT_EQ(loaded->hash, outcome->hash);
  });
}

TEST(Checkpoint, OldOnesGoDownToKeep) {
  TemporaryDirectory directory;
  SaveAll(directory.path(), SmallestModel(), {1, 1, 2}, {{50, 1}, {100, 2}, {150, 3}, {200, 4}}, 2);
  EXPECT_THAT(*PosixFiles().List(directory.path()), ElementsAre("step-00000150", "step-00000200"));
}

TEST(Checkpoint, AStepSavedAgainReplacesTheOneBefore) {
  TemporaryDirectory directory;
  const ModelConfig config = SmallestModel();
  SaveAll(directory.path(), config, {1, 1, 2}, {{50, 1}, {100, 2}});
  SaveAll(directory.path(), config, {2, 1, 1}, {{100, 3}});
  EXPECT_THAT(*PosixFiles().List(directory.path()), ElementsAre("step-00000050", "step-00000100"));
  RunOnMesh({1, 1, 1}, [&](Mesh& mesh) {
    TrainingStore store(mesh, config);
    EXPECT_TRUE(LoadNewestCheckpoint(directory.path(), config, *store).ok());
    EXPECT_EQ(store.Differences(3), 0);
  });
}

// A run that went back is found where it went on, not at the later step that it had left.
TEST(Checkpoint, ALaterBranchIsTheNewest) {
  TemporaryDirectory directory;
  const ModelConfig config = SmallestModel();
  SaveAll(directory.path(), config, {1, 1, 1}, {{50, 1}, {100, 2}, {200, 3}});
  RunOnMesh({1, 1, 1}, [&](Mesh& mesh) {
    TrainingStore store(mesh, config);
    ASSERT_TRUE(LoadCheckpoint(directory.path() + "/step-00000100", config, *store).ok());
    EXPECT_EQ(store.Differences(2), 0);
    const auto writer = CheckpointWriter::Create(*store, config, {directory.path(), 2});
    EXPECT_TRUE(SaveAndWait(**writer, StateAt(100, 1)).status.ok());
    const auto loaded = LoadNewestCheckpoint(directory.path(), config, *store);
    EXPECT_EQ(loaded->state, StateAt(100, 1));
  });
  EXPECT_THAT(*PosixFiles().List(directory.path()),
              ElementsAre("step-00000050", "step-00000100-b1"));
}

void FlipBit(const std::string& path, int64_t offset) {
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  file.seekg(offset);
  const char byte = char(file.get() ^ 16);
  file.seekp(offset);
  file.put(byte);
}

// Each damage is refused by name, the checkpoint before offered, and the search for the newest says
// what it passed over. The world that loads is another than the one that wrote.
TEST(Checkpoint, DamageIsNamedAndTheOneBeforeOffered) {
  namespace fs = std::filesystem;
  const ModelConfig config = *RandomShape("tiny-mqa");
  const std::string one = ShardName(1, 4), two = ShardName(2, 4);
  struct Case {
    std::string says;
    std::function<void(const std::string& newest, const std::string& older)> damage;
  };
  const Case cases[] = {
      {two + ": damaged: bytes",
       [&](const std::string& newest, const std::string&) { FlipBit(newest + "/" + two, 5000); }},
      {two + ": damaged",
       [&](const std::string& newest, const std::string&) {
         FlipBit(newest + "/" + two, int64_t(fs::file_size(newest + "/" + two)) - 1);
       }},
      {one + ": 1000 bytes, the manifest says",
       [&](const std::string& newest, const std::string&) {
         fs::resize_file(newest + "/" + one, 1000);
       }},
      {one + ": missing",
       [&](const std::string& newest, const std::string&) { fs::remove(newest + "/" + one); }},
      {"it is the shard of rank",
       [&](const std::string& newest, const std::string&) {
         fs::rename(newest + "/" + one, newest + "/x");
         fs::rename(newest + "/" + two, newest + "/" + one);
         fs::rename(newest + "/x", newest + "/" + two);
       }},
      {two + ": it is of step 50, the checkpoint of 100",
       [&](const std::string& newest, const std::string& older) {
         fs::copy_file(older + "/" + two, newest + "/" + two, fs::copy_options::overwrite_existing);
       }},
      {"manifest.json: missing",
       [&](const std::string& newest, const std::string&) {
         fs::remove(newest + "/manifest.json");
       }},
      {"manifest.json: damaged",
       [&](const std::string& newest, const std::string&) {
         FlipBit(newest + "/manifest.json", 200);
       }},
      {"manifest.json: it is of step-00000050",
       [&](const std::string& newest, const std::string& older) {
         fs::remove_all(newest);
         fs::copy(older, newest);
       }},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.says);
    TemporaryDirectory directory;
    SaveAll(directory.path(), config, {1, 2, 2}, {{50, 1}, {100, 2}});
    const std::string newest = directory.path() + "/step-00000100";
    const std::string older = directory.path() + "/step-00000050";
    c.damage(newest, older);
    RunOnMesh({3, 1, 1}, [&](Mesh& mesh) {
      TrainingStore store(mesh, config);
      const absl::Status refused = LoadCheckpoint(newest, config, *store).status();
      EXPECT_TRUE(absl::IsDataLoss(refused)) << refused;
      EXPECT_THAT(std::string(refused.message()), HasSubstr(c.says));
      EXPECT_THAT(std::string(refused.message()), HasSubstr("; the checkpoint before is " + older));
      const auto loaded = LoadNewestCheckpoint(directory.path(), config, *store);
      ASSERT_TRUE(loaded.ok()) << loaded.status();
      EXPECT_EQ(loaded->state.step, 50);
      EXPECT_EQ(store.Differences(1), 0);
      EXPECT_THAT(loaded->refused, ElementsAre(HasSubstr(c.says)));
    });
  }
}

TEST(Checkpoint, NothingToLoadIsToldFromNothingSound) {
  TemporaryDirectory directory;
  const ModelConfig config = SmallestModel();
  SaveAll(directory.path(), config, {1, 1, 1}, {{50, 1}, {100, 2}});
  RunOnMesh({2, 1, 1}, [&](Mesh& mesh) {
    TrainingStore store(mesh, config);
    EXPECT_TRUE(absl::IsNotFound(
        LoadNewestCheckpoint(directory.path() + "/none", config, *store).status()));
    const absl::Status status =
        LoadCheckpoint(directory.path() + "/step-00000070", config, *store).status();
    EXPECT_TRUE(absl::IsNotFound(status)) << status;
    EXPECT_THAT(std::string(status.message()),
                HasSubstr("before is " + directory.path() + "/step-00000050"));
  });
  for (const char* step : {"/step-00000050", "/step-00000100"}) {
    std::filesystem::remove(directory.path() + step + "/" + ShardName(0, 1));
  }
  RunOnMesh({2, 1, 1}, [&](Mesh& mesh) {
    TrainingStore store(mesh, config);
    const absl::Status status = LoadNewestCheckpoint(directory.path(), config, *store).status();
    EXPECT_TRUE(absl::IsDataLoss(status)) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("none of the 2"));
  });
}

TEST(Checkpoint, AnotherModelOrTypeIsRefused) {
  TemporaryDirectory directory;
  const ModelConfig config = SmallestModel();
  SaveAll(directory.path(), config, {1, 1, 1}, {{50, 1}, {100, 2}});
  const auto refusal = [&](const ModelConfig& other, DType type) {
    std::string message;
    RunOnMesh({1, 1, 1}, [&](Mesh& mesh) {
      TrainingStore store(mesh, other, type);
      const absl::Status status = LoadNewestCheckpoint(directory.path(), other, *store).status();
      EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;  // older ones are no remedy
      message = std::string(status.message());
    });
    return message;
  };
  ModelConfig other = config;
  other.rope_base = 500;
  EXPECT_THAT(refusal(other, DType::kF32), HasSubstr("rope_base: 10000.0, here 500.0"));
  other = config;
  other.vocab = 7;
  EXPECT_THAT(refusal(other, DType::kF32), HasSubstr("vocab: 5, here 7"));
  EXPECT_THAT(refusal(config, DType::kF64), HasSubstr("use --compute f32"));
}

}  // namespace
}  // namespace toroid
