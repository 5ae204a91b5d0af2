#include "launcher/job_spec.h"

#include <unistd.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "core/status_macros.h"
#include "launcher/exit_code.h"
#include "launcher/suggest.h"
#include "launcher/terminal.h"
#include "launcher/text_argument.h"
#include "launcher/verbs.h"
#include "rpc/client.h"
#include "toroid/v1/job.pb.h"

namespace toroid {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;

constexpr int kDeepest = 32;
constexpr int kMostNodes = 100000;

absl::Status AtLine(const YAML::Mark& mark, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("bad YAML: line ", mark.line + 1, ": ", what));
}

// A plain scalar by the core schema; a quoted one (tag "!") is text.
nlohmann::ordered_json Scalar(const YAML::Node& node) {
  const std::string& text = node.Scalar();
  if (node.Tag() == "!") return text;
  if (text.empty() || text == "~" || text == "null" || text == "Null" || text == "NULL") {
    return nullptr;
  }
  if (text == "true" || text == "True" || text == "TRUE") return true;
  if (text == "false" || text == "False" || text == "FALSE") return false;
  int64_t whole;
  uint64_t large;
  double real;
  const bool numeric = text.find_first_not_of("0123456789+-.eE") == std::string::npos;
  if (numeric && absl::SimpleAtoi(text, &whole)) return whole;
  if (numeric && absl::SimpleAtoi(text, &large)) return large;
  if (numeric && absl::SimpleAtod(text, &real) && std::isfinite(real)) return real;
  return text;
}

absl::StatusOr<nlohmann::ordered_json> Convert(const YAML::Node& node, int depth, int* nodes) {
  if (depth > kDeepest) return AtLine(node.Mark(), "more than 32 levels deep: flatten it");
  if (++*nodes > kMostNodes) return AtLine(node.Mark(), "more than 100000 values: shorten it");
  if (node.IsMap()) {
    nlohmann::ordered_json object = nlohmann::ordered_json::object();
    for (const auto& item : node) {
      if (!item.first.IsScalar()) return AtLine(item.first.Mark(), "a key must be a word");
      const std::string key = item.first.Scalar();
      if (object.contains(key)) {
        return AtLine(item.first.Mark(), absl::StrCat("the key '", key, "' stands twice"));
      }
      TOROID_ASSIGN_OR_RETURN(object[key], Convert(item.second, depth + 1, nodes));
    }
    return object;
  }
  if (node.IsSequence()) {
    nlohmann::ordered_json list = nlohmann::ordered_json::array();
    for (const auto& item : node) {
      TOROID_ASSIGN_OR_RETURN(auto value, Convert(item, depth + 1, nodes));
      list.push_back(std::move(value));
    }
    return list;
  }
  return node.IsScalar() ? Scalar(node) : nlohmann::ordered_json(nullptr);
}

// Every key is a field of the message, by its name in the .proto or in JSON (camelCase). What else
// may be wrong is found by ParseJobSpec.
absl::Status CheckFields(const nlohmann::ordered_json& json, const Descriptor& message,
                         const std::string& prefix) {
  if (!json.is_object()) return absl::OkStatus();
  for (const auto& [key, value] : json.items()) {
    const FieldDescriptor* field = message.FindFieldByName(key);
    if (field == nullptr) field = message.FindFieldByCamelcaseName(key);
    if (field == nullptr) {
      std::vector<std::string> names;
      for (int i = 0; i < message.field_count(); ++i) names.push_back(message.field(i)->name());
      return absl::InvalidArgumentError(
          absl::StrCat("unknown field: ", prefix, key,
                       DidYouMean(key, names, "toroid config schema lists all fields")));
    }
    if (field->cpp_type() != FieldDescriptor::CPPTYPE_MESSAGE) continue;
    const std::string inner = absl::StrCat(prefix, key, ".");
    if (value.is_array()) {
      for (const auto& item : value) {
        TOROID_RETURN_IF_ERROR(CheckFields(item, *field->message_type(), inner));
      }
    } else {
      TOROID_RETURN_IF_ERROR(CheckFields(value, *field->message_type(), inner));
    }
  }
  return absl::OkStatus();
}

// JSON that is none is left to ParseJobSpec, whose error says where.
absl::Status CheckJson(const std::string& path, const std::string& text) {
  const auto json = nlohmann::ordered_json::parse(text, nullptr, /*allow_exceptions=*/false);
  const absl::Status status = CheckFields(json, *v1::JobSpec::descriptor(), "");
  if (status.ok()) return status;
  return absl::InvalidArgumentError(absl::StrCat("bad job spec: ", path, ": ", status.message()));
}

}  // namespace

absl::StatusOr<std::string> YamlToJson(const std::string& text) {
  try {
    const YAML::Node root = YAML::Load(text);
    if (!root.IsMap()) {
      return absl::InvalidArgumentError(
          "bad YAML: no fields: write `name: value` lines, see toroid config "
          "schema");
    }
    int nodes = 0;
    TOROID_ASSIGN_OR_RETURN(const auto json, Convert(root, 0, &nodes));
    return json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
  } catch (const YAML::Exception& error) {
    return AtLine(error.mark, error.msg);
  }
}

absl::StatusOr<std::string> ReadJobText(const std::string& path) {
  TOROID_ASSIGN_OR_RETURN(std::string text, ReadTextFile(path));
  if (absl::EndsWith(path, ".yaml") || absl::EndsWith(path, ".yml")) {
    TOROID_ASSIGN_OR_RETURN(text, YamlToJson(text));
  }
  if (absl::StartsWith(absl::StripLeadingAsciiWhitespace(text), "{")) {
    TOROID_RETURN_IF_ERROR(CheckJson(path, text));
  }
  return text;
}

absl::StatusOr<std::vector<std::string>> ReadSettings(const std::vector<std::string>& settings) {
  std::vector<std::string> read;
  for (const std::string& setting : settings) {
    const size_t equals = setting.find('=');
    if (equals == std::string::npos || equals == 0) {
      return UsageError(absl::StrCat("bad value of --set: '", setting, "': write a.b.c=value"));
    }
    TOROID_ASSIGN_OR_RETURN(const std::string value, TextArgument(setting.substr(equals + 1)));
    read.push_back(absl::StrCat(setting.substr(0, equals + 1), value));
  }
  return read;
}

std::vector<std::string> OwnVariables() {
  std::vector<std::string> names = {"TOROID_ISA", "TOROID_MODELS", "TOROID_TLS_DIR"};
  for (const Verb* verb : Verbs()) {
    for (const OptionTable* table : verb->tables) {
      for (const Option& option : table->options) {
        const std::vector<std::string> spellings = absl::StrSplit(option.names, ',');
        if (option.environment) names.push_back(EnvironmentName(spellings.back()));
      }
    }
  }
  std::sort(names.begin(), names.end());
  names.erase(std::unique(names.begin(), names.end()), names.end());
  return names;
}

std::vector<std::string> UnknownVariables(const Environment& environment) {
  std::vector<std::string> known = OwnVariables();
  for (const JobField& field : JobFields()) known.push_back(field.variable);
  std::vector<std::string> lines;
  for (const auto& [name, value] : environment) {
    if (std::find(known.begin(), known.end(), name) != known.end()) continue;
    lines.push_back(absl::StrCat(
        "unknown variable: ", name,
        DidYouMean(name, known, "TOROID_ and a field of toroid config schema: it is ignored")));
  }
  return lines;
}

absl::StatusOr<JobSources> ReadJobSources(const std::string& path,
                                          const std::vector<std::string>& settings) {
  JobSources sources;
  TOROID_ASSIGN_OR_RETURN(sources.text, ReadJobText(path));
  TOROID_ASSIGN_OR_RETURN(sources.settings, ReadSettings(settings));
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::pair<std::string, std::string> variable =
        absl::StrSplit(*entry, absl::MaxSplits('=', 1));
    if (absl::StartsWith(variable.first, "TOROID_")) sources.environment.insert(variable);
  }
  TalkLines(UnknownVariables(sources.environment));
  return sources;
}

absl::StatusOr<JobSpec> MergeJobSources(const std::string& path, const JobSources& sources) {
  std::vector<std::string> settings = SettingsOfVariables(sources);
  settings.insert(settings.end(), sources.settings.begin(), sources.settings.end());
  const absl::StatusOr<JobSpec> spec = ParseJobSpec(sources.text, settings);
  if (spec.ok()) return spec;
  std::string with;
  for (const auto& [field, origin] : JobOrigins(sources)) {
    if (!absl::StartsWith(origin, "TOROID_")) continue;
    absl::StrAppend(&with, with.empty() ? ": from the environment came " : ", ", origin);
  }
  return absl::Status(spec.status().code(),
                      absl::StrCat("bad job spec: ", path, ": ", spec.status().message(), with));
}

absl::StatusOr<JobSpec> ReadJobSpec(const std::string& path,
                                    const std::vector<std::string>& settings) {
  TOROID_ASSIGN_OR_RETURN(const JobSources sources, ReadJobSources(path, settings));
  return MergeJobSources(path, sources);
}

}  // namespace toroid
