#include "rpc/client.h"

#include <grpcpp/create_channel.h>
#include <sys/random.h>

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "core/status_macros.h"
#include "rpc/convert.h"
#include "rpc/error_info.h"
#include "rpc/grpc_credentials.h"
#include "rpc/grpc_status.h"
#include "toroid/v1/inference.grpc.pb.h"
#include "toroid/v1/job.grpc.pb.h"

namespace toroid {
namespace {

// Cancels a call when the user interrupts; lives as long as the call.
class InterruptWatch {
 public:
  InterruptWatch(const std::atomic<bool>* interrupt, grpc::ClientContext* context) {
    if (interrupt == nullptr) return;
    thread_ = std::thread([this, interrupt, context] {
      std::unique_lock<std::mutex> lock(mutex_);
      while (!ended_ && !interrupt->load()) {
        changed_.wait_for(lock, std::chrono::milliseconds(20), [this] { return ended_; });
      }
      if (!ended_) context->TryCancel();
    });
  }
  ~InterruptWatch() {
    if (!thread_.joinable()) return;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      ended_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }

 private:
  std::thread thread_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool ended_ = false;
};

std::string NewRequestId() {
  char bytes[16] = {};
  (void)getrandom(bytes, sizeof(bytes), 0);
  return absl::BytesToHexString(absl::string_view(bytes, sizeof(bytes)));
}

// Our messages hold UTF-8 only: a server would refuse the whole message without saying where.
absl::Status CheckText(const std::string& text, const char* field) {
  if (MendUtf8(text) == text) return absl::OkStatus();
  size_t at = 0;
  const std::string mended = MendUtf8(text);
  while (at < text.size() && text[at] == mended[at]) ++at;
  return BadField(field, absl::StrCat("not UTF-8 at byte ", at));
}

absl::Status CheckPrompt(const PromptSpec& prompt) {
  TOROID_RETURN_IF_ERROR(CheckText(prompt.text, "prompt"));
  TOROID_RETURN_IF_ERROR(CheckText(prompt.system, "system"));
  return CheckText(prompt.file, "file");
}

// What the answers of a streaming request share.
template <typename Response>
void Observe(const Response& message, const RequestObserver& observer) {
  if (message.has_accepted()) {
    const v1::Accepted& accepted = message.accepted();
    observer.on_accepted(
        {accepted.request(), accepted.pod(), MeshFromProto(accepted.mesh()), accepted.kept()});
  } else if (message.has_progress()) {
    const v1::Progress& progress = message.progress();
    const std::string phase = progress.phase();
    observer.on_progress({phase.c_str(), progress.done(), progress.total()});
  }
}

absl::Status CheckPrompts(const GenerateTask& task) {
  TOROID_RETURN_IF_ERROR(CheckPrompt(task.prompt));
  for (const PromptSpec& prompt : task.more_prompts) TOROID_RETURN_IF_ERROR(CheckPrompt(prompt));
  return absl::OkStatus();
}

class GrpcClient final : public Client {
 public:
  explicit GrpcClient(const ClientOptions& options)
      : options_(options),
        channel_(grpc::CreateCustomChannel(options.controller, DialCredentials(options.tls),
                                           ClientChannelArguments())),
        jobs_(v1::Jobs::NewStub(channel_)),
        pods_(v1::Pods::NewStub(channel_)),
        inference_(v1::Inference::NewStub(channel_)) {}

  absl::StatusOr<JobStatus> SubmitJob(const JobSpec& spec, const std::string& request_id) override {
    if (const auto* generate = std::get_if<GenerateTask>(&spec.task)) {
      TOROID_RETURN_IF_ERROR(CheckPrompts(*generate));
    } else if (const auto* score = std::get_if<ScoreTask>(&spec.task)) {
      TOROID_RETURN_IF_ERROR(CheckPrompt(score->text));
    }
    v1::SubmitJobRequest request;
    *request.mutable_spec() = ToProto(spec);
    request.set_request_id(request_id.empty() ? NewRequestId() : request_id);
    v1::Job response;
    TOROID_RETURN_IF_ERROR(Call(*jobs_, &v1::Jobs::Stub::SubmitJob, request, &response));
    return FromProto(response);
  }

  absl::StatusOr<JobStatus> GetJob(const std::string& id) override {
    v1::GetJobRequest request;
    request.set_id(MendUtf8(id));
    v1::Job response;
    TOROID_RETURN_IF_ERROR(Call(*jobs_, &v1::Jobs::Stub::GetJob, request, &response));
    return FromProto(response);
  }

  absl::StatusOr<JobPage> ListJobs(const std::vector<JobState>& states, int page_size,
                                   const std::string& page_token) override {
    v1::ListJobsRequest request;
    for (JobState state : states) request.add_states(ToProto(state));
    request.set_page_size(page_size);
    request.set_page_token(page_token);
    v1::ListJobsResponse response;
    TOROID_RETURN_IF_ERROR(Call(*jobs_, &v1::Jobs::Stub::ListJobs, request, &response));
    JobPage page;
    page.next_page_token = response.next_page_token();
    for (const v1::Job& job : response.jobs()) {
      TOROID_ASSIGN_OR_RETURN(JobStatus status, FromProto(job));
      page.jobs.push_back(std::move(status));
    }
    return page;
  }

  absl::Status WatchJob(const std::string& id, uint64_t from_sequence,
                        const std::function<bool(const JobEvent&)>& event) override {
    v1::WatchJobRequest request;
    request.set_id(MendUtf8(id));
    request.set_from_sequence(from_sequence);
    return Follow<v1::JobEvent>(
        id, [&](grpc::ClientContext* context) { return jobs_->WatchJob(context, request); },
        [&](const v1::JobEvent& message) -> absl::StatusOr<bool> {
          request.set_from_sequence(message.sequence() + 1);
          TOROID_ASSIGN_OR_RETURN(const JobEvent read, FromProto(message));
          return event(read);
        });
  }

  absl::Status StreamLogs(const LogQuery& query,
                          const std::function<bool(const LogLine&)>& line) override {
    v1::StreamLogsRequest request;
    request.set_id(MendUtf8(query.job));
    request.set_from_offset(query.from_offset);
    request.set_follow(query.follow);
    for (int rank : query.ranks) request.add_ranks(rank);
    return Follow<v1::LogLine>(
        query.job,
        [&](grpc::ClientContext* context) { return jobs_->StreamLogs(context, request); },
        [&](const v1::LogLine& message) -> absl::StatusOr<bool> {
          request.set_from_offset(message.next_offset());
          return line(FromProto(message));
        });
  }

  absl::StatusOr<JobStatus> CancelJob(const std::string& id) override {
    v1::CancelJobRequest request;
    request.set_id(MendUtf8(id));
    v1::Job response;
    TOROID_RETURN_IF_ERROR(Call(*jobs_, &v1::Jobs::Stub::CancelJob, request, &response));
    return FromProto(response);
  }

  absl::Status DeleteJob(const std::string& id) override {
    v1::DeleteJobRequest request;
    request.set_id(MendUtf8(id));
    v1::DeleteJobResponse response;
    return Call(*jobs_, &v1::Jobs::Stub::DeleteJob, request, &response);
  }

  absl::StatusOr<std::vector<PodStatus>> ListPods() override {
    v1::ListPodsResponse response;
    TOROID_RETURN_IF_ERROR(
        Call(*pods_, &v1::Pods::Stub::ListPods, v1::ListPodsRequest(), &response));
    std::vector<PodStatus> out;
    for (const v1::Pod& pod : response.pods()) out.push_back(FromProto(pod));
    return out;
  }

  absl::StatusOr<PodStatus> GetPod(const std::string& name) override {
    v1::GetPodRequest request;
    request.set_name(MendUtf8(name));
    v1::Pod response;
    TOROID_RETURN_IF_ERROR(Call(*pods_, &v1::Pods::Stub::GetPod, request, &response));
    return FromProto(response);
  }

  absl::StatusOr<PodStatus> DrainPod(const std::string& name, bool drain) override {
    v1::DrainPodRequest request;
    request.set_name(MendUtf8(name));
    request.set_undo(!drain);
    v1::Pod response;
    TOROID_RETURN_IF_ERROR(Call(*pods_, &v1::Pods::Stub::DrainPod, request, &response));
    return FromProto(response);
  }

  absl::Status AwaitPods(int count, absl::Duration timeout) override {
    const absl::Time deadline = absl::Now() + timeout;
    absl::Status last = absl::OkStatus();
    int live = 0;
    while (absl::Now() < deadline) {
      if (options_.interrupt != nullptr && options_.interrupt->load()) {
        return absl::CancelledError("interrupted");
      }
      const auto pods = ListPods();
      last = pods.status();
      live = 0;
      if (pods.ok()) {
        for (const PodStatus& pod : *pods) live += pod.state != "LOST";
        if (live >= count) return absl::OkStatus();
      }
      absl::SleepFor(absl::Milliseconds(50));
    }
    if (!last.ok()) return last;
    return absl::DeadlineExceededError(absl::StrCat("pods did not register: ", live, " of ", count,
                                                    " after ", absl::FormatDuration(timeout)));
  }

  absl::StatusOr<GenerateResult> Generate(const InferenceRequest& in,
                                          const GenerateObserver& observer) override {
    const GenerateTask& task = std::get<GenerateTask>(in.task);
    TOROID_RETURN_IF_ERROR(CheckPrompts(task));
    v1::GenerateRequest request;
    *request.mutable_placement() = ToProto(in.placement, in.keep_alive);
    *request.mutable_task() = ToProto(task);
    TOROID_RETURN_IF_ERROR(CheckSize(request, kMaxReceiveBytes));
    grpc::ClientContext context;
    Begin(&context, in.timeout);
    const InterruptWatch watch(options_.interrupt, &context);
    auto reader = inference_->Generate(&context, request);
    v1::GenerateResponse message;
    absl::StatusOr<GenerateResult> result = absl::InternalError("no result came");
    while (reader->Read(&message)) {
      Observe(message, observer);
      if (message.has_tokens()) {
        for (const v1::Token& token : message.tokens().tokens()) {
          observer.on_token(FromProto(token));
        }
      } else if (message.has_done()) {
        result = FromProto(message.done());
      }
    }
    TOROID_RETURN_IF_ERROR(Explain(reader->Finish()));
    return result;
  }

  absl::StatusOr<ScoreResult> Score(const InferenceRequest& in) override {
    const ScoreTask& task = std::get<ScoreTask>(in.task);
    TOROID_RETURN_IF_ERROR(CheckPrompt(task.text));
    v1::ScoreRequest request;
    *request.mutable_placement() = ToProto(in.placement, in.keep_alive);
    *request.mutable_task() = ToProto(task);
    v1::ScoreResponse response;
    TOROID_RETURN_IF_ERROR(
        Call(*inference_, &v1::Inference::Stub::Score, request, &response, in.timeout));
    return FromProto(response.result());
  }

  absl::StatusOr<VerifyResult> Verify(const InferenceRequest& in,
                                      const RequestObserver& observer) override {
    const VerifyTask& task = std::get<VerifyTask>(in.task);
    if (task.text.has_value()) TOROID_RETURN_IF_ERROR(CheckPrompt(*task.text));
    v1::VerifyRequest request;
    *request.mutable_placement() = ToProto(in.placement, in.keep_alive);
    *request.mutable_task() = ToProto(task);
    TOROID_RETURN_IF_ERROR(CheckSize(request, kMaxReceiveBytes));
    grpc::ClientContext context;
    Begin(&context, in.timeout);
    const InterruptWatch watch(options_.interrupt, &context);
    auto reader = inference_->Verify(&context, request);
    v1::VerifyResponse message;
    absl::StatusOr<VerifyResult> result = absl::InternalError("no result came");
    while (reader->Read(&message)) {
      Observe(message, observer);
      if (message.has_done()) result = FromProto(message.done());
    }
    TOROID_RETURN_IF_ERROR(Explain(reader->Finish()));
    return result;
  }

  absl::StatusOr<TokenizeResult> Tokenize(const TokenizeRequest& in) override {
    TOROID_RETURN_IF_ERROR(CheckText(in.text, "text"));
    v1::TokenizeRequest request;
    *request.mutable_placement() = ToProto(in.placement, in.keep_alive);
    request.set_text(in.text);
    request.set_no_special(!in.special);
    v1::TokenizeResponse response;
    TOROID_RETURN_IF_ERROR(
        Call(*inference_, &v1::Inference::Stub::Tokenize, request, &response, absl::Minutes(5)));
    return FromProto(response);
  }

  absl::StatusOr<std::string> Detokenize(const Placement& placement,
                                         const std::vector<int32_t>& ids) override {
    v1::DetokenizeRequest request;
    *request.mutable_placement() = ToProto(placement, absl::Minutes(5));
    request.mutable_ids()->Assign(ids.begin(), ids.end());
    v1::DetokenizeResponse response;
    TOROID_RETURN_IF_ERROR(
        Call(*inference_, &v1::Inference::Stub::Detokenize, request, &response, absl::Minutes(5)));
    return response.text();
  }

  absl::StatusOr<std::vector<ModelStatus>> ListModels() override {
    v1::ListModelsResponse response;
    TOROID_RETURN_IF_ERROR(
        Call(*inference_, &v1::Inference::Stub::ListModels, v1::ListModelsRequest(), &response));
    std::vector<ModelStatus> out;
    for (const v1::ModelInfo& model : response.models()) out.push_back(FromProto(model));
    return out;
  }

  absl::StatusOr<ModelStatus> GetModel(const std::string& name) override {
    v1::GetModelRequest request;
    request.set_name(MendUtf8(name));
    v1::ModelInfo response;
    TOROID_RETURN_IF_ERROR(Call(*inference_, &v1::Inference::Stub::GetModel, request, &response));
    return FromProto(response);
  }

 private:
  void Begin(grpc::ClientContext* context, absl::Duration timeout) {
    AwaitConnection();
    context->set_deadline(absl::ToChronoTime(absl::Now() + timeout));
  }

  // A first attempt to connect that fails gets a second one before calls fail too: gRPC 1.51 looks
  // at errno some calls after connect(2). Where one of them has set it (without /sys absl's first
  // look at the number of processors does), a connection that is being made passes for a failed
  // one.
  void AwaitConnection() {
    const absl::Time limit = absl::Now() + absl::Milliseconds(500);
    const auto interrupted = [&] { return options_.interrupt && options_.interrupt->load(); };
    grpc_connectivity_state state = channel_->GetState(/*try_to_connect=*/true);
    while (state != GRPC_CHANNEL_READY && absl::Now() < limit && !interrupted()) {
      const absl::Time look = std::min(limit, absl::Now() + absl::Milliseconds(20));
      (void)channel_->WaitForStateChange(state, absl::ToChronoTime(look));
      state = channel_->GetState(/*try_to_connect=*/true);
    }
  }

  // Streams of a job, one after the other, until one ends otherwise than by its deadline or `take`
  // returns false. open: begins where the last one ended.
  template <typename Message, typename Open, typename Take>
  absl::Status Follow(const std::string& job, const Open& open, const Take& take) {
    while (true) {
      grpc::ClientContext context;
      Begin(&context, options_.stream);
      const InterruptWatch watch(options_.interrupt, &context);
      const auto reader = open(&context);
      Message message;
      while (reader->Read(&message)) {
        const absl::StatusOr<bool> more = take(message);
        if (more.ok() && *more) continue;
        context.TryCancel();
        (void)reader->Finish();
        return more.status();
      }
      const grpc::Status status = reader->Finish();
      if (status.error_code() != grpc::StatusCode::DEADLINE_EXCEEDED) return Explain(status);
      TOROID_RETURN_IF_ERROR(GetJob(job).status());  // is anybody there?
    }
  }

  template <typename Stub, typename Request, typename Response>
  absl::Status Call(Stub& stub,
                    grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Response*),
                    const Request& request, Response* response,
                    absl::Duration timeout = absl::ZeroDuration()) {
    TOROID_RETURN_IF_ERROR(CheckSize(request, kMaxReceiveBytes));
    grpc::ClientContext context;
    const bool control = timeout == absl::ZeroDuration();
    if (control) timeout = options_.timeout;
    Begin(&context, timeout);
    const InterruptWatch watch(options_.interrupt, &context);
    const grpc::Status status = (stub.*method)(&context, request, response);
    if (control && status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED) {
      return NotReachable(absl::StrCat("no answer within ", absl::FormatDuration(timeout)));
    }
    return Explain(status);
  }

  absl::Status NotReachable(absl::string_view more) const {
    return MakeError(absl::StatusCode::kUnavailable,
                     absl::StrCat("controller is not reachable: ", options_.controller, ": ", more,
                                  ": start it, or give --controller another"),
                     {"NOT_REACHABLE", {{"controller", options_.controller}}, {}});
  }

  // Our servers' errors carry their details; without them the connection itself failed.
  absl::Status Explain(const grpc::Status& status) const {
    if (status.error_code() == grpc::StatusCode::UNAVAILABLE && status.error_details().empty()) {
      TOROID_RETURN_IF_ERROR(WhyNoConnection(options_.controller, options_.tls));
      constexpr absl::string_view kBoilerplate = "failed to connect to all addresses; last error: ";
      return NotReachable(absl::StripPrefix(status.error_message(), kBoilerplate));
    }
    if (status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED &&
        status.error_details().empty()) {
      return absl::DeadlineExceededError(
          absl::StrCat("deadline: the request ran out of time: ", options_.controller,
                       ": give a longer --timeout"));
    }
    return FromGrpc(status);
  }

  const ClientOptions options_;
  const std::shared_ptr<grpc::Channel> channel_;
  const std::unique_ptr<v1::Jobs::Stub> jobs_;
  const std::unique_ptr<v1::Pods::Stub> pods_;
  const std::unique_ptr<v1::Inference::Stub> inference_;
};

}  // namespace

std::unique_ptr<Client> NewClient(const ClientOptions& options) {
  return std::make_unique<GrpcClient>(options);
}

}  // namespace toroid
