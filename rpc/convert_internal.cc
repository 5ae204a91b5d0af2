#include "absl/strings/str_cat.h"
#include "core/status_macros.h"
#include "rpc/convert.h"
#include "rpc/error_info.h"

namespace toroid {

google::rpc::Status ToProto(const absl::Status& status) {
  google::rpc::Status out;
  out.set_code(static_cast<int>(status.code()));
  out.set_message(MendUtf8(std::string(status.message())));
  if (status.ok()) return out;
  const ErrorInfo info = GetErrorInfo(status);
  google::rpc::ErrorInfo detail;
  detail.set_reason(info.reason.empty() ? absl::StatusCodeToString(status.code()) : info.reason);
  detail.set_domain(kErrorDomain);
  for (const auto& [key, value] : info.metadata) {
    (*detail.mutable_metadata())[key] = MendUtf8(value);
  }
  out.add_details()->PackFrom(detail);
  if (!info.fields.empty()) {
    google::rpc::BadRequest bad;
    for (const FieldViolation& field : info.fields) {
      auto& violation = *bad.add_field_violations();
      violation.set_field(MendUtf8(field.field));
      violation.set_description(MendUtf8(field.description));
    }
    out.add_details()->PackFrom(bad);
  }
  return out;
}

absl::Status FromProto(const google::rpc::Status& in) {
  const absl::Status status(static_cast<absl::StatusCode>(in.code()), in.message());
  if (status.ok()) return status;
  ErrorInfo info;
  for (const google::protobuf::Any& any : in.details()) {
    google::rpc::ErrorInfo detail;
    google::rpc::BadRequest bad;
    if (any.UnpackTo(&detail)) {
      info.reason = detail.reason();
      for (const auto& [key, value] : detail.metadata()) info.metadata[key] = value;
    } else if (any.UnpackTo(&bad)) {
      for (const auto& violation : bad.field_violations()) {
        info.fields.push_back({violation.field(), violation.description()});
      }
    }
  }
  return info.reason.empty() ? status : WithErrorInfo(status, info);
}

internal::v1::WorldId ToProto(const WorldId& id) {
  internal::v1::WorldId out;
  out.set_job(id.job);
  out.set_epoch(id.epoch);
  out.set_view(id.view);
  return out;
}

WorldId FromProto(const internal::v1::WorldId& id) { return {id.job(), id.epoch(), id.view()}; }

namespace {

internal::v1::Load LoadMessage(const LoadRequest& load) {
  Placement placement;
  placement.load = load;
  const v1::Placement message = ToProto(placement, absl::ZeroDuration());
  internal::v1::Load out;
  *out.mutable_model() = message.model();
  *out.mutable_mesh() = ToProto(load.mesh);
  out.set_compute(message.compute());
  return out;
}

absl::StatusOr<LoadRequest> ReadLoad(const internal::v1::Load& in) {
  v1::Placement placement;
  *placement.mutable_model() = in.model();
  placement.set_compute(in.compute());
  TOROID_ASSIGN_OR_RETURN(Placement read, FromProto(placement, nullptr));
  read.load.mesh = MeshFromProto(in.mesh());
  return std::move(read.load);
}

}  // namespace

internal::v1::WorldMessage ToProto(const WorldId& world, const WorldProgram& program) {
  internal::v1::WorldMessage out;
  *out.mutable_world() = ToProto(world);
  out.set_number(program.number);
  if (program.pool.has_value()) {
    internal::v1::Pooled& pooled = *out.mutable_pooled();
    pooled.set_job(program.pool->job);
    pooled.set_epoch(program.pool->epoch);
    if (!std::holds_alternative<TrainOrder>(program.task)) {
      *pooled.mutable_load() = LoadMessage(program.pool->load);
    }
  }
  if (const auto* load = std::get_if<LoadTask>(&program.task)) {
    *out.mutable_load() = LoadMessage(load->load);
  } else if (const auto* generate = std::get_if<GenerateTask>(&program.task)) {
    *out.mutable_generate()->mutable_task() = ToProto(*generate);
    out.mutable_generate()->set_output_dir(program.output_dir);
  } else if (const auto* score = std::get_if<ScoreTask>(&program.task)) {
    *out.mutable_score()->mutable_task() = ToProto(*score);
    out.mutable_score()->set_output_dir(program.output_dir);
  } else if (const auto* train = std::get_if<TrainOrder>(&program.task)) {
    *out.mutable_train()->mutable_spec() = ToProto(train->spec);
    v1::Mesh& mesh = *out.mutable_train()->mutable_spec()->mutable_mesh();
    const int32_t pods = mesh.pods();
    mesh = ToProto(train->spec.placement.load.mesh);
    mesh.set_pods(pods);
    out.mutable_train()->set_output_dir(program.output_dir);
    out.mutable_train()->set_pod(train->pod);
    out.mutable_train()->set_joins(train->joins);
    out.mutable_train()->set_committed_step(train->committed_step);
    out.mutable_train()->set_committed_path(train->committed_path);
  } else if (const auto* verify = std::get_if<VerifyTask>(&program.task)) {
    *out.mutable_verify() = ToProto(*verify);
  } else if (const auto* tokenize = std::get_if<TokenizeTask>(&program.task)) {
    out.mutable_tokenize()->set_text(tokenize->text);
    out.mutable_tokenize()->set_no_special(!tokenize->special);
  } else if (const auto* detokenize = std::get_if<DetokenizeTask>(&program.task)) {
    out.mutable_detokenize()->mutable_ids()->Assign(detokenize->ids.begin(), detokenize->ids.end());
  } else {
    out.mutable_exit();
  }
  return out;
}

absl::StatusOr<WorldProgram> FromProto(const internal::v1::WorldMessage& in) {
  using Message = internal::v1::WorldMessage;
  WorldProgram out;
  out.number = in.number();
  if (in.has_pooled()) {
    out.pool.emplace(PoolPart{in.pooled().job(), in.pooled().epoch(), {}});
    if (in.pooled().has_load()) {
      TOROID_ASSIGN_OR_RETURN(out.pool->load, ReadLoad(in.pooled().load()));
    }
  }
  switch (in.body_case()) {
    case Message::kLoad: {
      LoadTask task;
      TOROID_ASSIGN_OR_RETURN(task.load, ReadLoad(in.load()));
      out.task = std::move(task);
      return out;
    }
    case Message::kGenerate: {
      TOROID_ASSIGN_OR_RETURN(out.task, FromProto(in.generate().task()));
      out.output_dir = in.generate().output_dir();
      return out;
    }
    case Message::kScore: {
      TOROID_ASSIGN_OR_RETURN(out.task, FromProto(in.score().task()));
      out.output_dir = in.score().output_dir();
      return out;
    }
    case Message::kTrain: {
      TrainOrder order;
      TOROID_ASSIGN_OR_RETURN(order.spec, FromProto(in.train().spec()));
      const MeshShape mesh = MeshFromProto(in.train().spec().mesh());
      order.spec.placement.load.mesh = mesh;
      order.spec.placement.mesh = {mesh.data, mesh.ring, mesh.tensor};
      order.pod = in.train().pod();
      order.joins = in.train().joins();
      order.committed_step = in.train().committed_step();
      order.committed_path = in.train().committed_path();
      out.task = std::move(order);
      out.output_dir = in.train().output_dir();
      return out;
    }
    case Message::kVerify: {
      TOROID_ASSIGN_OR_RETURN(out.task, FromProto(in.verify()));
      return out;
    }
    case Message::kTokenize:
      out.task = TokenizeTask{in.tokenize().text(), !in.tokenize().no_special()};
      return out;
    case Message::kDetokenize:
      out.task = DetokenizeTask{{in.detokenize().ids().begin(), in.detokenize().ids().end()}};
      return out;
    case Message::kExit:
      out.task = ExitTask();
      return out;
    case Message::kCancel:
    case Message::kAttached:
    case Message::kPods:
    case Message::BODY_NOT_SET:
      break;
  }
  return absl::InvalidArgumentError("a program that this version does not know");
}

internal::v1::WorkerMessage ToProto(const WorldId& world, const WorldAnswer& answer) {
  internal::v1::WorkerMessage out;
  *out.mutable_world() = ToProto(world);
  out.set_number(answer.number);
  const auto& body = answer.body;
  if (const auto* loaded = std::get_if<LoadAnswer>(&body)) {
    *out.mutable_loaded()->mutable_model() = ToProto(loaded->model);
    out.mutable_loaded()->set_load_s(loaded->load_s);
  } else if (const auto* progress = std::get_if<ProgressAnswer>(&body)) {
    *out.mutable_progress() = ToProto(*progress);
  } else if (const auto* checkpoint = std::get_if<JobCheckpoint>(&body)) {
    *out.mutable_checkpoint() = ToProto(*checkpoint);
  } else if (const auto* tokens = std::get_if<std::vector<TokenEvent>>(&body)) {
    for (const TokenEvent& token : *tokens) *out.mutable_tokens()->add_tokens() = ToProto(token);
  } else if (const auto* generated = std::get_if<GenerateResult>(&body)) {
    *out.mutable_generated() = ToProto(*generated);
  } else if (const auto* scored = std::get_if<ScoreResult>(&body)) {
    *out.mutable_scored() = ToProto(*scored);
  } else if (const auto* trained = std::get_if<TrainResult>(&body)) {
    *out.mutable_trained() = ToProto(*trained);
  } else if (const auto* verified = std::get_if<VerifyResult>(&body)) {
    *out.mutable_verified() = ToProto(*verified);
  } else if (const auto* tokenized = std::get_if<TokenizeResult>(&body)) {
    *out.mutable_tokenized() = ToProto(*tokenized);
  } else if (const auto* detokenized = std::get_if<DetokenizeAnswer>(&body)) {
    out.mutable_detokenized()->set_text(MendUtf8(detokenized->text));
  } else if (const auto* listens = std::get_if<ListensAnswer>(&body)) {
    for (const std::string& address : listens->addresses) {
      out.mutable_listens()->add_addresses(address);
    }
  } else if (const auto* silent = std::get_if<SilentAnswer>(&body)) {
    out.mutable_silent()->set_pod(silent->pod);
    out.mutable_silent()->set_epoch(silent->epoch);
    out.mutable_silent()->set_slow_seconds(silent->slow_s);
  } else if (const auto* status = std::get_if<absl::Status>(&body)) {
    *out.mutable_failed() = ToProto(*status);
  } else {
    *out.mutable_ended() = ToProto(std::get<WorldEnding>(body).status);
  }
  return out;
}

absl::StatusOr<WorldAnswer> FromProto(const internal::v1::WorkerMessage& in) {
  using Message = internal::v1::WorkerMessage;
  WorldAnswer out;
  out.number = in.number();
  switch (in.body_case()) {
    case Message::kLoaded:
      out.body = LoadAnswer{FromProto(in.loaded().model()), in.loaded().load_s()};
      return out;
    case Message::kProgress:
      out.body = FromProto(in.progress());
      return out;
    case Message::kCheckpoint:
      out.body = FromProto(in.checkpoint());
      return out;
    case Message::kTokens: {
      std::vector<TokenEvent> tokens;
      for (const v1::Token& token : in.tokens().tokens()) tokens.push_back(FromProto(token));
      out.body = std::move(tokens);
      return out;
    }
    case Message::kGenerated:
      out.body = FromProto(in.generated());
      return out;
    case Message::kScored:
      out.body = FromProto(in.scored());
      return out;
    case Message::kTrained:
      out.body = FromProto(in.trained());
      return out;
    case Message::kVerified:
      out.body = FromProto(in.verified());
      return out;
    case Message::kTokenized:
      out.body = FromProto(in.tokenized());
      return out;
    case Message::kDetokenized:
      out.body = DetokenizeAnswer{in.detokenized().text()};
      return out;
    case Message::kListens:
      out.body = ListensAnswer{{in.listens().addresses().begin(), in.listens().addresses().end()}};
      return out;
    case Message::kSilent:
      out.body = SilentAnswer{in.silent().pod(), in.silent().epoch(), in.silent().slow_seconds()};
      return out;
    case Message::kFailed: {
      absl::Status status = FromProto(in.failed());
      if (status.ok()) status = absl::InternalError("a world failed without saying why");
      out.body = std::move(status);
      return out;
    }
    case Message::kEnded:
      out.body = WorldEnding{FromProto(in.ended())};
      return out;
    case Message::kAttach:
    case Message::BODY_NOT_SET:
      break;
  }
  return absl::InvalidArgumentError("an answer that this version does not know");
}

internal::v1::PodTable ToProto(const PodTable& table) {
  internal::v1::PodTable out;
  out.set_view(table.view);
  for (const PodAddresses& pod : table.pods) {
    internal::v1::PodAddresses& entry = *out.add_pods();
    entry.set_pod(pod.pod);
    entry.set_epoch(pod.epoch);
    for (const std::string& address : pod.ranks) entry.add_addresses(address);
  }
  return out;
}

PodTable FromProto(const internal::v1::PodTable& in) {
  PodTable out;
  out.view = in.view();
  for (const internal::v1::PodAddresses& entry : in.pods()) {
    out.pods.push_back(
        {entry.pod(), entry.epoch(), {entry.addresses().begin(), entry.addresses().end()}});
  }
  return out;
}

}  // namespace toroid
