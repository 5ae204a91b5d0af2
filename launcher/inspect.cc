// toroid inspect: what a model's files say of themselves, without loading
// weights; of a checkpoint also whether it is sound.
#include <nlohmann/json.hpp>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "core/io/checkpoint_directory.h"
#include "core/io/describe.h"
#include "core/io/model_checkpoint.h"
#include "core/status_macros.h"
#include "launcher/json_output.h"
#include "launcher/options.h"
#include "launcher/quantity.h"
#include "launcher/terminal.h"
#include "launcher/verbs.h"

namespace toroid {
namespace {

using nlohmann::ordered_json;

std::string Hex(uint64_t hash) { return absl::StrFormat("%016x", hash); }

ordered_json Json(const ModelDescription& model) {
  ordered_json json = {{"schema", kJsonSchema},
                       {"path", model.path},
                       {"format", model.format},
                       {"name", model.name},
                       {"architecture", model.architecture},
                       {"parameters", model.parameters},
                       {"tensor_bytes", model.tensor_bytes},
                       {"fingerprint", Hex(model.fingerprint)},
                       {"tokenizer", model.tokenizer}};
  json["configuration"] = ordered_json::object();
  for (const auto& [name, value] : model.configuration) json["configuration"][name] = value;
  for (const char* list : {"files", "types", "tensors"}) {
    json[list] = ordered_json::array();
  }
  for (const auto& file : model.files) {
    json["files"].push_back({{"path", file.path}, {"bytes", file.bytes}});
  }
  for (const auto& type : model.types) {
    json["types"].push_back(
        {{"dtype", type.dtype}, {"tensors", type.tensors}, {"bytes", type.bytes}});
  }
  for (const auto& tensor : model.tensors) {
    json["tensors"].push_back({{"name", tensor.name},
                               {"dtype", tensor.dtype},
                               {"shape", tensor.shape},
                               {"bytes", tensor.bytes},
                               {"file", tensor.file},
                               {"interleaved", tensor.interleaved}});
  }
  return json;
}

// The toroid that wrote it; empty: it does not say.
std::string WriterOf(const TrainingState& state) {
  const auto found = state.texts.find(kWriterText);
  return found == state.texts.end() ? "" : found->second;
}

ordered_json Json(const CheckpointDescription& checkpoint) {
  const CheckpointManifest& manifest = checkpoint.manifest;
  const TrainingState& state = manifest.state;
  ordered_json json = {
      {"path", checkpoint.path},
      {"step", state.step},
      {"branch", state.branch},
      {"epoch", manifest.epoch},
      {"mesh", {{"data", manifest.data}, {"ring", manifest.ring}, {"tensor", manifest.tensor}}},
      {"dtype", Info(manifest.dtype).name},
      {"toroid", WriterOf(state).empty() ? ordered_json() : ordered_json(WriterOf(state))},
      {"data_position", state.data_position},
      {"seed", state.seed},
      {"skipped", state.skipped.ToString()},
      {"hash", Hex(checkpoint.hash)},
      {"bytes", checkpoint.bytes},
      {"damaged", !checkpoint.status.ok()}};
  if (!checkpoint.status.ok()) json["problem"] = checkpoint.status.message();
  json["before"] = checkpoint.before.empty() ? ordered_json() : ordered_json(checkpoint.before);
  json["shards"] = ordered_json::array();
  for (const auto& shard : checkpoint.shards) {
    json["shards"].push_back({{"name", shard.name},
                              {"bytes", shard.bytes},
                              {"elements", shard.elements},
                              {"hash", Hex(shard.hash)},
                              {"sound", shard.status.ok()}});
  }
  return json;
}

std::string Text(const CheckpointDescription& checkpoint, bool whole) {
  const CheckpointManifest& manifest = checkpoint.manifest;
  const TrainingState& state = manifest.state;
  std::string text = absl::StrFormat(
      "%s\n  step          %d\n  branch        %d\n  parameters    %d, %s\n"
      "  written by    toroid %s on data=%d,ring=%d,tensor=%d\n"
      "  data position %d\n  seed          %d\n  skipped       %s\n"
      "  bytes         %s\n  hash          %016x\n  state         %s\n  before        %s\n",
      checkpoint.path, state.step, state.branch, manifest.model.ParameterCount(),
      Info(manifest.dtype).name, WriterOf(state).empty() ? "unknown" : WriterOf(state),
      manifest.data, manifest.ring, manifest.tensor, state.data_position, state.seed,
      state.skipped.ToString().empty() ? "none" : state.skipped.ToString(),
      FormatBytes(double(checkpoint.bytes)), checkpoint.hash,
      !checkpoint.status.ok() ? "damaged"
      : whole                 ? "sound"
                              : "sound as far as headers say",
      checkpoint.before.empty() ? "none" : checkpoint.before);
  std::vector<std::vector<std::string>> rows = {{"shard", "bytes", "elements", "hash", "state"}};
  for (const auto& shard : checkpoint.shards) {
    rows.push_back({shard.name, absl::StrCat(shard.bytes), absl::StrCat(shard.elements),
                    Hex(shard.hash), shard.status.ok() ? "sound" : "damaged"});
  }
  return absl::StrCat(text, "\n", Table(rows, ColourStdout()));
}

std::string Text(const ModelDescription& model, bool tensors) {
  const auto bytes = [](int64_t n) { return FormatBytes(static_cast<double>(n)); };
  std::string text = absl::StrFormat(
      "%s\n  format        %s\n  architecture  %s\n  parameters    %d\n  "
      "tensors       %d, %s\n"
      "  tokenizer     %s\n  fingerprint   %016x\n",
      model.path, model.format, model.architecture, model.parameters, model.tensors.size(),
      bytes(model.tensor_bytes), model.tokenizer, model.fingerprint);
  std::vector<std::vector<std::string>> rows = {{"configuration", "value"}};
  for (const auto& [name, value] : model.configuration) rows.push_back({name, value});
  absl::StrAppend(&text, "\n", Table(rows, ColourStdout()));
  rows = {{"type", "tensors", "bytes"}};
  for (const auto& type : model.types) {
    rows.push_back({type.dtype, absl::StrCat(type.tensors), absl::StrCat(type.bytes)});
  }
  absl::StrAppend(&text, "\n", Table(rows, ColourStdout()));
  if (!model.files.empty()) {
    rows = {{"file", "bytes"}};
    for (const auto& file : model.files) rows.push_back({file.path, absl::StrCat(file.bytes)});
    absl::StrAppend(&text, "\n", Table(rows, ColourStdout()));
  }
  if (tensors) {
    rows = {{"tensor", "type", "shape", "bytes"}};
    for (const auto& tensor : model.tensors) {
      rows.push_back({tensor.name, tensor.dtype,
                      absl::StrCat("[", absl::StrJoin(tensor.shape, ", "), "]"),
                      absl::StrCat(tensor.bytes)});
    }
    absl::StrAppend(&text, "\n", Table(rows, ColourStdout()));
  }
  return text;
}

absl::Status RunInspect(const Arguments& arguments) {
  const std::string path = arguments.Text("MODEL");
  const bool whole = !arguments.Flag("--headers");
  TOROID_ASSIGN_OR_RETURN(const std::string directory, FindCheckpoint(PosixFiles(), path));
  std::optional<CheckpointDescription> checkpoint;
  if (!directory.empty()) {
    TOROID_ASSIGN_OR_RETURN(checkpoint, DescribeCheckpoint(directory, whole));
  }
  absl::StatusOr<ModelSource> source = OpenModel(path);
  if (!checkpoint && !source.ok()) return source.status();
  ordered_json json = {{"schema", kJsonSchema}, {"path", path}, {"format", "checkpoint"}};
  std::string text;
  if (checkpoint) text = Text(*checkpoint, whole);
  if (source.ok()) {
    const ModelDescription model = Describe(*source);
    json = Json(model);
    absl::StrAppend(&text, text.empty() ? "" : "\n", Text(model, arguments.Flag("--tensors")));
  }
  if (checkpoint) json["checkpoint"] = Json(*checkpoint);
  if (JsonOption(arguments)) {
    text = absl::StrCat(json.dump(-1, ' ', false, ordered_json::error_handler_t::replace), "\n");
  }
  WriteStdout(text);
  if (!checkpoint) return absl::OkStatus();
  TOROID_RETURN_IF_ERROR(OfferBefore(PosixFiles(), directory, checkpoint->status));
  return source.status();
}

const OptionTable kInspectOptions = {
    "extent",
    {
        {"--tensors", ValueKind::kFlag, "", "", "list every tensor (JSON always does)"},
        {"--headers", ValueKind::kFlag, "", "",
         "of a checkpoint: only headers and lengths of its shards, not every byte"},
        {"--model", ValueKind::kText, "MODEL", "", "the same as the argument MODEL"},
    }};

}  // namespace

const Verb kInspectVerb = {
    .name = "inspect",
    .summary = "what a model's files hold, without loading them",
    .positionals = {{"MODEL", true,
                     "a model directory, a GGUF file, a checkpoint, a run's directory or "
                     "random:NAME"}},
    .tables = {&kInspectOptions, &kOutputOptions},
    .examples =
        "toroid inspect /models/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf\n"
        "toroid inspect random:tiny-gqa --tensors\n"
        "toroid inspect runs/book\n"
        "toroid inspect /models/llama -o json | jq .parameters",
    .run = RunInspect,
    .details =
        "Of a checkpoint every byte is read and compared with its hash; one that is damaged is "
        "shown all the same, its shard named, and the exit code is 3.",
};

}  // namespace toroid
