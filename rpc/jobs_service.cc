// toroid.v1.Jobs and toroid.v1.Pods.
#include <atomic>

#include "absl/strings/str_cat.h"
#include "rpc/convert.h"
#include "rpc/error_info.h"
#include "rpc/grpc_method.h"
#include "rpc/grpc_status.h"
#include "rpc/grpc_stream.h"
#include "rpc/services.h"
#include "toroid/v1/job.grpc.pb.h"

namespace toroid {
namespace {

constexpr int64_t kLogReadBytes = 256 << 10;

template <typename Response, typename Value>
grpc::Status Fill(const absl::StatusOr<Value>& value, Response* response) {
  if (value.ok()) *response = ToProto(*value);
  return ToGrpc(value.status());
}

// Both streams below: a subscription of the controller ends with the call.
template <typename Message>
class Watch : public grpc::ServerWriteReactor<Message> {
 public:
  explicit Watch(Controller* controller)
      : controller_(controller),
        outbox_([this](const Message* message) { this->StartWrite(message); }) {}
  void Keep(std::shared_ptr<Watch> self) { self_ = std::move(self); }
  void Subscribed(uint64_t subscription) { subscription_ = subscription; }
  void Push(Message message) { outbox_.Push(std::move(message)); }
  void End(const absl::Status& status, bool discard = false) {
    outbox_.Close([this, status] { this->Finish(ToGrpc(status)); }, discard);
  }

  void OnWriteDone(bool ok) override { outbox_.Written(ok); }
  void OnCancel() override { End(absl::CancelledError("cancelled"), /*discard=*/true); }
  void OnDone() override {
    if (subscription_ != 0) controller_->Unwatch(subscription_);
    self_.reset();
  }

 protected:
  Controller* const controller_;

 private:
  Outbox<Message> outbox_;
  std::atomic<uint64_t> subscription_{0};
  std::shared_ptr<Watch> self_;  // until OnDone
};

// Reads the log when there is more of it, one read in flight.
class LogWatch final : public Watch<v1::LogLine> {
 public:
  LogWatch(Controller* controller, LogStore* logs, const v1::StreamLogsRequest& request)
      : Watch(controller),
        logs_(logs),
        job_(request.id()),
        offset_(request.from_offset()),
        ranks_(request.ranks().begin(), request.ranks().end()) {}

  // Sends what there is. last: and ends.
  void Pump(bool last) {
    const std::lock_guard<std::mutex> lock(mutex_);
    while (true) {
      auto lines = logs_->Read(job_, offset_, kLogReadBytes);
      if (!lines.ok()) return End(lines.status());
      if (lines->empty()) break;
      for (const LogLine& line : *lines) {
        offset_ = line.next_offset;
        if (ranks_.empty() || std::find(ranks_.begin(), ranks_.end(), line.rank) != ranks_.end()) {
          Push(ToProto(line));
        }
      }
    }
    if (last) End(absl::OkStatus());
  }

 private:
  LogStore* const logs_;
  const std::string job_;
  std::mutex mutex_;
  uint64_t offset_;
  const std::vector<int> ranks_;
};

class JobsService final : public v1::Jobs::CallbackService {
 public:
  JobsService(Controller* controller, LogStore* logs) : controller_(controller), logs_(logs) {}

  grpc::ServerUnaryReactor* SubmitJob(grpc::CallbackServerContext* context,
                                      const v1::SubmitJobRequest* request,
                                      v1::Job* response) override {
    return Answer(context, *request, [&] {
      const absl::StatusOr<JobSpec> spec = FromProto(request->spec());
      if (!spec.ok()) return ToGrpc(spec.status());
      return Fill(controller_->SubmitJob(*spec, request->request_id()), response);
    });
  }

  grpc::ServerUnaryReactor* GetJob(grpc::CallbackServerContext* context,
                                   const v1::GetJobRequest* request, v1::Job* response) override {
    return Answer(context, *request,
                  [&] { return Fill(controller_->GetJob(request->id()), response); });
  }

  grpc::ServerUnaryReactor* ListJobs(grpc::CallbackServerContext* context,
                                     const v1::ListJobsRequest* request,
                                     v1::ListJobsResponse* response) override {
    return Answer(context, *request, [&] {
      std::vector<JobState> states;
      for (int number : request->states()) {
        const auto state = FromProto(static_cast<v1::JobState>(number));
        if (!state.ok()) return ToGrpc(state.status());
        states.push_back(*state);
      }
      const auto page = controller_->ListJobs(states, request->page_size(), request->page_token());
      if (!page.ok()) return ToGrpc(page.status());
      for (const JobStatus& job : page->jobs) *response->add_jobs() = ToProto(job);
      response->set_next_page_token(page->next_page_token);
      return grpc::Status::OK;
    });
  }

  grpc::ServerWriteReactor<v1::JobEvent>* WatchJob(grpc::CallbackServerContext*,
                                                   const v1::WatchJobRequest* request) override {
    auto watch = std::make_shared<Watch<v1::JobEvent>>(controller_);
    watch->Keep(watch);
    JobSink sink;
    sink.event = [watch](const JobEvent& event) { watch->Push(ToProto(event)); };
    sink.end = [watch](const absl::Status& status) { watch->End(status); };
    const absl::Status size = CheckSize(*request, kMaxControlBytes);
    if (size.ok()) {
      Subscribe(*watch, request->id(), request->from_sequence(), std::move(sink));
    } else {
      watch->End(size);
    }
    return watch.get();
  }

  grpc::ServerWriteReactor<v1::LogLine>* StreamLogs(grpc::CallbackServerContext*,
                                                    const v1::StreamLogsRequest* request) override {
    auto watch = std::make_shared<LogWatch>(controller_, logs_, *request);
    watch->Keep(watch);
    const absl::Status size = CheckSize(*request, kMaxControlBytes);
    const absl::StatusOr<JobStatus> job =
        size.ok() ? controller_->GetJob(request->id()) : absl::StatusOr<JobStatus>(size);
    if (!job.ok()) {
      watch->End(job.status());
    } else if (!request->follow() || IsTerminal(job->state)) {
      watch->Pump(/*last=*/true);
    } else {
      JobSink sink;
      sink.more_log = [watch] { watch->Pump(/*last=*/false); };
      sink.end = [watch](const absl::Status&) { watch->Pump(/*last=*/true); };
      Subscribe(*watch, request->id(), 0, std::move(sink));
      watch->Pump(/*last=*/false);
    }
    return watch.get();
  }

  grpc::ServerUnaryReactor* CancelJob(grpc::CallbackServerContext* context,
                                      const v1::CancelJobRequest* request,
                                      v1::Job* response) override {
    return Answer(context, *request,
                  [&] { return Fill(controller_->CancelJob(request->id()), response); });
  }

  grpc::ServerUnaryReactor* DeleteJob(grpc::CallbackServerContext* context,
                                      const v1::DeleteJobRequest* request,
                                      v1::DeleteJobResponse*) override {
    return Answer(context, *request, [&] { return ToGrpc(controller_->DeleteJob(request->id())); });
  }

 private:
  template <typename Message>
  void Subscribe(Watch<Message>& watch, const std::string& id, uint64_t from, JobSink sink) {
    const auto subscription = controller_->WatchJob(id, from, std::move(sink));
    if (subscription.ok()) {
      watch.Subscribed(*subscription);
    } else {
      watch.End(subscription.status());
    }
  }

  Controller* const controller_;
  LogStore* const logs_;
};

class PodsService final : public v1::Pods::CallbackService {
 public:
  explicit PodsService(Controller* controller) : controller_(controller) {}

  grpc::ServerUnaryReactor* ListPods(grpc::CallbackServerContext* context,
                                     const v1::ListPodsRequest* request,
                                     v1::ListPodsResponse* response) override {
    return Answer(context, *request, [&] {
      for (const PodStatus& pod : controller_->ListPods()) *response->add_pods() = ToProto(pod);
      return grpc::Status::OK;
    });
  }

  grpc::ServerUnaryReactor* GetPod(grpc::CallbackServerContext* context,
                                   const v1::GetPodRequest* request, v1::Pod* response) override {
    return Answer(context, *request, [&] {
      for (const PodStatus& pod : controller_->ListPods()) {
        if (pod.name != request->name()) continue;
        *response = ToProto(pod);
        return grpc::Status::OK;
      }
      return ToGrpc(MakeError(
          absl::StatusCode::kNotFound,
          absl::StrCat("no such pod: ", MendUtf8(request->name()), ": see toroid pod list"),
          {"NO_POD", {}, {}}));
    });
  }

  grpc::ServerUnaryReactor* DrainPod(grpc::CallbackServerContext* context,
                                     const v1::DrainPodRequest* request,
                                     v1::Pod* response) override {
    return Answer(context, *request, [&] {
      return Fill(controller_->DrainPod(request->name(), !request->undo()), response);
    });
  }

 private:
  Controller* const controller_;
};

}  // namespace

std::unique_ptr<grpc::Service> NewJobsService(Controller* controller, LogStore* logs) {
  return std::make_unique<JobsService>(controller, logs);
}

std::unique_ptr<grpc::Service> NewPodsService(Controller* controller) {
  return std::make_unique<PodsService>(controller);
}

}  // namespace toroid
