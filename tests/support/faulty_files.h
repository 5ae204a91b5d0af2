// A file system that stops at the n-th call, is full, cannot write, or loses what was not synced:
// the real one's calls, decorated. One is shared by the ranks of a test. Thread-safe.
#pragma once

#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "core/io/file_system.h"

namespace toroid {

class FaultyFiles final : public FileSystem {
 public:
  // `graveyard`: an existing directory on the same disk, where removed files wait for LosePower.
  FaultyFiles(FileSystem& base, std::string graveyard);
  ~FaultyFiles() override;

  // Calls that change something and were made so far, failed ones too.
  int64_t calls();
  // The writer is killed at the n-th such call from now on, 1 the next: half of a write is done,
  // another call is not begun, and all calls after it fail.
  void KillAt(int64_t call);
  // The n-th from now on fails and is not made; those after it work.
  void FailAt(int64_t call);
  // Files may grow by so many bytes more, those removed not counted; -1: without end.
  void SetSpace(int64_t bytes);
  // Writes wait until Release. The first to wait is told of by WaitForWriter.
  void Hold();
  void WaitForWriter();
  void Release();
  // Faults are over.
  void Revive();
  // From now on a sync says that all is well and does nothing: the control of tests with LosePower.
  void LieAboutSyncs();
  // The machine loses its power and comes back: what was not synced is undone, and faults are over.
  // REQUIRES: no call under way.
  void LosePower();

  absl::StatusOr<std::unique_ptr<WritableFile>> Create(const std::string& path) override;
  absl::StatusOr<std::unique_ptr<ReadableFile>> Open(const std::string& path) override;
  absl::StatusOr<std::vector<std::string>> List(const std::string& directory) override;
  absl::Status CreateDirectory(const std::string& path) override;
  absl::Status SyncDirectory(const std::string& path) override;
  absl::Status Rename(const std::string& from, const std::string& to) override;
  absl::Status RemoveFile(const std::string& path) override;
  absl::Status RemoveDirectory(const std::string& path) override;

 private:
  class File;
  struct Content {
    int64_t size = 0, synced = 0;
  };
  // A change of a directory that is not durable yet.
  struct Change {
    enum class Kind { kFile, kDirectory, kRename, kRemoveFile, kRemoveDirectory };
    Kind kind;
    std::string directory, path;  // kRename: the new path
    std::string other;            // kRename: the old path; kRemoveFile: in the graveyard
  };

  // Counts a call. Not OK: it fails.
  absl::Status Admit(const std::string& path);
  absl::Status Append(const std::shared_ptr<Content>& content, const std::string& path,
                      WritableFile& file, absl::Span<const uint8_t> bytes);
  // What was written to `from` lies at `to` from now on.
  void Follow(const std::string& from, const std::string& to);
  void Undo(const Change& change);
  void EndFaults();

  FileSystem& base_;
  const std::string graveyard_;
  std::mutex mutex_;
  std::condition_variable changed_;
  int64_t calls_ = 0, kill_at_ = -1, fail_at_ = -1, space_ = -1, buried_ = 0;
  bool dead_ = false, held_ = false, waiting_ = false, lying_ = false;
  std::vector<Change> changes_;
  std::map<std::string, std::shared_ptr<Content>> contents_;  // by present path
};

}  // namespace toroid
