// The words between the controller's logic and its agents, worlds and clients, as plain structs.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "rpc/job.h"

namespace toroid {

// A launch. `epoch` counts the launches of one pod of one job and never repeats; a message whose
// epoch is below that of the pod's present launch is dropped and counted. `view` counts changes of
// the membership of pods.
struct WorldId {
  std::string job;
  uint64_t epoch = 0;
  uint64_t view = 0;
  bool operator==(const WorldId& other) const { return job == other.job && epoch == other.epoch; }
};

// --- agents
// ---------------------------------------------------------------------------------------
// A world that an agent holds, and what its rank 0 shows when it attaches.
struct HeldWorld {
  WorldId id;
  std::string credential;
};

struct PodRegistration {
  std::string pod, host;
  int slots = 0;
  std::string version;
  uint64_t incarnation = 0;  // of the agent's process
  std::vector<HeldWorld> running;
};

struct LaunchOrder {
  WorldId world;
  int ranks = 1;
  std::string credential;
  std::string model;  // checked before anything is started; empty: of a pool
};

// Orders to one agent. Called under the controller's lock: must neither block nor call back.
struct AgentLink {
  std::function<void(const LaunchOrder&)> launch;
  std::function<void(const WorldId&, const std::string& reason)> stop;
};

// --- worlds
// ---------------------------------------------------------------------------------------
struct TokenizeTask {
  std::string text;
  bool special = true;
};
struct DetokenizeTask {
  std::vector<int32_t> ids;
};
using WorldTask =
    std::variant<GenerateTask, ScoreTask, TrainTask, VerifyTask, TokenizeTask, DetokenizeTask>;
struct LoadTask {
  LoadRequest load;
};
// Loads its model for itself.
struct TrainOrder {
  JobSpec spec;                // its placement is resolved
  int64_t pod = 0;             // of the job's
  bool joins = false;          // the others train already
  int64_t committed_step = 0;  // of the newest checkpoint that is known to be durable; 0: none is
  std::string committed_path;  // its, as clients are told
};
struct ExitTask {};

// What a program of a pool's client brings along.
struct PoolPart {
  std::string job;     // whose task it is; empty: of a request
  uint64_t epoch = 0;  // of the job's launches
  LoadRequest load;    // its model; one that trains loads for itself
};

// One numbered thing for a world to do.
struct WorldProgram {
  uint64_t number = 0;
  std::variant<LoadTask, GenerateTask, ScoreTask, TrainOrder, VerifyTask, TokenizeTask,
               DetokenizeTask, ExitTask>
      task;
  std::string output_dir;
  std::optional<PoolPart> pool{};  // of a pool: it may be sent while earlier ones run
};

struct LoadAnswer {
  ModelStatus model;
  double load_s = 0;
};
struct DetokenizeAnswer {
  std::string text;
};
using RequestResult = std::variant<GenerateResult, ScoreResult, TrainResult, VerifyResult,
                                   TokenizeResult, DetokenizeAnswer>;

using ProgressAnswer = TaskProgress;
// Where a pod of a job that trains on several listens for the others: host:port, by rank.
struct ListensAnswer {
  std::vector<std::string> addresses;
};
struct PodAddresses {
  int64_t pod = 0;     // of the job's
  uint64_t epoch = 0;  // of its launch
  std::vector<std::string> ranks;
};
// The pods of a job that take part, or are about to.
struct PodTable {
  uint64_t view = 0;
  std::vector<PodAddresses> pods;
};
// Another pod of the job is waited for and says nothing, or is slow: the launch that the teller's
// table names.
struct SilentAnswer {
  int64_t pod = 0;
  uint64_t epoch = 0;
  double slow_s = 0;  // it is heard, but was waited for so long; 0: it says nothing
};
struct WorldEnding {
  absl::Status status;  // how the loop of programs ended
};
// What comes back from a world about program `number`; a Status is the request's error.
struct WorldAnswer {
  uint64_t number = 0;
  std::variant<LoadAnswer, ProgressAnswer, JobCheckpoint, std::vector<TokenEvent>, GenerateResult,
               ScoreResult, TrainResult, VerifyResult, TokenizeResult, DetokenizeAnswer,
               ListensAnswer, SilentAnswer, absl::Status, WorldEnding>
      body;
};

struct WorkerAttachment {
  WorldId world;
  std::string pod, credential, host;
  int64_t pid = 0;
  uint64_t program = 0;  // that it is at since before this stream; 0: none
};

// How a program is to end.
enum class CancelHow {
  kNow,
  kSave  // one that trains writes a checkpoint first
};

// Orders to rank 0 of one world. As AgentLink.
struct WorldLink {
  std::function<void(const WorldProgram&)> run;
  std::function<void(uint64_t number, CancelHow how)> cancel;
  std::function<void(const PodTable&)> pods;
};

// --- clients
// --------------------------------------------------------------------------------------
struct RequestSpec {
  Placement placement;
  WorldTask task;
  absl::Duration keep_alive = absl::Minutes(5);
  absl::Duration timeout = absl::Hours(1);
};

// Called under the controller's lock, in order; `done` exactly once and last. As AgentLink.
struct RequestSink {
  std::function<void(const Accepted&)> accepted = [](const Accepted&) {};
  std::function<void(const ProgressAnswer&)> progress = [](const ProgressAnswer&) {};
  std::function<void(const std::vector<TokenEvent>&)> tokens = [](const std::vector<TokenEvent>&) {
  };
  std::function<void(const absl::StatusOr<RequestResult>&)> done;
};

// `event` for each event in order; `end` once, when the job has ended or was deleted. As AgentLink.
struct JobSink {
  std::function<void(const JobEvent&)> event = [](const JobEvent&) {};
  std::function<void(const absl::Status&)> end = [](const absl::Status&) {};
  std::function<void()> more_log = [] {};  // the job's log has grown
};

// How specs and states become bytes for the store.
struct JobCodec {
  std::function<std::string(const JobSpec&)> encode_spec;
  std::function<absl::StatusOr<JobSpec>(const std::string&)> decode_spec;
  std::function<std::string(const JobStatus&)> encode_status;
  std::function<absl::StatusOr<JobStatus>(const std::string&)> decode_status;
};

}  // namespace toroid
