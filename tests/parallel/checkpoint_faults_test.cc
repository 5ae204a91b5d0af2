// What a checkpoint is when its writer is killed, the power fails, the disk is full or broken, or
// hosts do not share the directory.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "absl/strings/str_cat.h"
#include "core/io/checkpoint_directory.h"
#include "core/io/checkpoint_reader.h"
#include "parallel/checkpoint.h"
#include "tests/support/faulty_files.h"
#include "tests/support/model_files.h"
#include "tests/support/run_on_ranks.h"
#include "tests/support/training_store.h"

namespace toroid {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr uint64_t kOld = 1, kNew = 2, kLater = 3;  // versions of the values
constexpr int64_t kOldStep = 50, kLaterStep = 150;

TrainingState StateAt(int64_t step, uint64_t version) {
  TrainingState state;
  state.step = step;
  state.numbers["version"] = {double(version)};
  return state;
}

CheckpointOutcome SaveAndWait(CheckpointWriter& writer, const TrainingState& state) {
  CheckpointOutcome outcome;
  outcome.status = writer.Save(state);
  if (outcome.status.ok()) outcome = *writer.Wait();
  return outcome;
}

// The rank that plants a fault does it while the others wait.
void OnRankZero(Mesh& mesh, const std::function<void()>& work) {
  mesh.Agree(0);
  if (mesh.rank() == 0) work();
  mesh.Agree(0);
}

// One run in a directory of its own: a sound checkpoint of kOldStep, then one whose writing meets
// what `plant` plants.
struct Story {
  explicit Story(int64_t keep = 1) : keep(keep) {}

  // Saves the second checkpoint. Returns how it ended.
  absl::Status Write(int64_t step, const std::function<void()>& plant) {
    absl::Status status;
    RunOnMesh({2, 1, 1}, [&](Mesh& mesh) {
      TrainingStore store(mesh, config);
      const auto writer = CheckpointWriter::Create(*store, config, {directory.path(), keep}, files);
      store.Fill(kOld);
      const CheckpointOutcome old = SaveAndWait(**writer, StateAt(kOldStep, kOld));
      EXPECT_TRUE(old.status.ok()) << old.status;
      int64_t before = 0;
      OnRankZero(mesh, [&] {
        plant();
        before = files.calls();
      });
      store.Fill(kNew);
      const CheckpointOutcome outcome = SaveAndWait(**writer, StateAt(step, kNew));
      OnRankZero(mesh, [&] {
        status = outcome.status;
        calls = files.calls() - before;
      });
      EXPECT_EQ(outcome.status, status);  // the same on all ranks
    });
    return status;
  }

  // Loads the newest on another mesh: the version of all its values. What was passed over fails.
  uint64_t Load() {
    uint64_t version = 0;
    RunOnMesh({1, 1, 2}, [&](Mesh& mesh) {
      TrainingStore store(mesh, config);
      const auto loaded = LoadNewestCheckpoint(directory.path(), config, *store, files);
      ASSERT_TRUE(loaded.ok()) << loaded.status();
      EXPECT_TRUE(loaded->refused.empty()) << loaded->refused[0];
      const uint64_t found = uint64_t(loaded->state.numbers.at("version")[0]);
      EXPECT_EQ(store.Differences(found), 0);
      OnRankZero(mesh, [&] { version = found; });
    });
    return version;
  }

  // Whatever is called a checkpoint is one, whole.
  void VerifyAll() {
    for (const CheckpointEntry& entry : Loadable(*ListCheckpoints(files, directory.path()))) {
      const auto reader = CheckpointReader::Open(files, directory.path() + "/" + entry.name);
      ASSERT_TRUE(reader.ok()) << reader.status();
      EXPECT_TRUE((*reader)->Verify().ok()) << (*reader)->Verify();
    }
  }

  // The next launch of the run saves once more and leaves nothing else, but what `keep` keeps.
  void GoOn() {
    RunOnMesh({1, 2, 1}, [&](Mesh& mesh) {
      TrainingStore store(mesh, config);
      store.Fill(kLater);
      const auto writer =
          CheckpointWriter::Create(*store, config, {directory.path(), keep, /*epoch=*/1}, files);
      const CheckpointOutcome outcome = SaveAndWait(**writer, StateAt(kLaterStep, kLater));
      EXPECT_TRUE(outcome.status.ok()) << outcome.status;
      EXPECT_TRUE(outcome.removal.ok()) << outcome.removal;
    });
    EXPECT_EQ(Load(), kLater);
    if (keep == 1) {
      EXPECT_THAT(Names(), ElementsAre("step-00000150"));
    }
  }

  std::vector<std::string> Names() { return *files.List(directory.path()); }

  const int64_t keep;
  const ModelConfig config = SmallestModel();
  TemporaryDirectory directory, graveyard;
  FaultyFiles files{PosixFiles(), graveyard.path()};
  int64_t calls = 0;  // of the second Save
};

// The writer is killed at every call of a Save that replaces an older checkpoint, and, in turn, the
// process alone dies or the whole machine: the old or the new one is found, whole, and the new one
// if Save had said that it is durable.
void KillAtEveryCall(int64_t step, bool power) {
  Story sound;
  ASSERT_TRUE(sound.Write(step, [] {}).ok());
  const int64_t total = sound.calls;
  EXPECT_GT(total, 20);
  std::set<uint64_t> found;
  for (int64_t call = 1; call <= total + 1; ++call) {
    SCOPED_TRACE(absl::StrCat("killed at call ", call, " of ", total));
    Story story;
    const absl::Status status = story.Write(step, [&] { story.files.KillAt(call); });
    if (power) {
      story.files.LosePower();
    } else {
      story.files.Revive();
    }
    const uint64_t version = story.Load();
    EXPECT_TRUE(version == kOld || version == kNew);
    if (status.ok()) {
      EXPECT_EQ(version, kNew);
    }
    found.insert(version);
    story.VerifyAll();
    story.GoOn();
  }
  EXPECT_THAT(found, ElementsAre(kOld, kNew));
}

TEST(CheckpointFaults, KilledAtEveryCall) { KillAtEveryCall(100, false); }
TEST(CheckpointFaults, PowerLostAtEveryCall) { KillAtEveryCall(100, true); }
TEST(CheckpointFaults, KilledAtEveryCallOverTheSameStep) { KillAtEveryCall(kOldStep, false); }
TEST(CheckpointFaults, PowerLostAtEveryCallOverTheSameStep) { KillAtEveryCall(kOldStep, true); }

// Control: a disk that lies about syncs loses what was said to be durable, and the test sees it.
TEST(CheckpointFaults, WithoutSyncsADurableCheckpointIsLost) {
  Story story;
  EXPECT_TRUE(story.Write(100, [&] { story.files.LieAboutSyncs(); }).ok());
  story.files.LosePower();
  EXPECT_EQ(story.Load(), kOld);
}

// Any one call fails and the next ones work: an error that is told or a checkpoint that is whole,
// and a run that goes on saving.
TEST(CheckpointFaults, AnErrorAtAnyCallStopsNothing) {
  Story sound(2);
  ASSERT_TRUE(sound.Write(100, [] {}).ok());
  int64_t failed = 0;
  for (int64_t call = 1; call <= sound.calls; ++call) {
    SCOPED_TRACE(absl::StrCat("failed at call ", call, " of ", sound.calls));
    Story story(2);
    const absl::Status status = story.Write(100, [&] { story.files.FailAt(call); });
    if (status.ok()) {
      EXPECT_EQ(story.Load(), kNew);
    } else {
      ++failed;
      EXPECT_THAT(std::string(status.message()), HasSubstr("planted I/O error"));
      EXPECT_EQ(story.Names()[0], "step-00000050");
      story.Load();
    }
    story.GoOn();
  }
  EXPECT_GT(failed, 10);
}

TEST(CheckpointFaults, AFullDiskKeepsTheLastGoodOne) {
  Story sound(2);
  ASSERT_TRUE(sound.Write(100, [] {}).ok());
  int64_t failed = 0;
  for (int64_t space = 0; space < 40000; space = space * 2 + 1) {
    SCOPED_TRACE(absl::StrCat(space, " bytes"));
    Story story(2);
    const absl::Status status = story.Write(100, [&] { story.files.SetSpace(space); });
    if (!status.ok()) {
      ++failed;
      EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
      EXPECT_THAT(std::string(status.message()), HasSubstr("No space left"));
      EXPECT_THAT(story.Names(), ElementsAre("step-00000050"));  // the partial one is removed
      EXPECT_EQ(story.Load(), kOld);
    }
    story.files.SetSpace(-1);
    story.GoOn();
  }
  EXPECT_GT(failed, 5);
  EXPECT_LT(failed, 16);
}

// A host whose directory of this name is another one.
class OtherDirectory final : public FileSystem {
 public:
  OtherDirectory(std::string shared, std::string own, bool makes_directories)
      : shared_(std::move(shared)), own_(std::move(own)), makes_directories_(makes_directories) {}

  absl::StatusOr<std::unique_ptr<WritableFile>> Create(const std::string& path) override {
    if (makes_directories_) {
      const std::string here = Here(path);
      base_.CreateDirectory(here.substr(0, here.rfind('/'))).IgnoreError();
    }
    return base_.Create(Here(path));
  }
  absl::StatusOr<std::unique_ptr<ReadableFile>> Open(const std::string& path) override {
    return base_.Open(Here(path));
  }
  absl::StatusOr<std::vector<std::string>> List(const std::string& directory) override {
    return base_.List(Here(directory));
  }
  absl::Status CreateDirectory(const std::string& path) override {
    return base_.CreateDirectory(Here(path));
  }
  absl::Status SyncDirectory(const std::string& path) override {
    return base_.SyncDirectory(Here(path));
  }
  absl::Status Rename(const std::string& from, const std::string& to) override {
    return base_.Rename(Here(from), Here(to));
  }
  absl::Status RemoveFile(const std::string& path) override { return base_.RemoveFile(Here(path)); }
  absl::Status RemoveDirectory(const std::string& path) override {
    return base_.RemoveDirectory(Here(path));
  }

 private:
  std::string Here(const std::string& path) const { return own_ + path.substr(shared_.size()); }

  FileSystem& base_ = PosixFiles();
  const std::string shared_, own_;
  const bool makes_directories_;
};

TEST(CheckpointFaults, HostsThatDoNotShareTheDirectoryAreNamed) {
  const ModelConfig config = SmallestModel();
  for (const bool makes_directories : {false, true}) {
    TemporaryDirectory shared, own;
    OtherDirectory elsewhere(shared.path(), own.path(), makes_directories);
    RunOnMesh({2, 1, 1}, [&](Mesh& mesh) {
      const WorldHosts hosts = HostsOf(mesh.world());
      TrainingStore store(mesh, config);
      FileSystem& files = mesh.rank() == 1 ? static_cast<FileSystem&>(elsewhere) : PosixFiles();
      const auto writer = CheckpointWriter::Create(*store, config, {shared.path()}, files);
      const CheckpointOutcome outcome = SaveAndWait(**writer, StateAt(100, kNew));
      const std::string message(outcome.status.message());
      EXPECT_THAT(message, HasSubstr("rank 1 on host " + hosts.names[1]));
      EXPECT_THAT(message, HasSubstr("checkpoints must be on storage that all hosts share"));
    });
    EXPECT_TRUE(PosixFiles().List(shared.path())->empty());
  }
}

TEST(CheckpointFaults, HostsThatSeeDifferentCheckpointsAreNamed) {
  const ModelConfig config = SmallestModel();
  TemporaryDirectory shared, own;
  for (const std::string& directory : {shared.path(), own.path()}) {
    RunOnMesh({1, 1, 1}, [&](Mesh& mesh) {
      TrainingStore store(mesh, config);
      const auto writer = CheckpointWriter::Create(*store, config, {directory});
      EXPECT_TRUE(SaveAndWait(**writer, StateAt(100, kNew)).status.ok());
    });
  }
  OtherDirectory elsewhere(shared.path(), own.path(), false);
  RunOnMesh({2, 1, 1}, [&](Mesh& mesh) {
    TrainingStore store(mesh, config);
    FileSystem& files = mesh.rank() == 1 ? static_cast<FileSystem&>(elsewhere) : PosixFiles();
    const absl::Status status = LoadNewestCheckpoint(shared.path(), config, *store, files).status();
    EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("rank 1 on host"));
  });
}

// A launch that lives on after it was given up commits nothing over the one that took its place.
TEST(CheckpointFaults, OfTwoLaunchesTheLaterOneCommits) {
  const ModelConfig config = SmallestModel();
  TemporaryDirectory directory;
  RunOnMesh({1, 1, 1}, [&](Mesh& mesh) {
    TrainingStore store(mesh, config);
    const auto launch = [&](int64_t epoch) {
      return *CheckpointWriter::Create(*store, config, {directory.path(), 4, epoch});
    };
    const auto first = launch(1);
    EXPECT_TRUE(SaveAndWait(*first, StateAt(100, kOld)).status.ok());
    const auto second = launch(2);
    EXPECT_TRUE(SaveAndWait(*first, StateAt(110, kOld)).status.ok());  // control: not yet
    EXPECT_TRUE(SaveAndWait(*second, StateAt(105, kNew)).status.ok());
    const absl::Status late = SaveAndWait(*first, StateAt(120, kOld)).status;
    EXPECT_TRUE(absl::IsFailedPrecondition(late)) << late;
    EXPECT_THAT(std::string(late.message()), HasSubstr("a later launch, of epoch 2"));
    EXPECT_THAT(*PosixFiles().List(directory.path()),
                ElementsAre("step-00000100", "step-00000105", "step-00000110"));
    EXPECT_TRUE(SaveAndWait(*second, StateAt(115, kNew)).status.ok());
    // Another job, whose epochs begin anew, may take the directory over.
    EXPECT_TRUE(SaveAndWait(*launch(1), StateAt(130, kNew)).status.ok());
  });
}

// Whichever rank sees nothing: not NotFound, which would begin the run anew over its checkpoints.
TEST(CheckpointFaults, ARankThatSeesNoCheckpointIsNamed) {
  const ModelConfig config = SmallestModel();
  TemporaryDirectory shared, own;
  RunOnMesh({1, 1, 1}, [&](Mesh& mesh) {
    TrainingStore store(mesh, config);
    const auto writer = CheckpointWriter::Create(*store, config, {shared.path()});
    EXPECT_TRUE(SaveAndWait(**writer, StateAt(100, kNew)).status.ok());
  });
  const std::string mounts[] = {own.path(), own.path() + "/none"};
  for (const std::string& mount : mounts) {
    OtherDirectory elsewhere(shared.path(), mount, false);
    for (const int blind : {0, 1, 2}) {  // 2: none, the control
      RunOnMesh({2, 1, 1}, [&](Mesh& mesh) {
        TrainingStore store(mesh, config);
        FileSystem& files =
            mesh.rank() == blind ? static_cast<FileSystem&>(elsewhere) : PosixFiles();
        const absl::Status status =
            LoadNewestCheckpoint(shared.path(), config, *store, files).status();
        if (blind == 2) {
          EXPECT_TRUE(status.ok()) << status;
          return;
        }
        EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
        EXPECT_THAT(std::string(status.message()), HasSubstr(shared.path()));
        EXPECT_THAT(std::string(status.message()), HasSubstr(absl::StrCat("rank ", blind, " on")));
      });
    }
  }
}

}  // namespace
}  // namespace toroid
