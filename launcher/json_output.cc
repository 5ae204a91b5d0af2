#include "launcher/json_output.h"

#include <cmath>
#include <nlohmann/json.hpp>

#include "absl/strings/str_format.h"

namespace toroid {
namespace {

using Json = nlohmann::ordered_json;

Json Object() { return Json{{"schema", kJsonSchema}}; }

std::string Dump(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

Json MeshJson(const MeshShape& mesh, int64_t pods = 1) {
  return {{"pods", pods}, {"data", mesh.data}, {"ring", mesh.ring}, {"tensor", mesh.tensor}};
}

void AddReport(const RunReport& report, Json* json) {
  (*json)["timing"] = {{"load_s", report.timing.load_s},
                       {"prefill_s", report.timing.prefill_s},
                       {"decode_s", report.timing.decode_s},
                       {"prefill_tokens_per_s", report.timing.prefill_tokens_per_s},
                       {"decode_tokens_per_s", report.timing.decode_tokens_per_s}};
  const MemoryReport& memory = report.memory;
  (*json)["memory"] = {
      {"peak_bytes", memory.peak},        {"predicted_bytes", memory.predicted},
      {"weights_bytes", memory.weights},  {"kv_bytes", memory.kv},
      {"scratch_bytes", memory.scratch},  {"block_scratch_bytes", memory.block_scratch},
      {"resident_bytes", memory.resident}};
  Json axes = Json::object();
  for (const AxisReport& axis : report.comm) {
    axes[axis.axis] = {{"bytes_sent", axis.bytes_sent},
                       {"prefill_bytes_sent", axis.prefill_bytes_sent},
                       {"calls", axis.calls}};
  }
  (*json)["comm"] = {{"by_axis", std::move(axes)}};
}

Json Generate(absl::string_view model, const GenerateResult& result, bool several) {
  Json json = Object();
  json["model"] = std::string(model);
  if (several) {
    json["prompt_index"] = result.prompt_index;
    json["index"] = result.index;
  }
  json["mesh"] = MeshJson(result.report.mesh);
  json["prompt_tokens"] = result.prompt_tokens;
  json["ids"] = result.ids;
  json["text"] = result.text;
  json["finish_reason"] = FinishReasonName(result.finish);
  if (!result.logprobs.empty()) json["logprobs"] = result.logprobs;
  if (!result.prompt_logprobs.empty()) json["prompt_logprobs"] = result.prompt_logprobs;
  json["min_margin"] = result.min_margin;
  json["batch"] = result.batch;
  AddReport(result.report, &json);
  return json;
}

Json Score(absl::string_view model, const ScoreResult& result) {
  Json json = Object();
  json["model"] = std::string(model);
  json["mesh"] = MeshJson(result.report.mesh);
  json["tokens"] = result.tokens;
  json["mean_nll"] = result.mean_nll;
  json["perplexity"] = result.perplexity;
  if (!result.logprobs.empty()) json["logprobs"] = result.logprobs;
  json["last"] = {{"logsumexp", result.last_logsumexp}, {"top", result.last_top}};
  AddReport(result.report, &json);
  return json;
}

Json TensorJson(const TensorError& tensor) {
  return {{"tensor", tensor.tensor},
          {"layer", tensor.layer},
          {"error", tensor.error},
          {"bound", tensor.bound}};
}

Json Train(const TrainResult& result) {
  Json json = Object();
  json["mesh"] = MeshJson(result.mesh, result.pods);
  json["steps"] = result.run.steps;
  json["tokens"] = result.run.tokens;
  json["first_loss"] = result.run.first_loss;
  json["loss"] = result.run.last_loss;
  json["skipped"] = result.run.skipped;
  json["rewinds"] = result.run.rewinds;
  json["seconds"] = result.seconds;
  json["tokens_per_s"] = result.tokens_per_s;
  json["mfu"] = result.mfu ? Json(*result.mfu) : Json(nullptr);
  json["peak_bytes"] = result.peak_bytes;
  json["directory"] = result.directory;
  json["checkpoint"] = result.run.checkpoint;
  const StopAsked stopped = result.run.stopped;
  json["stopped"] = stopped == StopAsked::kRequeue ? "requeue"
                    : stopped == StopAsked::kNo    ? "done"
                                                   : "interrupted";
  return json;
}

// RFC 3339, or null for a time that has not come.
Json TimeJson(absl::Time time) {
  if (time == absl::InfinitePast() || time == absl::InfiniteFuture()) return nullptr;
  return absl::FormatTime(absl::RFC3339_full, time, absl::UTCTimeZone());
}

Json Verify(const VerifyResult& result) {
  Json json = Json::object();
  json["mesh"] = MeshJson(result.report.mesh);
  json["pass"] = result.pass;
  json["worst"] = TensorJson(result.worst);
  json["tensors"] = Json::array();
  for (const TensorError& tensor : result.tensors) json["tensors"].push_back(TensorJson(tensor));
  AddReport(result.report, &json);
  return json;
}

Json CheckpointJson(const JobCheckpoint& checkpoint) {
  Json json = {{"step", checkpoint.step},
               {"epoch", checkpoint.epoch},
               {"path", checkpoint.path},
               {"hash", absl::StrFormat("%016x", checkpoint.hash)}};
  if (!checkpoint.pod.empty()) json["pod"] = checkpoint.pod;
  return json;
}

Json ProgressJson(const TaskProgress& progress) {
  Json json = {{"phase", progress.phase}, {"done", progress.done}, {"total", progress.total}};
  if (progress.loss.has_value()) json["loss"] = *progress.loss;
  if (progress.tokens_per_s > 0) json["tokens_per_s"] = progress.tokens_per_s;
  if (!progress.exchange.has_value()) return json;
  const ExchangeProgress& exchange = *progress.exchange;
  json["exchange"] = {{"taking_part", exchange.taking_part}, {"staleness", exchange.staleness},
                      {"bytes_sent", exchange.bytes_sent},   {"wait_share", exchange.wait_share},
                      {"dropped", exchange.dropped},         {"hurried", exchange.hurried},
                      {"reconnects", exchange.reconnects}};
  if (exchange.hash_step > 0) {
    json["exchange"]["hash_step"] = exchange.hash_step;
    json["exchange"]["hash"] = absl::StrFormat("%016x", exchange.hash);
  }
  return json;
}

// The pods of a job that trains on several, in the job's order, and what all of them have alike.
void AddPods(const JobStatus& status, Json* json) {
  if (status.pods.empty()) return;
  (*json)["pods"] = Json::array();
  for (const JobPod& pod : status.pods) {
    Json shown = {{"pod", pod.pod}, {"mesh", MeshJson(pod.mesh)}, {"epoch", pod.epoch}};
    if (!pod.state.empty()) shown["state"] = pod.state;
    if (pod.progress.has_value()) shown["progress"] = ProgressJson(*pod.progress);
    if (pod.checkpoint.has_value()) shown["checkpoint"] = CheckpointJson(*pod.checkpoint);
    (*json)["pods"].push_back(std::move(shown));
  }
  const PodsAgreement& agreement = status.agreement;
  Json& shown = (*json)["agreement"] = Json::object();
  if (agreement.checkpoint_step > 0) shown["checkpoint_step"] = agreement.checkpoint_step;
  if (agreement.hash_step == 0) return;
  shown["hash_step"] = agreement.hash_step;
  shown["hash"] = absl::StrFormat("%016x", agreement.hash);
  shown["hashes_differ"] = agreement.hashes_differ;
}

Json Job(const JobStatus& status) {
  Json json = Object();
  json["id"] = status.id;
  json["name"] = status.name;
  json["state"] = ToString(status.state);
  json["reason"] = status.reason;
  json["message"] = status.message;
  json["pod"] = status.pod;
  json["mesh"] = MeshJson(status.mesh);
  json["epoch"] = status.epoch;
  json["restarts"] = status.restarts;
  json["restarts_since_checkpoint"] = status.restarts_since_checkpoint;
  if (status.checkpoint) json["checkpoint"] = CheckpointJson(*status.checkpoint);
  json["priority"] = status.priority;
  json["created"] = TimeJson(status.created);
  json["started"] = TimeJson(status.started);
  json["ended"] = TimeJson(status.ended);
  json["exit"] = {{"exit_code", status.exit.exit_code},
                  {"signal", status.exit.signal},
                  {"rank", status.exit.rank},
                  {"host", status.exit.host},
                  {"message", status.exit.message}};
  if (const auto* generate = std::get_if<GenerateResult>(&status.result)) {
    const bool several = !generate->more.empty();
    Json answer = Generate("", *generate, several);
    answer.erase("model");
    if (several) {
      json["results"] = Json::array({std::move(answer)});
      for (const GenerateResult& more : generate->more) {
        json["results"].push_back(Generate("", more, several));
        json["results"].back().erase("model");
      }
    } else {
      json["result"] = std::move(answer);
    }
  } else if (const auto* score = std::get_if<ScoreResult>(&status.result)) {
    json["result"] = Score("", *score);
    json["result"].erase("model");
  } else if (const auto* train = std::get_if<TrainResult>(&status.result)) {
    json["result"] = Train(*train);
  } else if (const auto* verify = std::get_if<VerifyResult>(&status.result)) {
    json["result"] = Verify(*verify);
  }
  if (status.progress.has_value()) json["progress"] = ProgressJson(*status.progress);
  AddPods(status, &json);
  return json;
}

Json Event(const JobEvent& event) {
  Json json = Object();
  json["sequence"] = event.sequence;
  json["time"] = TimeJson(event.time);
  json["job"] = Job(event.status);
  return json;
}

Json Log(const LogLine& line) {
  Json json = Object();
  json["rank"] = line.rank;
  json["stream"] = line.error ? "stderr" : "stdout";
  json["text"] = line.text;
  json["next_offset"] = line.next_offset;
  return json;
}

Json Model(const ModelStatus& model) {
  return {{"name", model.name},   {"context", model.context},
          {"vocab", model.vocab}, {"mesh", MeshJson(model.mesh)},
          {"pod", model.pod},     {"has_chat_template", model.has_chat_template}};
}

Json Pod(const PodStatus& pod) {
  Json json = Object();
  json["name"] = pod.name;
  json["host"] = pod.host;
  json["slots"] = pod.slots;
  json["state"] = pod.state;
  json["job"] = pod.job;
  json["model"] = pod.model;
  json["epoch"] = pod.epoch;
  json["last_seen"] = TimeJson(pod.last_seen);
  return json;
}

// {"schema":1, name:[..]}
template <typename Item>
Json List(const char* name, const std::vector<Item>& items, Json (*write)(const Item&)) {
  Json json = Object();
  json[name] = Json::array();
  for (const Item& item : items) json[name].push_back(write(item));
  return json;
}

Json Row(const JsonRow& row, Json json) {
  for (const JsonField& field : row) {
    if (!field.is_number) {
      json[field.name] = field.text;
    } else if (field.number == std::floor(field.number) && std::abs(field.number) < 0x1p53) {
      json[field.name] = static_cast<int64_t>(field.number);
    } else {
      json[field.name] = field.number;
    }
  }
  return json;
}

Json WeightsOf(const ReplayedMerges::Weights& weights) {
  const bool compared = weights.compared > 0;
  const auto or_null = [compared](Json value) { return compared ? value : Json(nullptr); };
  return {{"steps_compared", weights.compared},
          {"first_step", or_null(weights.first)},
          {"last_step", or_null(weights.last)},
          {"param_hash", or_null(absl::StrFormat("%016x", weights.hash))},
          {"not_made", weights.not_made.empty() ? Json(nullptr) : Json(weights.not_made)}};
}

}  // namespace

const char* FinishReasonName(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kCancelled:
      return "cancelled";
  }
  return "unknown";
}

std::string GenerateJson(absl::string_view model, const GenerateResult& answer, bool several) {
  return Dump(Generate(model, answer, several));
}

std::string ScoreJson(absl::string_view model, const ScoreResult& result) {
  return Dump(Score(model, result));
}

std::string TrainJson(absl::string_view model, const TrainResult& result) {
  Json json = Object();
  json["model"] = std::string(model);
  json.update(Train(result));
  return Dump(json);
}

std::string VerifyJson(absl::string_view model, const VerifyResult& result) {
  Json json = Object();
  json["model"] = std::string(model);
  json.update(Verify(result));
  return Dump(json);
}

std::string SelfTestJson(const SelfTestResult& result) {
  Json json = Object();
  json["pass"] = result.pass;
  json["clean"] = {{"pass", result.clean.pass}, {"worst", TensorJson(result.clean.worst)}};
  json["bugs"] = Json::array();
  for (const PlantedBug& bug : result.bugs) {
    json["bugs"].push_back(
        {{"bug", bug.bug}, {"found", bug.found}, {"worst", TensorJson(bug.worst)}});
  }
  return Dump(json);
}

std::string ReplayJson(const ReplayResult& result) {
  Json json = Object();
  json["pass"] = result.differs.empty();
  json["differs"] = result.differs.empty() ? Json(nullptr) : Json(result.differs);
  json["pods"] = Json::array();
  for (const auto& [directory, pod] : result.pods) {
    Json one = {{"directory", directory}, {"merges", pod.merges}, {"replayed", pod.replayed}};
    if (pod.outer && pod.same()) one["outer_hash"] = absl::StrFormat("%016x", pod.hash);
    if (pod.weights) one["weights"] = WeightsOf(*pod.weights);
    json["pods"].push_back(std::move(one));
  }
  return Dump(json);
}

std::string TokenizeJson(const TokenizeResult& result, bool pieces) {
  Json json = Object();
  json["count"] = result.ids.size();
  json["ids"] = result.ids;
  if (pieces) json["pieces"] = result.pieces;
  return Dump(json);
}

std::string JobJson(const JobStatus& status) { return Dump(Job(status)); }

std::string JobListJson(const JobPage& page) {
  Json json = List("jobs", page.jobs, Job);
  json["next_page_token"] = page.next_page_token;
  return Dump(json);
}

std::string JobEventJson(const JobEvent& event) { return Dump(Event(event)); }

std::string JobEventListJson(const std::vector<JobEvent>& events) {
  return Dump(List("events", events, Event));
}

std::string PodJson(const PodStatus& pod) { return Dump(Pod(pod)); }

std::string PodListJson(const std::vector<PodStatus>& pods) {
  return Dump(List("pods", pods, Pod));
}

std::string ModelListJson(const std::vector<ModelStatus>& models) {
  return Dump(List("models", models, Model));
}

std::string LogLineJson(const LogLine& line) { return Dump(Log(line)); }

std::string LogListJson(const std::vector<LogLine>& lines) {
  return Dump(List("lines", lines, Log));
}

std::string FactsJson(const JsonRow& facts, const std::vector<JsonRow>* rows) {
  Json json = Row(facts, Object());
  if (rows != nullptr) {
    json["rows"] = Json::array();
    for (const JsonRow& row : *rows) json["rows"].push_back(Row(row, Json::object()));
  }
  return Dump(json);
}

}  // namespace toroid
