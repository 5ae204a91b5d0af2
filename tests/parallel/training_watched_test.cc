// A run under the stall watch: whatever takes long between steps gives life signs, and all ranks
// pass the same places.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>

#include "core/io/ticking_files.h"
#include "parallel/progress_board.h"
#include "parallel/stall_judge.h"
#include "tests/support/training_runs.h"
#include "tests/support/training_store.h"

namespace toroid {
namespace {

using std::chrono::milliseconds;

// A watch of the default patience, on a clock that the test moves.
class FakeWatch {
 public:
  explicit FakeWatch(const ProgressBoard& board) : board_(board) {}
  void Pass(milliseconds time) {
    for (; time > milliseconds(0); time -= kLook) {
      now_ += kLook;
      judge_.Look(board_.Read(), now_);
      fired_ = fired_ || judge_.Judge(now_).has_value();
    }
  }
  bool fired() const { return fired_; }

 private:
  static constexpr milliseconds kLook{500};
  const ProgressBoard& board_;
  StallJudge::Time now_{};
  StallJudge judge_{0, {"h"}, milliseconds(60000), now_};
  bool fired_ = false;
};

// A disk that takes 15 s for every call.
class SlowFiles final : public FileSystem {
 public:
  explicit SlowFiles(FakeWatch& watch) : watch_(watch) {}

  absl::StatusOr<std::unique_ptr<WritableFile>> Create(const std::string& path) override {
    auto file = Slowly(base_.Create(path));
    if (!file.ok()) return file.status();
    return std::make_unique<Writable>(*this, *std::move(file));
  }
  absl::StatusOr<std::unique_ptr<ReadableFile>> Open(const std::string& path) override {
    auto file = Slowly(base_.Open(path));
    if (!file.ok()) return file.status();
    return std::make_unique<Readable>(*this, *std::move(file));
  }
  absl::StatusOr<std::vector<std::string>> List(const std::string& directory) override {
    return Slowly(base_.List(directory));
  }
  absl::Status CreateDirectory(const std::string& path) override {
    return Slowly(base_.CreateDirectory(path));
  }
  absl::Status SyncDirectory(const std::string& path) override {
    return Slowly(base_.SyncDirectory(path));
  }
  absl::Status Rename(const std::string& from, const std::string& to) override {
    return Slowly(base_.Rename(from, to));
  }
  absl::Status RemoveFile(const std::string& path) override {
    return Slowly(base_.RemoveFile(path));
  }
  absl::Status RemoveDirectory(const std::string& path) override {
    return Slowly(base_.RemoveDirectory(path));
  }
  int64_t calls() const { return calls_; }

 private:
  struct Writable final : WritableFile {
    Writable(SlowFiles& slow, std::unique_ptr<WritableFile> file)
        : slow(slow), file(std::move(file)) {}
    absl::Status Append(absl::Span<const uint8_t> bytes) override {
      return slow.Slowly(file->Append(bytes));
    }
    absl::Status Sync() override { return slow.Slowly(file->Sync()); }
    absl::Status Close() override { return slow.Slowly(file->Close()); }
    SlowFiles& slow;
    const std::unique_ptr<WritableFile> file;
  };
  struct Readable final : ReadableFile {
    Readable(SlowFiles& slow, std::unique_ptr<ReadableFile> file)
        : slow(slow), file(std::move(file)) {}
    int64_t size() const override { return file->size(); }
    absl::Status Read(int64_t offset, absl::Span<uint8_t> out) const override {
      return slow.Slowly(file->Read(offset, out));
    }
    SlowFiles& slow;
    const std::unique_ptr<ReadableFile> file;
  };
  template <typename Result>
  Result Slowly(Result result) {
    ++calls_;
    watch_.Pass(milliseconds(15000));
    return result;
  }

  FileSystem& base_ = PosixFiles();
  FakeWatch& watch_;
  int64_t calls_ = 0;
};

// A checkpoint is written and loaded on a slow disk: no stall; without life signs it is one.
TEST(TrainingWatched, ASlowDiskIsNoStall) {
  const ModelConfig config = SmallestModel();
  for (const bool ticking : {true, false}) {
    for (const bool loads : {false, true}) {
      TemporaryDirectory directory;
      RunOnMesh({1, 1, 1}, [&](Mesh& mesh) {
        TrainingStore store(mesh, config);
        store.Fill(1);
        ProgressBoard board;
        FakeWatch watch(board);
        SlowFiles slow(watch);
        TickingFiles files(slow, ticking ? board.ticks() : nullptr);
        board.At("checkpoint");
        const auto writer = CheckpointWriter::Create(*store, config, {directory.path()},
                                                     loads ? PosixFiles() : files);
        ASSERT_TRUE(writer.ok()) << writer.status();
        ASSERT_TRUE((*writer)->Save({}).ok());
        EXPECT_TRUE((*writer)->Wait()->status.ok());
        if (loads) {
          EXPECT_TRUE(LoadNewestCheckpoint(directory.path(), config, *store, files).ok());
        }
        EXPECT_GT(slow.calls(), 5);
        EXPECT_EQ(watch.fired(), !ticking) << loads;
      });
    }
  }
}

class WatchedRunTest : public TrainingRunTest {};

// Text is tokenised, steps are made, a checkpoint is written, and loaded by the next launch: all
// ranks pass the same places in the same order, which is how the watch finds the one behind.
TEST_F(WatchedRunTest, AllRanksPassTheSamePlaces) {
  auto tokenizer = Tokenizer::FromSource(source_->tokenizer);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  tokenizer_ = std::move(*tokenizer);
  constexpr int64_t kDocuments = 60;
  std::string text;
  for (int64_t i = 0; i < kDocuments; ++i) {
    text += "{\"text\": \"All that is gold does not glitter.\"}\n";
  }
  TrainingPlan plan = Plan({2, 1, 1}, 0);
  plan.data.paths = {directory_.Write("some.jsonl", text)};
  for (int launch = 0; launch < 2; ++launch) {
    std::vector<std::vector<std::string>> places(2);
    std::vector<int64_t> ticks(2);
    RunOnRanks(2, [&](std::unique_ptr<Communicator> world) {
      const size_t rank = size_t(world->rank());
      ProgressBoard board;
      auto run = TrainingRun::Create(std::move(world), source_, tokenizer_, plan, {}, &board);
      ASSERT_TRUE(run.ok()) << run.status();
      const auto result = (*run)->Run();
      ASSERT_TRUE(result.ok()) << result.status();
      ProgressBoard::Place last[ProgressBoard::kPlaces];
      for (int64_t i = board.LastPlaces(last); i > 0; --i) {
        places[rank].push_back(last[i - 1].op);
      }
      ticks[rank] = board.Read().ticks;
    });
    EXPECT_EQ(places[0], places[1]);
    EXPECT_THAT(places[0], testing::IsSupersetOf({"load", "tokenise", "resume", "checkpoint"}));
    if (launch == 0) {
      EXPECT_GE(ticks[0] + ticks[1], kDocuments);
    }
  }
}

// A path that is wrong is told before a model of many GB is loaded.
TEST_F(WatchedRunTest, DataThatIsMissingIsToldBeforeTheModelIsLoaded) {
  for (const bool missing : {true, false}) {
    TrainingPlan plan = Plan({1, 1, 1}, 1);
    if (missing) plan.data.paths = {directory_.path() + "/none.tokens"};
    ProgressBoard board;
    RunOnRanks(1, [&](std::unique_ptr<Communicator> world) {
      const auto run = TrainingRun::Create(std::move(world), source_, tokenizer_, plan, {}, &board);
      EXPECT_EQ(run.ok(), !missing);
    });
    EXPECT_EQ(board.Read().sequence > 0, !missing);
  }
}

}  // namespace
}  // namespace toroid
