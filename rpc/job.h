// What clients, the controller and agents say to each other, as plain structs: jobs, requests,
// pods.
//
// The controller's logic and the launcher know only these; convert.{h,cc} alone knows their
// messages in proto/. Durations are absl's; times are the controller's wall clock.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "parallel/request.h"
#include "parallel/training_run.h"

namespace toroid {

// A mesh as asked for: 0 = not said (1), kRest = as many as are left. Nothing said at all: all
// slots of the pod on `ring`.
struct MeshWish {
  static constexpr int64_t kRest = -1;
  int64_t data = 0, ring = 0, tensor = 0;
  bool operator==(const MeshWish&) const = default;
};
using PodMeshes = std::map<std::string, MeshWish>;  // by the pod's name
// What is asked for of the pod of this name: its own, or else `mesh`.
const MeshWish& MeshOn(const std::string& pod, const MeshWish& mesh, const PodMeshes& pod_meshes);
// "ring=2,tensor=*", "" or "data=1,ring=2". InvalidArgument says what could not be read.
absl::StatusOr<MeshWish> ParseMeshWish(absl::string_view text);
// The mesh on a pod of `slots`. InvalidArgument or ResourceExhausted names both numbers.
absl::StatusOr<MeshShape> ResolveMesh(const MeshWish& wish, int64_t slots);

// A text for a model: exactly one of text, ids, file. Rank 0 of the world turns it into ids.
struct PromptSpec {
  enum class Kind { kText, kIds, kFile };
  Kind kind = Kind::kText;
  std::string text;          // UTF-8
  std::vector<int32_t> ids;  // used as they are: nothing is added
  std::string file;          // read by the world, under the agent's roots
  bool chat = false;         // a user's message: put through the model's chat template
  std::string system;        // with chat: the system's message, if not empty
  bool add_special = true;   // what the tokenizer's post-processor adds (BOS); no BOS twice
  bool operator==(const PromptSpec&) const = default;
};

struct GenerateTask {
  PromptSpec prompt;
  std::vector<PromptSpec> more_prompts;  // answered after it
  GenerateRequest request;               // its ids are made from the prompts (SetPromptIds)
};
struct ScoreTask {
  PromptSpec text;
  ScoreRequest request;  // ids is made from `text`
  int64_t limit = 0;     // first so many tokens; 0: all
};
struct VerifyTask {
  std::optional<PromptSpec> text;  // none: ids spread over the vocabulary by a fixed rule
  int64_t tokens = 256;            // the first so many
  bool full = false;               // all tokens of the text, or the whole context
  VerifyRequest request;           // ids is made from the above
};
struct TrainTask {
  // Mesh, layout, compute and threads are those of the placement, directory and cache those of
  // TrainingJob (training_job.h).
  TrainingPlan plan;
  double peak_flops = 0;      // of one rank, FLOP/s; 0: as found at the start
  bool export_model = false;  // at the end, as a Hugging Face directory
};
struct TrainResult {
  TrainingResult run;
  MeshShape mesh;  // of a pod
  int64_t pods = 1;
  double seconds = 0;         // in the steps of the last launch
  double tokens_per_s = 0;    // over them
  std::optional<double> mfu;  // model FLOPs over peak FLOPs; none if either is not known
  int64_t peak_bytes = 0;     // accounted, of rank 0
  std::string directory;      // of the run
};
// A world for the programs of others: of jobs and requests whose placement says on_pool.
struct PoolTask {};
using Task = std::variant<GenerateTask, ScoreTask, TrainTask, PoolTask>;
using TaskResult =
    std::variant<std::monostate, GenerateResult, ScoreResult, TrainResult, VerifyResult>;

// What a pod has to do with the other pods of its job, in its last launch.
struct ExchangeProgress {
  int64_t taking_part = 0;  // pods
  int64_t staleness = 0;    // the most steps that lay between sending and applying
  int64_t bytes_sent = 0;   // of payloads, by all ranks
  double wait_share = 0;    // of the time in steps, in which the rank that waited longest did so
  int64_t hash_step = 0;    // steps that were done when `hash` was taken; 0: none was
  uint64_t hash = 0;        // of what all pods have alike: the weights, or the outer weights
  int64_t dropped = 0;  // messages that came too late, or of a launch that was lost, of all ranks
  int64_t hurried = 0;  // steps of which it left out its part of the batch, to reach the others
  int64_t reconnects = 0;  // streams to other pods that were cut and went on, of all ranks
};

// How far a task is.
struct TaskProgress {
  std::string phase;  // as parallel/request.h has them; "tokenise" in bytes, "train" in steps
  int64_t done = 0, total = 0;
  std::optional<double> loss{};  // of the last step, if it has one
  double tokens_per_s = 0;       // of the last step
  std::optional<ExchangeProgress> exchange{};
};

// Where and how a model runs.
struct Placement {
  LoadRequest load;  // load.mesh is resolved from `mesh`
  MeshWish mesh;
  std::string pod;      // empty: any
  std::string on_pool;  // name or id of a pool job, in whose world it runs; empty: in its own
  // Of a job on several pods: those that take part in any case, with another mesh.
  PodMeshes pod_meshes = {};
};

struct JobSpec {
  std::string name;
  Device device = Device::kAuto;
  // Under a root, "{name}" is the job's name: the world writes result.json there, or the training
  // run; empty: nowhere.
  std::string output_dir;
  Placement placement;
  Task task;
  std::optional<VerifyTask> verify;  // of a job that trains: its first step is verified instead
  int64_t max_restarts = 0;
  absl::Duration active_deadline = absl::InfiniteDuration();  // from the first start
  int64_t priority = 0;                                       // higher first
};

// output_dir with `name` for "{name}": "runs/{name}" is "runs/book".
std::string OutputDirectory(const JobSpec& spec, const std::string& name);

enum class JobState { kQueued, kStarting, kRunning, kRestarting, kSucceeded, kFailed, kCancelled };
const char* ToString(JobState state);  // "QUEUED" ...
bool IsTerminal(JobState state);

// How a world ended, as far as known: -1 and empty are unknown.
struct WorldExit {
  int exit_code = -1;  // mpirun's; -1 if it was ended by a signal
  int signal = 0;      // of mpirun, or 128 + n decoded
  int rank = -1;       // the first that failed
  std::string host;
  std::string message;  // a sentence
};

// A durable checkpoint of a job that trains, as the store has committed it.
struct JobCheckpoint {
  uint64_t epoch = 0;  // of the launch that told of it
  int64_t step = 0;    // steps done
  std::string path;
  uint64_t hash = 0;     // of its manifest
  std::string pod = {};  // the agent whose world told of it: it lies there
};

// One pod of a job that trains on several, in its last launch.
struct JobPod {
  std::string pod;  // WAITING: where it was before; empty: nowhere
  MeshShape mesh;
  uint64_t epoch = 0;
  std::optional<TaskProgress> progress;
  std::optional<JobCheckpoint> checkpoint;  // the last one of this pod, of whichever launch
  // STARTING, TRAINING, DONE; WAITING, LOST: the others go on; JOINING: launched beside them.
  std::string state;
};

// What all pods of a job that train now, or have ended, have told alike.
struct PodsAgreement {
  int64_t checkpoint_step = 0;  // of the newest checkpoint that all have; 0: none
  int64_t hash_step = 0;        // the newest steps after which all have told a hash; 0: none
  uint64_t hash = 0;            // then, of the first pod
  bool hashes_differ = false;   // then another pod's is another one
};

// The present state of a job.
struct JobStatus {
  std::string id;
  std::string name;
  JobState state = JobState::kQueued;
  std::string reason;   // machine-readable, CamelCase: "RankFailed", "Cancelled", ..; may be empty
  std::string message;  // a sentence
  std::string pod;
  MeshShape mesh;
  uint64_t epoch = 0;                     // launches so far
  int64_t restarts = 0;                   // of those, after a failure
  int64_t restarts_since_checkpoint = 0;  // of those, since a checkpoint of a later step came
  int64_t priority = 0;
  absl::Time created, started, ended;       // InfinitePast: not yet
  WorldExit exit;                           // of the last world
  TaskResult result;                        // once SUCCEEDED
  std::optional<JobCheckpoint> checkpoint;  // the last one that was committed
  std::optional<TaskProgress> progress;     // of the last launch; not kept in the store
  std::vector<JobPod> pods;                 // of a job that trains on several
  PodsAgreement agreement;                  // the same
};

struct JobEvent {
  uint64_t sequence = 0;  // of this job, from 1, without gaps; that of the last one: progress alone
  absl::Time time;
  JobStatus status;  // after the event
};

struct JobPage {
  std::vector<JobStatus> jobs;
  std::string next_page_token;  // empty: the last page
};

struct LogQuery {
  std::string job;
  uint64_t from_offset = 0;  // bytes of this job's log
  bool follow = false;       // until the job ends
  std::vector<int> ranks;    // empty: all, and mpirun itself
};
struct LogLine {
  uint64_t next_offset = 0;  // where to go on after this line
  int rank = -1;             // -1: mpirun
  bool error = false;        // stderr
  std::string text;          // without the line's end
};

struct PodStatus {
  std::string name;
  std::string host;
  int slots = 0;
  std::string state;  // "READY", "BUSY", "DRAINING", "LOST"
  std::string job;    // whose world it runs, if any
  std::string model;  // loaded in a kept world, if any
  uint64_t epoch = 0;
  absl::Time last_seen;
};

struct ModelStatus {
  std::string name;
  int64_t context = 0, vocab = 0;
  MeshShape mesh;
  std::string pod;
  bool has_chat_template = false;
};

// A request to Inference: it uses the kept world of the same placement, or starts one.
struct InferenceRequest {
  Placement placement;
  std::variant<GenerateTask, ScoreTask, VerifyTask> task;
  absl::Duration keep_alive = absl::Minutes(5);  // of the world, after its last request
  absl::Duration timeout = absl::Hours(1);
};

// First answer to a request: where it runs.
struct Accepted {
  uint64_t request = 0;
  std::string pod;
  MeshShape mesh;
  bool kept = false;  // the world already has the model
};

struct TokenizeRequest {
  Placement placement;
  std::string text;
  bool special = true;  // special tokens in the text are recognised
  absl::Duration keep_alive = absl::Minutes(5);
};
struct TokenizeResult {
  std::vector<int32_t> ids;
  std::vector<std::string> pieces;
};

struct Root {
  std::string name;
  std::string dir;
};

}  // namespace toroid
