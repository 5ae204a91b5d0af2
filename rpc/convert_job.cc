#include <algorithm>

#include "absl/strings/str_cat.h"
#include "core/status_macros.h"
#include "rpc/convert.h"
#include "rpc/error_info.h"

namespace toroid {
namespace {

void Set(absl::Time time, google::protobuf::Timestamp* out) {
  const int64_t micros = absl::ToUnixMicros(time);
  out->set_seconds(micros / 1000000);
  out->set_nanos(static_cast<int32_t>(micros % 1000000) * 1000);
}

absl::Time TimeOf(const google::protobuf::Timestamp& time) {
  return absl::FromUnixMicros(time.seconds() * 1000000 + time.nanos() / 1000);
}

constexpr int kMostPods = 1024;

// Only training runs on several pods.
absl::Status ReadPods(const v1::JobSpec& in, JobSpec& out) {
  const int pods = in.mesh().pods();
  if (pods == 0 || pods == 1) {
    if (!in.train().has_exchange()) return absl::OkStatus();
    return BadField("train.exchange", "of several pods: give mesh { pods: 2 }");
  }
  if (pods < 0 || pods > kMostPods) {
    return BadField("mesh.pods", absl::StrCat(pods, " is not 1 to ", kMostPods));
  }
  if (in.has_verify()) {
    return BadField("mesh.pods", absl::StrCat(pods, ": a job is verified on one pod"));
  }
  TrainingPlan& plan = std::get<TrainTask>(out.task).plan;
  if (plan.spike.has_value()) {
    return BadField("train.spike", "a run of several pods cannot go back: leave the rule out");
  }
  plan.options.pods.count = pods;
  return absl::OkStatus();
}

// "data: -1" and its like of a pod are what they are of a mesh.
absl::Status ReadPodMeshes(const v1::JobSpec& in, JobSpec& out) {
  if (in.pod_mesh_size() > 0 && in.mesh().pods() < 2) {
    return BadField("pod_mesh", "of several pods: give mesh { pods: 2 }");
  }
  for (const v1::PodMesh& pod : in.pod_mesh()) {
    if (pod.pod().empty()) return BadField("pod_mesh.pod", "missing: name a pod");
    MeshWish wish{pod.data(), pod.ring(), pod.tensor()};
    TOROID_RETURN_IF_ERROR(CheckSizes("pod_mesh", wish));
    if (wish == MeshWish()) wish.data = MeshWish::kRest;
    if (!out.placement.pod_meshes.emplace(pod.pod(), wish).second) {
      return BadField("pod_mesh.pod", absl::StrCat(pod.pod(), " is named twice"));
    }
  }
  const int64_t named = static_cast<int64_t>(out.placement.pod_meshes.size());
  if (named > std::max(in.mesh().pods(), 1)) {
    return BadField("pod_mesh",
                    absl::StrCat(named, " pods are named, the job has ", in.mesh().pods(),
                                 ": give mesh { pods: ", named, " }"));
  }
  return absl::OkStatus();
}

// What training takes where the spec says nothing, and inference something else.
absl::Status PlaceTraining(const v1::JobSpec& in, JobSpec& out) {
  if (out.output_dir.empty()) {
    return BadField("output.dir", "missing: name a directory for checkpoints and metrics");
  }
  Placement& placement = out.placement;
  if (in.model().layout().empty()) placement.load.layout = {LayoutRule::Kind::kZigzag, 1};
  if (placement.mesh == MeshWish() && placement.on_pool.empty()) {
    placement.mesh.data = MeshWish::kRest;
  }
  return absl::OkStatus();
}

// A pool has a mesh and a place; the rest is its programs'.
absl::StatusOr<Placement> PlacePool(const v1::JobSpec& in) {
  if (!in.model().path().empty() || !in.model().shape().preset().empty()) {
    return BadField("model", "of a pool: each of its programs has its own: leave it out");
  }
  if (!in.on_pool().empty()) {
    return BadField("on_pool", "of a pool: pools do not run in pools: leave it out");
  }
  if (!in.output().dir().empty()) {
    return BadField("output.dir", "of a pool: each of its programs has its own: leave it out");
  }
  Placement out;
  TOROID_ASSIGN_OR_RETURN(out.mesh, WishFromProto(in.mesh()));
  out.pod = in.pod();
  return out;
}

}  // namespace

v1::JobSpec ToProto(const JobSpec& spec) {
  v1::JobSpec out;
  const v1::Placement placement = ToProto(spec.placement, absl::ZeroDuration());
  out.set_name(spec.name);
  out.set_device(spec.device == Device::kCpu    ? v1::JobSpec::CPU
                 : spec.device == Device::kCuda ? v1::JobSpec::CUDA
                                                : v1::JobSpec::AUTO);
  out.set_compute(placement.compute());
  if (!spec.output_dir.empty()) out.mutable_output()->set_dir(spec.output_dir);
  *out.mutable_mesh() = placement.mesh();
  *out.mutable_model() = placement.model();
  out.set_pod(placement.pod());
  if (const auto* generate = std::get_if<GenerateTask>(&spec.task)) {
    *out.mutable_generate() = ToProto(*generate);
  } else if (const auto* train = std::get_if<TrainTask>(&spec.task)) {
    *out.mutable_train() = ToProto(*train);
    const int64_t pods = train->plan.options.pods.count;
    if (pods > 1) out.mutable_mesh()->set_pods(int32_t(pods));
    for (const auto& [pod, wish] : spec.placement.pod_meshes) {
      v1::PodMesh& mesh = *out.add_pod_mesh();
      mesh.set_pod(pod);
      mesh.set_data(int32_t(wish.data));
      mesh.set_ring(int32_t(wish.ring));
      mesh.set_tensor(int32_t(wish.tensor));
    }
  } else if (const auto* score = std::get_if<ScoreTask>(&spec.task)) {
    *out.mutable_score() = ToProto(*score);
  } else {
    out.mutable_pool();
    out.clear_model();
    out.clear_compute();
  }
  out.set_on_pool(spec.placement.on_pool);
  out.set_max_restarts(spec.max_restarts);
  if (spec.active_deadline != absl::InfiniteDuration()) {
    out.set_active_deadline(absl::FormatDuration(spec.active_deadline));
  }
  out.set_priority(spec.priority);
  if (spec.verify.has_value()) *out.mutable_verify() = ToProto(*spec.verify);
  return out;
}

absl::StatusOr<JobSpec> FromProto(const v1::JobSpec& in) {
  JobSpec out;
  out.name = in.name();
  switch (in.device()) {
    case v1::JobSpec::DEVICE_UNSPECIFIED:
    case v1::JobSpec::AUTO:
      break;
    case v1::JobSpec::CPU:
      out.device = Device::kCpu;
      break;
    case v1::JobSpec::CUDA:
      out.device = Device::kCuda;
      break;
    default:
      return BadField("device", absl::StrCat(in.device(), " is not AUTO, CPU or CUDA"));
  }
  out.output_dir = in.output().dir();
  v1::Placement placement;
  *placement.mutable_model() = in.model();
  *placement.mutable_mesh() = in.mesh();
  if (in.has_train()) placement.mutable_mesh()->clear_pods();  // ReadPods
  placement.set_compute(in.compute());
  placement.set_pod(in.pod());
  placement.set_on_pool(in.on_pool());
  TOROID_ASSIGN_OR_RETURN(out.placement,
                          in.has_pool() ? PlacePool(in) : FromProto(placement, nullptr));
  if (out.placement.load.seed == 0) out.placement.load.seed = in.seed();
  switch (in.task_case()) {
    case v1::JobSpec::kGenerate: {
      TOROID_ASSIGN_OR_RETURN(GenerateTask task, FromProto(in.generate()));
      if (task.request.sampling.seed == 0) task.request.sampling.seed = in.seed();
      out.task = std::move(task);
      break;
    }
    case v1::JobSpec::kScore: {
      TOROID_ASSIGN_OR_RETURN(out.task, FromProto(in.score()));
      break;
    }
    case v1::JobSpec::kTrain: {
      TOROID_ASSIGN_OR_RETURN(TrainTask task, FromProto(in.train()));
      if (task.plan.seed == 0) task.plan.seed = task.plan.options.dropout_seed = in.seed();
      out.task = std::move(task);
      TOROID_RETURN_IF_ERROR(ReadPods(in, out));
      TOROID_RETURN_IF_ERROR(ReadPodMeshes(in, out));
      TOROID_RETURN_IF_ERROR(PlaceTraining(in, out));
      break;
    }
    case v1::JobSpec::kPool:
      out.task = PoolTask();
      break;
    case v1::JobSpec::TASK_NOT_SET:
      return BadField("task", "missing: give generate, score, train or pool");
  }
  if (in.pod_mesh_size() > 0 && !in.has_train()) {
    return BadField("pod_mesh", "only training runs on several pods: leave it out");
  }
  out.max_restarts = in.max_restarts();
  TOROID_ASSIGN_OR_RETURN(out.active_deadline, ReadDuration(in.active_deadline(), "active_deadline",
                                                            absl::InfiniteDuration()));
  out.priority = in.priority();
  if (in.has_verify()) {
    if (!in.has_train()) return BadField("verify", "only of a job that trains: give train");
    TOROID_ASSIGN_OR_RETURN(out.verify, FromProto(in.verify()));
    if (out.verify->text.has_value()) {
      return BadField("verify.text", "a job that trains has data of its own: leave it out");
    }
  }
  return out;
}

v1::JobState ToProto(JobState state) {
  switch (state) {
    case JobState::kQueued:
      return v1::QUEUED;
    case JobState::kStarting:
      return v1::STARTING;
    case JobState::kRunning:
      return v1::RUNNING;
    case JobState::kRestarting:
      return v1::RESTARTING;
    case JobState::kSucceeded:
      return v1::SUCCEEDED;
    case JobState::kFailed:
      return v1::FAILED;
    case JobState::kCancelled:
      return v1::CANCELLED;
  }
  return v1::JOB_STATE_UNSPECIFIED;
}

absl::StatusOr<JobState> FromProto(v1::JobState state) {
  for (JobState known :
       {JobState::kQueued, JobState::kStarting, JobState::kRunning, JobState::kRestarting,
        JobState::kSucceeded, JobState::kFailed, JobState::kCancelled}) {
    if (ToProto(known) == state) return known;
  }
  return BadField("state", absl::StrCat(static_cast<int>(state), " is no state of a job"));
}

v1::WorldExit ToProto(const WorldExit& exit) {
  v1::WorldExit out;
  if (exit.exit_code >= 0) out.set_exit_code(exit.exit_code);
  out.set_signal(exit.signal);
  if (exit.rank >= 0) out.set_rank(exit.rank);
  out.set_host(MendUtf8(exit.host));
  out.set_message(MendUtf8(exit.message));
  return out;
}

WorldExit FromProto(const v1::WorldExit& exit) {
  return {exit.has_exit_code() ? exit.exit_code() : -1, exit.signal(),
          exit.has_rank() ? exit.rank() : -1, exit.host(), exit.message()};
}

v1::Checkpoint ToProto(const JobCheckpoint& checkpoint) {
  v1::Checkpoint out;
  out.set_epoch(checkpoint.epoch);
  out.set_step(checkpoint.step);
  out.set_path(MendUtf8(checkpoint.path));
  out.set_hash(checkpoint.hash);
  out.set_pod(checkpoint.pod);
  return out;
}

JobCheckpoint FromProto(const v1::Checkpoint& in) {
  return {in.epoch(), in.step(), in.path(), in.hash(), in.pod()};
}

v1::JobPod ToProto(const JobPod& pod) {
  v1::JobPod out;
  out.set_pod(pod.pod);
  *out.mutable_mesh() = ToProto(pod.mesh);
  out.set_epoch(pod.epoch);
  if (pod.progress.has_value()) *out.mutable_progress() = ToProto(*pod.progress);
  if (pod.checkpoint.has_value()) *out.mutable_checkpoint() = ToProto(*pod.checkpoint);
  out.set_state(pod.state);
  return out;
}

JobPod FromProto(const v1::JobPod& in) {
  JobPod out{in.pod(), MeshFromProto(in.mesh()), in.epoch(), {}, {}, in.state()};
  if (in.has_progress()) out.progress = FromProto(in.progress());
  if (in.has_checkpoint()) out.checkpoint = FromProto(in.checkpoint());
  return out;
}

v1::Job ToProto(const JobStatus& status) {
  v1::Job out;
  out.set_id(status.id);
  out.set_name(status.name);
  out.set_state(ToProto(status.state));
  out.set_reason(status.reason);
  out.set_message(MendUtf8(status.message));
  out.set_pod(status.pod);
  if (status.epoch > 0) *out.mutable_mesh() = ToProto(status.mesh);
  out.set_epoch(status.epoch);
  out.set_restarts(status.restarts);
  out.set_priority(status.priority);
  Set(status.created, out.mutable_created());
  if (status.started != absl::InfinitePast()) Set(status.started, out.mutable_started());
  if (status.ended != absl::InfinitePast()) Set(status.ended, out.mutable_ended());
  const WorldExit& exit = status.exit;
  if (exit.exit_code >= 0 || exit.signal != 0 || exit.rank >= 0 || !exit.message.empty()) {
    *out.mutable_exit() = ToProto(exit);
  }
  if (const auto* generated = std::get_if<GenerateResult>(&status.result)) {
    *out.mutable_generate_result() = ToProto(*generated);
  } else if (const auto* scored = std::get_if<ScoreResult>(&status.result)) {
    *out.mutable_score_result() = ToProto(*scored);
  } else if (const auto* trained = std::get_if<TrainResult>(&status.result)) {
    *out.mutable_train_result() = ToProto(*trained);
  } else if (const auto* verified = std::get_if<VerifyResult>(&status.result)) {
    *out.mutable_verify_result() = ToProto(*verified);
  }
  if (status.progress.has_value()) *out.mutable_progress() = ToProto(*status.progress);
  if (status.checkpoint.has_value()) *out.mutable_checkpoint() = ToProto(*status.checkpoint);
  out.set_restarts_since_checkpoint(status.restarts_since_checkpoint);
  for (const JobPod& pod : status.pods) *out.add_pods() = ToProto(pod);
  if (!status.pods.empty()) {
    v1::PodsAgreement& agreement = *out.mutable_agreement();
    agreement.set_checkpoint_step(status.agreement.checkpoint_step);
    agreement.set_hash_step(status.agreement.hash_step);
    agreement.set_hash(status.agreement.hash);
    agreement.set_hashes_differ(status.agreement.hashes_differ);
  }
  return out;
}

absl::StatusOr<JobStatus> FromProto(const v1::Job& in) {
  JobStatus out;
  out.id = in.id();
  out.name = in.name();
  TOROID_ASSIGN_OR_RETURN(out.state, FromProto(in.state()));
  out.reason = in.reason();
  out.message = in.message();
  out.pod = in.pod();
  out.mesh = MeshFromProto(in.mesh());
  out.epoch = in.epoch();
  out.restarts = in.restarts();
  out.priority = in.priority();
  out.created = TimeOf(in.created());
  out.started = in.has_started() ? TimeOf(in.started()) : absl::InfinitePast();
  out.ended = in.has_ended() ? TimeOf(in.ended()) : absl::InfinitePast();
  if (in.has_exit()) out.exit = FromProto(in.exit());
  if (in.has_generate_result()) out.result = FromProto(in.generate_result());
  if (in.has_score_result()) out.result = FromProto(in.score_result());
  if (in.has_train_result()) out.result = FromProto(in.train_result());
  if (in.has_verify_result()) out.result = FromProto(in.verify_result());
  if (in.has_progress()) out.progress = FromProto(in.progress());
  if (in.has_checkpoint()) out.checkpoint = FromProto(in.checkpoint());
  out.restarts_since_checkpoint = in.restarts_since_checkpoint();
  for (const v1::JobPod& pod : in.pods()) out.pods.push_back(FromProto(pod));
  const v1::PodsAgreement& agreement = in.agreement();
  out.agreement = {agreement.checkpoint_step(), agreement.hash_step(), agreement.hash(),
                   agreement.hashes_differ()};
  return out;
}

v1::JobEvent ToProto(const JobEvent& event) {
  v1::JobEvent out;
  out.set_sequence(event.sequence);
  Set(event.time, out.mutable_time());
  *out.mutable_job() = ToProto(event.status);
  return out;
}

absl::StatusOr<JobEvent> FromProto(const v1::JobEvent& in) {
  TOROID_ASSIGN_OR_RETURN(JobStatus status, FromProto(in.job()));
  return JobEvent{in.sequence(), TimeOf(in.time()), std::move(status)};
}

v1::LogLine ToProto(const LogLine& line) {
  v1::LogLine out;
  out.set_next_offset(line.next_offset);
  if (line.rank >= 0) out.set_rank(line.rank);
  out.set_error(line.error);
  out.set_text(line.text);
  return out;
}

LogLine FromProto(const v1::LogLine& line) {
  return {line.next_offset(), line.has_rank() ? line.rank() : -1, line.error(), line.text()};
}

v1::Pod ToProto(const PodStatus& pod) {
  v1::Pod out;
  out.set_name(pod.name);
  out.set_host(MendUtf8(pod.host));
  out.set_slots(pod.slots);
  out.set_state(pod.state);
  out.set_job(pod.job);
  out.set_model(MendUtf8(pod.model));
  out.set_epoch(pod.epoch);
  Set(pod.last_seen, out.mutable_last_seen());
  return out;
}

PodStatus FromProto(const v1::Pod& pod) {
  return {pod.name(), pod.host(),  pod.slots(), pod.state(),
          pod.job(),  pod.model(), pod.epoch(), TimeOf(pod.last_seen())};
}

JobCodec ProtoJobCodec() {
  JobCodec codec;
  codec.encode_spec = [](const JobSpec& spec) { return ToProto(spec).SerializeAsString(); };
  codec.decode_spec = [](const std::string& bytes) -> absl::StatusOr<JobSpec> {
    v1::JobSpec spec;
    if (!spec.ParseFromString(bytes)) return absl::DataLossError("a stored spec is unreadable");
    return FromProto(spec);
  };
  codec.encode_status = [](const JobStatus& status) {
    v1::Job job = ToProto(status);
    job.clear_progress();
    return job.SerializeAsString();
  };
  codec.decode_status = [](const std::string& bytes) -> absl::StatusOr<JobStatus> {
    v1::Job job;
    if (!job.ParseFromString(bytes)) return absl::DataLossError("a stored state is unreadable");
    return FromProto(job);
  };
  return codec;
}

}  // namespace toroid
