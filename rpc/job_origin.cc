#include "rpc/job_origin.h"

#include <google/protobuf/io/tokenizer.h>
#include <google/protobuf/struct.pb.h>
#include <google/protobuf/text_format.h>
#include <google/protobuf/util/json_util.h>

#include <algorithm>
#include <functional>
#include <set>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "toroid/v1/job.pb.h"

namespace toroid {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::Struct;
using google::protobuf::TextFormat;

bool IsMessage(const FieldDescriptor& field) {
  return field.cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE;
}

// Errors are ParseJobSpec's to report.
class Silence final : public google::protobuf::io::ErrorCollector {
 public:
  void AddError(int, int, const std::string&) override {}
};

void SaidInText(const Descriptor& message, const TextFormat::ParseInfoTree& tree,
                const std::string& prefix, std::set<std::string>& said) {
  for (int i = 0; i < message.field_count(); ++i) {
    const FieldDescriptor& field = *message.field(i);
    if (tree.GetLocation(&field, field.is_repeated() ? 0 : -1).line < 0) continue;
    const std::string path = absl::StrCat(prefix, field.name());
    said.insert(path);
    if (!IsMessage(field) || field.is_repeated()) continue;
    const TextFormat::ParseInfoTree* nested = tree.GetTreeForNested(&field, -1);
    if (nested != nullptr) SaidInText(*field.message_type(), *nested, path + ".", said);
  }
}

void SaidInJson(const Descriptor& message, const Struct& object, const std::string& prefix,
                std::set<std::string>& said) {
  for (const auto& [key, value] : object.fields()) {
    const FieldDescriptor* field = message.FindFieldByName(key);
    if (field == nullptr) field = message.FindFieldByCamelcaseName(key);
    if (field == nullptr || value.has_null_value()) continue;
    const std::string path = absl::StrCat(prefix, field->name());
    said.insert(path);
    if (IsMessage(*field) && value.has_struct_value()) {
      SaidInJson(*field->message_type(), value.struct_value(), path + ".", said);
    }
  }
}

// Paths that the text gives a value to, be it the default, as they are in it.
std::set<std::string> SaidAt(const std::string& text) {
  std::set<std::string> said;
  const size_t first = text.find_first_not_of(" \t\r\n");
  if (first != std::string::npos && text[first] == '{') {
    Struct object;
    if (google::protobuf::util::JsonStringToMessage(text, &object).ok()) {
      SaidInJson(*v1::JobSpec::descriptor(), object, "", said);
    }
    return said;
  }
  v1::JobSpec spec;
  Silence silence;
  TextFormat::ParseInfoTree tree;
  TextFormat::Parser parser;
  parser.RecordErrorsTo(&silence);
  parser.WriteLocationsTo(&tree);
  if (parser.MergeFromString(text, &spec)) SaidInText(*spec.GetDescriptor(), tree, "", said);
  return said;
}

// Those, and where the values are once read.
std::set<std::string> Said(const std::string& text) {
  std::set<std::string> said = SaidAt(text);
  for (const std::string& path : std::set<std::string>(said)) said.insert(PathOnceRead(path));
  return said;
}

// The field that a setting names, with what it lies in; empty if there is none. Ends at a repeated
// field.
std::vector<const FieldDescriptor*> Trail(const std::string& path) {
  std::vector<const FieldDescriptor*> trail;
  const Descriptor* message = v1::JobSpec::descriptor();
  for (const std::string& name : std::vector<std::string>(absl::StrSplit(path, '.'))) {
    const FieldDescriptor* field = message == nullptr ? nullptr : message->FindFieldByName(name);
    if (field == nullptr) return {};
    trail.push_back(field);
    if (field->is_repeated()) break;
    message = IsMessage(*field) ? field->message_type() : nullptr;
  }
  return trail;
}

std::string PathOf(const std::vector<const FieldDescriptor*>& trail) {
  std::string path;
  for (const FieldDescriptor* field : trail) {
    absl::StrAppend(&path, path.empty() ? "" : ".", field->name());
  }
  return path;
}

// By oneof, named with the path of its message: the arm that was chosen.
using Arms = std::map<std::string, std::string>;

// Calls `arm` with each oneof that the path lies in and the path's arm of it.
void ForEachArm(const std::string& path,
                const std::function<void(const std::string&, const std::string&)>& arm) {
  std::string prefix;
  for (const FieldDescriptor* field : Trail(path)) {
    if (const auto* oneof = field->real_containing_oneof(); oneof != nullptr) {
      arm(absl::StrCat(prefix, oneof->name()), field->name());
    }
    absl::StrAppend(&prefix, field->name(), ".");
  }
}

void Choose(const std::string& path, Arms& arms) {
  ForEachArm(path, [&](const std::string& oneof, const std::string& arm) { arms[oneof] = arm; });
}

bool Fits(const std::string& path, const Arms& arms) {
  bool fits = true;
  ForEachArm(path, [&](const std::string& oneof, const std::string& arm) {
    const auto chosen = arms.find(oneof);
    fits = fits && (chosen == arms.end() || chosen->second == arm);
  });
  return fits;
}

// A value as the text format has it.
std::string Spell(const FieldDescriptor& field, const std::string& value) {
  if (field.cpp_type() != FieldDescriptor::CPPTYPE_ENUM) return value;
  std::string name = absl::AsciiStrToUpper(value);
  if (name == "F32" || name == "F64") name.insert(1, "P");
  return field.enum_type()->FindValueByName(name) != nullptr ? name : value;
}

void Collect(const Descriptor& message, const std::string& prefix, std::vector<JobField>& fields) {
  for (int i = 0; i < message.field_count(); ++i) {
    const FieldDescriptor& field = *message.field(i);
    const std::string path = absl::StrCat(prefix, field.name());
    if (IsMessage(field)) {
      if (!field.is_repeated()) Collect(*field.message_type(), path + ".", fields);
      continue;
    }
    std::string variable = absl::StrCat("TOROID_", absl::AsciiStrToUpper(path));
    std::replace(variable.begin(), variable.end(), '.', '_');
    fields.push_back({path, variable});
  }
}

// The variables that count, with what they say.
std::vector<std::pair<JobField, std::string>> VariablesThatCount(const JobSources& sources) {
  std::set<std::string> said = Said(sources.text);
  Arms arms;
  for (const std::string& path : said) Choose(path, arms);
  for (const std::string& setting : sources.settings) {
    const std::string path = PathOf(Trail(setting.substr(0, setting.find('='))));
    said.insert({path, PathOnceRead(path)});
    Choose(path, arms);
  }
  std::vector<std::pair<JobField, std::string>> counting;
  for (const JobField& field : JobFields()) {
    const auto variable = sources.environment.find(field.variable);
    if (variable == sources.environment.end() || variable->second.empty()) continue;
    if (said.count(PathOnceRead(field.path)) > 0 || !Fits(field.path, arms)) continue;
    Choose(field.path, arms);
    counting.emplace_back(field, variable->second);
  }
  return counting;
}

}  // namespace

std::vector<JobField> JobFields() {
  std::vector<JobField> fields;
  Collect(*v1::JobSpec::descriptor(), "", fields);
  return fields;
}

std::string PathOnceRead(const std::string& path) {
  const std::vector<std::string> names = absl::StrSplit(path, '.');
  const bool of_mode =
      names.size() == 4 && names[0] == "train" && names[1] == "exchange" && names[3] == "codec";
  return of_mode ? "train.exchange.codec" : path;
}

std::vector<std::string> SettingsOfVariables(const JobSources& sources) {
  std::vector<std::string> settings;
  for (const auto& [field, value] : VariablesThatCount(sources)) {
    settings.push_back(absl::StrCat(field.path, "=", Spell(*Trail(field.path).back(), value)));
  }
  return settings;
}

std::map<std::string, std::string> JobOrigins(const JobSources& sources) {
  std::map<std::string, std::string> origins;
  for (const auto& [field, value] : VariablesThatCount(sources)) {
    origins[PathOnceRead(field.path)] = field.variable;
  }
  for (const std::string& path : Said(sources.text)) origins[path] = "file";
  for (const std::string& setting : sources.settings) {
    origins[PathOnceRead(PathOf(Trail(setting.substr(0, setting.find('=')))))] = "--set";
  }
  return origins;
}

}  // namespace toroid
