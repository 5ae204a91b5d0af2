// toroid inspect: what a model's files say of themselves, without loading
// weights.
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "core/io/describe.h"
#include "core/status_macros.h"
#include "launcher/json_output.h"
#include "launcher/options.h"
#include "launcher/quantity.h"
#include "launcher/terminal.h"
#include "launcher/verbs.h"

namespace toroid {
namespace {

std::string Json(const ModelDescription& model) {
  nlohmann::ordered_json json = {{"schema", kJsonSchema},
                                 {"path", model.path},
                                 {"format", model.format},
                                 {"name", model.name},
                                 {"architecture", model.architecture},
                                 {"parameters", model.parameters},
                                 {"tensor_bytes", model.tensor_bytes},
                                 {"fingerprint", absl::StrFormat("%016x", model.fingerprint)},
                                 {"tokenizer", model.tokenizer}};
  json["configuration"] = nlohmann::ordered_json::object();
  for (const auto& [name, value] : model.configuration) json["configuration"][name] = value;
  for (const char* list : {"files", "types", "tensors"}) {
    json[list] = nlohmann::ordered_json::array();
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
  return json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
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
  TOROID_ASSIGN_OR_RETURN(const ModelSource source, OpenModel(arguments.Text("MODEL")));
  const ModelDescription model = Describe(source);
  if (JsonOption(arguments)) {
    WriteStdout(absl::StrCat(Json(model), "\n"));
  } else {
    WriteStdout(Text(model, arguments.Flag("--tensors")));
  }
  return absl::OkStatus();
}

const OptionTable kInspectOptions = {
    "extent",
    {
        {"--tensors", ValueKind::kFlag, "", "", "list every tensor (JSON always does)"},
        {"--model", ValueKind::kText, "MODEL", "", "the same as the argument MODEL"},
    }};

}  // namespace

const Verb kInspectVerb = {
    .name = "inspect",
    .summary = "what a model's files hold, without loading them",
    .positionals = {{"MODEL", true, "a model directory, a GGUF file or random:NAME"}},
    .tables = {&kInspectOptions, &kOutputOptions},
    .examples =
        "toroid inspect /models/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf\n"
        "toroid inspect random:tiny-gqa --tensors\n"
        "toroid inspect /models/llama -o json | jq .parameters",
    .run = RunInspect,
};

}  // namespace toroid
