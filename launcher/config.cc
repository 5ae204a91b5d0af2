// toroid config show|schema: what a job spec says after --set and TOROID_*, and what it may say.
#include <google/protobuf/message.h>
#include <google/protobuf/text_format.h>

#include <map>

#include "absl/strings/str_cat.h"
#include "core/status_macros.h"
#include "launcher/job_spec.h"
#include "launcher/json_output.h"
#include "launcher/options.h"
#include "launcher/terminal.h"
#include "launcher/verbs.h"
#include "rpc/client.h"
#include "rpc/convert.h"
#include "toroid/v1/job.pb.h"

namespace toroid {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;

// "mesh.ring" -> "2" for every field that is set; a list is one value.
void Flatten(const Message& message, const std::string& prefix,
             std::vector<std::pair<std::string, std::string>>* out) {
  std::vector<const FieldDescriptor*> fields;
  message.GetReflection()->ListFields(message, &fields);
  for (const FieldDescriptor* field : fields) {
    const std::string path = absl::StrCat(prefix, field->name());
    if (field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE && !field->is_repeated()) {
      Flatten(message.GetReflection()->GetMessage(message, field), absl::StrCat(path, "."), out);
      continue;
    }
    const int count = field->is_repeated() ? message.GetReflection()->FieldSize(message, field) : 1;
    std::string value;
    for (int i = 0; i < count; ++i) {
      std::string one;
      google::protobuf::TextFormat::PrintFieldValueToString(message, field,
                                                            field->is_repeated() ? i : -1, &one);
      absl::StrAppend(&value, i > 0 ? ", " : "", one);
    }
    out->emplace_back(path, field->is_repeated() ? absl::StrCat("[", value, "]") : value);
  }
}

absl::Status RunShow(const Arguments& arguments) {
  const std::string path = arguments.Text("FILE");
  TOROID_ASSIGN_OR_RETURN(const JobSources sources, ReadJobSources(path, arguments.Texts("--set")));
  TOROID_ASSIGN_OR_RETURN(const JobSpec spec, MergeJobSources(path, sources));
  const v1::JobSpec merged = ToProto(spec);
  const bool origin = arguments.Flag("--origin"), json = JsonOption(arguments);
  if (!origin && !json) {
    WriteStdout(JobSpecText(spec));
    return absl::OkStatus();
  }
  std::vector<std::pair<std::string, std::string>> all;
  Flatten(merged, "", &all);
  const std::map<std::string, std::string> origins = JobOrigins(sources);
  std::vector<std::vector<std::string>> table = {{"field", "value", "origin"}};
  std::vector<JsonRow> rows;
  for (const auto& [field, value] : all) {
    const auto known = origins.find(field);
    const std::string from = known == origins.end() ? "default" : known->second;
    table.push_back({field, value, from});
    rows.push_back({{"field", field}, {"value", value}, {"origin", from}});
  }
  WriteStdout(json ? absl::StrCat(FactsJson({}, &rows), "\n") : Table(table, ColourStdout()));
  return absl::OkStatus();
}

absl::Status RunSchema(const Arguments&) {
  WriteStdout(JobSpecSchema());
  return absl::OkStatus();
}

const OptionTable kShowOptions = {
    "values",
    {
        {"--set", ValueKind::kText, "a.b.c=V", "", "a field that beats the file (repeat for more)",
         false, true},
        {"--origin", ValueKind::kFlag, "", "", "say of each field where its value comes from"},
    }};

}  // namespace

const Verb kConfigShowVerb = {
    .name = "config show",
    .summary = "what a job spec says once --set, TOROID_* and defaults are in",
    .positionals = {{"FILE", true, "a job spec: textproto, JSON or YAML; - is standard input"}},
    .tables = {&kShowOptions, &kOutputOptions},
    .examples =
        "toroid config show job.yaml --set mesh.ring=2 --origin\n"
        "TOROID_GENERATE_MAX_TOKENS=64 toroid config show job.yaml --origin",
    .run = RunShow,
    .details =
        "--set beats the file, the file beats the environment, that beats the default. A field's "
        "variable is\nTOROID_ and its path in capitals with underscores. It is ignored where the "
        "file or --set says the field,\nor another task or prompt source than the field's.",
};
const Verb kConfigSchemaVerb = {
    .name = "config schema",
    .summary = "every field of a job spec with its default",
    .positionals = {},
    .tables = {},
    .examples = "toroid config schema",
    .run = RunSchema,
};

}  // namespace toroid
