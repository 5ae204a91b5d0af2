// What the launcher's client mode calls: jobs, pods and inference of one controller.
//
// Errors are absl::Status with the server's code, sentence and ErrorInfo (rpc/error_info.h);
// Unavailable means that the controller cannot be reached, Unauthenticated (TLS_REFUSED) that TLS
// keeps the two apart. Thread-safe.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "rpc/job.h"
#include "rpc/tls.h"

namespace toroid {

struct ClientOptions {
  std::string controller;                      // host:port
  absl::Duration timeout = absl::Seconds(10);  // of calls of control that do not stream
  // Of one stream of events or log lines. The next begins where it ended, once a call has shown
  // that the controller is there: a job may be watched for longer than any call may last.
  absl::Duration stream = absl::Minutes(10);
  Tls tls;
  const std::atomic<bool>* interrupt = nullptr;  // turns true: calls in flight are cancelled
};

// Called on the calling thread, in order.
struct RequestObserver {
  std::function<void(const Accepted&)> on_accepted = [](const Accepted&) {};
  std::function<void(const Progress&)> on_progress = [](const Progress&) {};
};
struct GenerateObserver : RequestObserver {
  std::function<void(const TokenEvent&)> on_token = [](const TokenEvent&) {};
};

class Client {
 public:
  virtual ~Client() = default;

  // --- jobs -------------------------------------------------------------------------------------
  // request_id makes a repeat safe: the first answer again; AlreadyExists if the spec differs.
  // Empty: a fresh one is made.
  virtual absl::StatusOr<JobStatus> SubmitJob(const JobSpec& spec,
                                              const std::string& request_id) = 0;
  virtual absl::StatusOr<JobStatus> GetJob(const std::string& id) = 0;
  // states: only these; empty: all. page_size 0: the server's choice.
  virtual absl::StatusOr<JobPage> ListJobs(const std::vector<JobState>& states, int page_size,
                                           const std::string& page_token) = 0;
  // The present state first, then every change until the job has ended or `event` returns false.
  // from_sequence > 0: every event from it on instead.
  virtual absl::Status WatchJob(const std::string& id, uint64_t from_sequence,
                                const std::function<bool(const JobEvent&)>& event) = 0;
  virtual absl::Status StreamLogs(const LogQuery& query,
                                  const std::function<bool(const LogLine&)>& line) = 0;
  virtual absl::StatusOr<JobStatus> CancelJob(const std::string& id) = 0;
  virtual absl::Status DeleteJob(const std::string& id) = 0;

  // --- pods -------------------------------------------------------------------------------------
  virtual absl::StatusOr<std::vector<PodStatus>> ListPods() = 0;
  virtual absl::StatusOr<PodStatus> GetPod(const std::string& name) = 0;
  // drain: takes no new world, and ends a kept one when it is idle; false: back to work.
  virtual absl::StatusOr<PodStatus> DrainPod(const std::string& name, bool drain) = 0;
  // Waits until the controller answers and has `count` pods that are not LOST.
  virtual absl::Status AwaitPods(int count, absl::Duration timeout) = 0;

  // --- inference --------------------------------------------------------------------------------
  // The task must be of the matching kind.
  virtual absl::StatusOr<GenerateResult> Generate(const InferenceRequest& request,
                                                  const GenerateObserver& observer) = 0;
  virtual absl::StatusOr<ScoreResult> Score(const InferenceRequest& request) = 0;
  virtual absl::StatusOr<VerifyResult> Verify(const InferenceRequest& request,
                                              const RequestObserver& observer) = 0;
  virtual absl::StatusOr<TokenizeResult> Tokenize(const TokenizeRequest& request) = 0;
  virtual absl::StatusOr<std::string> Detokenize(const Placement& placement,
                                                 const std::vector<int32_t>& ids) = 0;
  virtual absl::StatusOr<std::vector<ModelStatus>> ListModels() = 0;
  virtual absl::StatusOr<ModelStatus> GetModel(const std::string& name) = 0;
};

// Does not wait for the controller: the first call does.
std::unique_ptr<Client> NewClient(const ClientOptions& options);

// A job's spec from a file's text: protobuf text format, or JSON if it begins with '{'. Each of
// `settings` is "a.b.c=value" and beats the file. InvalidArgument names line or field, with the
// nearest known name.
absl::StatusOr<JobSpec> ParseJobSpec(const std::string& text,
                                     const std::vector<std::string>& settings);
// A text that ParseJobSpec makes the same spec of.
std::string JobSpecText(const JobSpec& spec);
// Every field of a job's spec with its type, in the layout of the text format: `config schema`.
std::string JobSpecSchema();

}  // namespace toroid
