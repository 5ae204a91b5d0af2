// What must survive the controller: jobs, idempotency keys, events, epochs, the view, which pods
// drain.
//
// SQLite in WAL mode with synchronous=FULL: a call that returned OK is on disk. One controller at a
// time: Open takes a lock on the file for as long as the store lives. Specs and states are opaque
// bytes here (the caller's encoding). Not thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

struct sqlite3;

namespace toroid {

struct StoredJob {
  std::string id;
  uint64_t order = 0;  // of submission, ascending
  std::string request_id;
  std::string spec;
  int state = 0;
  std::string status;
  uint64_t sequence = 0;  // of the last event
};

struct StoredEvent {
  uint64_t sequence = 0;
  int64_t time_us = 0;
  std::string status;
};

// The last checkpoint of a job that was committed.
struct StoredCheckpoint {
  uint64_t epoch = 0;
  int64_t step = 0;
  uint64_t hash = 0;
};

class JobStore {
 public:
  // FailedPrecondition: another process holds it, or a newer version wrote it.
  static absl::StatusOr<std::unique_ptr<JobStore>> Open(const std::string& path);
  ~JobStore();
  JobStore(const JobStore&) = delete;
  JobStore& operator=(const JobStore&) = delete;

  // Adds a job with its first event (sequence 1). AlreadyExists: the id or the request_id is known.
  absl::Status Insert(const StoredJob& job, int64_t time_us);
  // A new state and its event, in one transaction. NotFound.
  absl::Status Update(const std::string& id, int state, const std::string& status,
                      uint64_t sequence, int64_t time_us);
  // A checkpoint, and the state that names it, in one transaction, without an event. A compare and
  // set: FailedPrecondition if a later epoch has committed one. NotFound.
  absl::Status Commit(const std::string& id, const StoredCheckpoint& checkpoint,
                      const std::string& status);
  absl::Status Delete(const std::string& id);

  absl::StatusOr<StoredJob> Get(const std::string& id);                // NotFound
  absl::StatusOr<StoredJob> GetByRequest(const std::string& request);  // NotFound
  // Newest first, at most `limit`, of `states` (empty: all), with order < before (0: from the end).
  absl::StatusOr<std::vector<StoredJob>> List(const std::vector<int>& states, uint64_t before,
                                              int limit);
  absl::StatusOr<std::vector<StoredEvent>> Events(const std::string& id, uint64_t from_sequence);
  absl::StatusOr<StoredCheckpoint> Committed(const std::string& id);  // NotFound: none yet

  // More than ever before for this job on any pod, durable before it is returned.
  absl::StatusOr<uint64_t> BumpEpoch(const std::string& job, const std::string& pod);
  // The same for the membership of pods.
  absl::StatusOr<uint64_t> BumpView();

  // Whether a pod of this name drains.
  absl::Status SetDraining(const std::string& pod, bool draining);
  absl::StatusOr<std::vector<std::string>> Draining();  // by name

 private:
  explicit JobStore(sqlite3* db) : db_(db) {}
  sqlite3* db_;
};

}  // namespace toroid
