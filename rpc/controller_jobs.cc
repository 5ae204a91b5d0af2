// The controller's jobs as clients see them: submitted, listed, cancelled, watched; durable states.
#include <sys/random.h>

#include <algorithm>

#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "core/check.h"
#include "core/status_macros.h"
#include "rpc/controller_state.h"
#include "rpc/error_info.h"

namespace toroid {
namespace {

std::string NewJobId(const std::string& name) {
  char bytes[4];
  TOROID_CHECK_EQ(getrandom(bytes, sizeof(bytes), 0), static_cast<ssize_t>(sizeof(bytes)));
  return absl::StrCat(name.empty() ? "job" : name, "-",
                      absl::BytesToHexString(absl::string_view(bytes, sizeof(bytes))));
}

absl::Status CheckSpec(const JobSpec& spec, const std::string& request_id) {
  if (spec.name.size() > 63 ||
      spec.name.find_first_not_of(
          "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") !=
          std::string::npos ||
      (!spec.name.empty() && spec.name[0] == '-')) {
    return BadField(
        "name", absl::StrCat("'", spec.name, "' is no name: up to 63 letters, digits, '-', '_'"));
  }
  const bool pool = std::holds_alternative<PoolTask>(spec.task);
  if (spec.placement.load.model.empty() && !pool)
    return BadField("model.path", "missing: name a model");
  if (spec.device == Device::kCuda) {
    return BadField("device", "CUDA: pods compute on CPUs in this version: take AUTO or CPU");
  }
  if (spec.max_restarts < 0 || spec.max_restarts > 1000) {
    return BadField("max_restarts", absl::StrCat(spec.max_restarts, " is not 0 to 1000"));
  }
  if (spec.active_deadline <= absl::ZeroDuration()) {
    return BadField("active_deadline", "must be more than nothing");
  }
  const auto* train = std::get_if<TrainTask>(&spec.task);
  if (train != nullptr && train->plan.options.pods.count > 1 && !spec.placement.pod.empty()) {
    return BadField("pod", absl::StrCat(spec.placement.pod, ": the job has ",
                                        train->plan.options.pods.count, " pods: leave it out"));
  }
  if (request_id.size() > 128) return BadField("request_id", "longer than 128 bytes");
  return absl::OkStatus();
}

absl::Status NoSuchJob(const std::string& id) {
  return MakeError(absl::StatusCode::kNotFound,
                   absl::StrCat("no such job: ", id, ": see toroid job list"),
                   {"NO_JOB", {{"job", id}}, {}});
}

}  // namespace

absl::Status Controller::SetState(Job& job, JobState state, const std::string& reason,
                                  const std::string& message) {
  JobEvent event;
  event.time = Now();
  job.status.state = state;
  job.status.reason = reason;
  job.status.message = message;
  if (IsTerminal(state)) job.status.ended = event.time;
  event.sequence = ++job.sequence;
  event.status = job.status;
  const absl::Status stored =
      store_->Update(job.status.id, static_cast<int>(state), codec_.encode_status(job.status),
                     event.sequence, absl::ToUnixMicros(event.time));
  Publish(job, event);
  if (IsTerminal(state)) jobs_.erase(std::string(job.status.id));
  return stored;
}

void Controller::Publish(const Job& job, const JobEvent& event) {
  const bool last = IsTerminal(event.status.state);
  for (auto it = subscriptions_.begin(); it != subscriptions_.end();) {
    if (it->second->job != job.status.id) {
      ++it;
      continue;
    }
    it->second->sink.event(event);
    if (last) it->second->sink.end(absl::OkStatus());
    it = last ? subscriptions_.erase(it) : std::next(it);
  }
}

absl::StatusOr<JobStatus> Controller::SubmitJob(const JobSpec& spec,
                                                const std::string& request_id) {
  TOROID_RETURN_IF_ERROR(CheckSpec(spec, request_id));
  const std::lock_guard<std::mutex> lock(mutex_);
  const std::string bytes = codec_.encode_spec(spec);
  if (!request_id.empty()) {
    const auto known = store_->GetByRequest(request_id);
    if (known.ok() && known->spec == bytes) return codec_.decode_status(known->status);
    if (known.ok()) {
      return MakeError(absl::StatusCode::kAlreadyExists,
                       absl::StrCat("request_id ", request_id, " was used for job ", known->id,
                                    " with another spec: use a fresh one"),
                       {"REQUEST_ID_REUSED", {{"job", known->id}}, {}});
    }
    if (known.status().code() != absl::StatusCode::kNotFound) return known.status();
  }
  std::string pool;
  if (!spec.placement.on_pool.empty()) {
    const auto* train = std::get_if<TrainTask>(&spec.task);
    TOROID_ASSIGN_OR_RETURN(
        pool, PoolFor(spec.placement, train == nullptr ? 1 : train->plan.options.pods.count));
  }
  if (jobs_.size() >= kMaxJobs) {
    return MakeError(absl::StatusCode::kResourceExhausted,
                     absl::StrCat("too many jobs wait: ", jobs_.size(), ": try later"),
                     {"QUEUE_FULL", {}, {}});
  }
  auto job = std::make_unique<Job>();
  job->spec = spec;
  job->sequence = 1;
  job->status.id = NewJobId(spec.name);
  job->status.name = spec.name;
  job->status.priority = spec.priority;
  job->status.created = Now();
  job->status.started = job->status.ended = absl::InfinitePast();
  TOROID_RETURN_IF_ERROR(
      store_->Insert({job->status.id, 0, request_id, bytes, static_cast<int>(JobState::kQueued),
                      codec_.encode_status(job->status), 1},
                     absl::ToUnixMicros(Now())));
  TOROID_ASSIGN_OR_RETURN(const StoredJob stored, store_->Get(job->status.id));
  job->order = stored.order;
  job->pool = std::move(pool);
  job->arrival = ++last_id_;
  const JobStatus status = job->status;
  jobs_[status.id] = std::move(job);
  ScheduleWork();
  return status;
}

absl::StatusOr<JobStatus> Controller::GetJob(const std::string& id) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (const auto it = jobs_.find(id); it != jobs_.end()) return it->second->status;
  const auto stored = store_->Get(id);
  if (stored.status().code() == absl::StatusCode::kNotFound) return NoSuchJob(id);
  TOROID_RETURN_IF_ERROR(stored.status());
  return codec_.decode_status(stored->status);
}

absl::StatusOr<JobPage> Controller::ListJobs(const std::vector<JobState>& states, int page_size,
                                             const std::string& page_token) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  uint64_t before = 0;
  if (!page_token.empty() && (!absl::SimpleAtoi(page_token, &before) || before == 0)) {
    return BadField("page_token", absl::StrCat("'", page_token, "' did not come from ListJobs"));
  }
  if (page_size < 0) return BadField("page_size", "below nothing");
  const int limit = page_size == 0 ? 100 : std::min(page_size, 1000);
  std::vector<int> numbers;
  for (JobState state : states) numbers.push_back(static_cast<int>(state));
  TOROID_ASSIGN_OR_RETURN(std::vector<StoredJob> stored, store_->List(numbers, before, limit + 1));
  JobPage page;
  const bool more = stored.size() > static_cast<size_t>(limit);
  if (more) stored.pop_back();
  for (const StoredJob& item : stored) {
    TOROID_ASSIGN_OR_RETURN(JobStatus status, codec_.decode_status(item.status));
    page.jobs.push_back(std::move(status));
  }
  if (more) page.next_page_token = absl::StrCat(stored.back().order);
  return page;
}

absl::StatusOr<JobStatus> Controller::CancelJob(const std::string& id) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (const auto it = jobs_.find(id); it != jobs_.end()) {
      Job& job = *it->second;
      job.ending = true;
      job.end_state = JobState::kCancelled;
      job.end_reason = "Cancelled";
      job.end_message = "cancelled by a client";
      CheckJob(job);
      ScheduleWork();
    }
  }
  return GetJob(id);
}

absl::Status Controller::DeleteJob(const std::string& id) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (const auto it = jobs_.find(id); it != jobs_.end()) {
    return MakeError(
        absl::StatusCode::kFailedPrecondition,
        absl::StrCat("job ", id, " is ", ToString(it->second->status.state), ": cancel it first"),
        {"JOB_ACTIVE", {{"job", id}}, {}});
  }
  const absl::Status deleted = store_->Delete(id);
  if (deleted.code() == absl::StatusCode::kNotFound) return NoSuchJob(id);
  if (deleted.ok()) logs_->Delete(id);
  return deleted;
}

absl::StatusOr<uint64_t> Controller::WatchJob(const std::string& id, uint64_t from_sequence,
                                              JobSink sink) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto stored = store_->Get(id);
  if (stored.status().code() == absl::StatusCode::kNotFound) return NoSuchJob(id);
  TOROID_RETURN_IF_ERROR(stored.status());
  if (from_sequence > stored->sequence + 1) {
    return absl::OutOfRangeError(absl::StrCat(
        "from_sequence ", from_sequence, " lies in the future: the last is ", stored->sequence));
  }
  const uint64_t first = from_sequence == 0 ? stored->sequence : from_sequence;
  TOROID_ASSIGN_OR_RETURN(const std::vector<StoredEvent> events, store_->Events(id, first));
  for (const StoredEvent& item : events) {
    TOROID_ASSIGN_OR_RETURN(JobStatus status, codec_.decode_status(item.status));
    sink.event({item.sequence, absl::FromUnixMicros(item.time_us), std::move(status)});
  }
  const uint64_t number = ++last_id_;
  if (jobs_.find(id) == jobs_.end()) {
    sink.end(absl::OkStatus());
    return number;
  }
  subscriptions_[number] = std::make_unique<Subscription>(Subscription{id, std::move(sink)});
  return number;
}

void Controller::Unwatch(uint64_t subscription) {
  const std::lock_guard<std::mutex> lock(mutex_);
  subscriptions_.erase(subscription);
}

}  // namespace toroid
