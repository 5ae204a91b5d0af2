// The only code that knows both the messages of proto/ and our structs.
//
// From a message of a client: fields are checked here, and an error is a BadField naming the field.
// To a message: text that is not UTF-8 is mended with U+FFFD, since a reader would refuse it.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "google/rpc/error.pb.h"
#include "rpc/control.h"
#include "rpc/job.h"
#include "toroid/internal/v1/agent.pb.h"
#include "toroid/internal/v1/worker.pb.h"
#include "toroid/v1/inference.pb.h"
#include "toroid/v1/job.pb.h"

namespace toroid {

// --- statuses
google::rpc::Status ToProto(const absl::Status& status);
absl::Status FromProto(const google::rpc::Status& status);

// --- models, prompts (convert_model.cc)
v1::Mesh ToProto(const MeshShape& mesh);
MeshShape MeshFromProto(const v1::Mesh& mesh);
absl::StatusOr<MeshWish> WishFromProto(const v1::Mesh& mesh);
// field: what holds the sizes, "mesh".
absl::Status CheckSizes(absl::string_view field, const MeshWish& wish);
v1::Placement ToProto(const Placement& placement, absl::Duration keep_alive);
absl::StatusOr<Placement> FromProto(const v1::Placement& placement, absl::Duration* keep_alive);
v1::GenerateTask ToProto(const GenerateTask& task);
absl::StatusOr<GenerateTask> FromProto(const v1::GenerateTask& task);
v1::ScoreTask ToProto(const ScoreTask& task);
absl::StatusOr<ScoreTask> FromProto(const v1::ScoreTask& task);
v1::VerifyTask ToProto(const VerifyTask& task);
absl::StatusOr<VerifyTask> FromProto(const v1::VerifyTask& task);
// "5m", "500ms"; empty: `missing`. BadField names `field`.
absl::StatusOr<absl::Duration> ReadDuration(const std::string& text, const char* field,
                                            absl::Duration missing);

// --- training (convert_train.cc)
v1::TrainTask ToProto(const TrainTask& task);
absl::StatusOr<TrainTask> FromProto(const v1::TrainTask& task);
v1::TrainResult ToProto(const TrainResult& result);
TrainResult FromProto(const v1::TrainResult& result);
// The codec that the mode of an exchange names becomes the exchange's, which is what is read.
// BadField: both name one, and not the same.
absl::Status LiftCodec(v1::Exchange& exchange);

// --- results (convert_result.cc)
v1::ModelInfo ToProto(const ModelStatus& model);
ModelStatus FromProto(const v1::ModelInfo& model);
v1::Token ToProto(const TokenEvent& token);
TokenEvent FromProto(const v1::Token& token);
v1::GenerateResult ToProto(const GenerateResult& result);
GenerateResult FromProto(const v1::GenerateResult& result);
v1::ScoreResult ToProto(const ScoreResult& result);
ScoreResult FromProto(const v1::ScoreResult& result);
v1::Progress ToProto(const TaskProgress& progress);
TaskProgress FromProto(const v1::Progress& progress);
v1::VerifyResult ToProto(const VerifyResult& result);
VerifyResult FromProto(const v1::VerifyResult& result);
v1::TokenizeResponse ToProto(const TokenizeResult& result);
TokenizeResult FromProto(const v1::TokenizeResponse& result);

// --- jobs, pods (convert_job.cc)
v1::JobSpec ToProto(const JobSpec& spec);
absl::StatusOr<JobSpec> FromProto(const v1::JobSpec& spec);
v1::JobState ToProto(JobState state);
absl::StatusOr<JobState> FromProto(v1::JobState state);
v1::Job ToProto(const JobStatus& status);
absl::StatusOr<JobStatus> FromProto(const v1::Job& job);
v1::JobEvent ToProto(const JobEvent& event);
absl::StatusOr<JobEvent> FromProto(const v1::JobEvent& event);
v1::Checkpoint ToProto(const JobCheckpoint& checkpoint);
JobCheckpoint FromProto(const v1::Checkpoint& checkpoint);
v1::WorldExit ToProto(const WorldExit& exit);
WorldExit FromProto(const v1::WorldExit& exit);
v1::LogLine ToProto(const LogLine& line);
LogLine FromProto(const v1::LogLine& line);
v1::Pod ToProto(const PodStatus& pod);
PodStatus FromProto(const v1::Pod& pod);
JobCodec ProtoJobCodec();

// --- between our own processes (convert_internal.cc)
internal::v1::WorldId ToProto(const WorldId& id);
WorldId FromProto(const internal::v1::WorldId& id);
internal::v1::WorldMessage ToProto(const WorldId& world, const WorldProgram& program);
// InvalidArgument: a program that this version does not know.
absl::StatusOr<WorldProgram> FromProto(const internal::v1::WorldMessage& message);
internal::v1::WorkerMessage ToProto(const WorldId& world, const WorldAnswer& answer);
absl::StatusOr<WorldAnswer> FromProto(const internal::v1::WorkerMessage& message);
internal::v1::PodTable ToProto(const PodTable& table);
PodTable FromProto(const internal::v1::PodTable& table);

// `text` with what is not UTF-8 replaced by U+FFFD.
std::string MendUtf8(const std::string& text);

}  // namespace toroid
