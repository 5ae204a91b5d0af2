#include "launcher/job_spec.h"

#include <yaml-cpp/yaml.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "core/status_macros.h"
#include "launcher/exit_code.h"
#include "launcher/suggest.h"
#include "launcher/text_argument.h"
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

absl::StatusOr<JobSpec> ReadJobSpec(const std::string& path,
                                    const std::vector<std::string>& settings) {
  TOROID_ASSIGN_OR_RETURN(const std::string text, ReadJobText(path));
  TOROID_ASSIGN_OR_RETURN(const std::vector<std::string> read, ReadSettings(settings));
  const absl::StatusOr<JobSpec> spec = ParseJobSpec(text, read);
  if (spec.ok()) return spec;
  return absl::Status(spec.status().code(),
                      absl::StrCat("bad job spec: ", path, ": ", spec.status().message()));
}

}  // namespace toroid
