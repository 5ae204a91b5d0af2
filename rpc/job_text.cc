// Job specs as people write them: ParseJobSpec, JobSpecText and JobSpecSchema of rpc/client.h.
#include <google/protobuf/io/tokenizer.h>
#include <google/protobuf/text_format.h>
#include <google/protobuf/util/json_util.h>

#include <algorithm>
#include <map>
#include <set>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "core/check.h"
#include "core/status_macros.h"
#include "rpc/client.h"
#include "rpc/convert.h"
#include "rpc/error_info.h"
#include "rpc/job_origin.h"

namespace toroid {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;

// Levenshtein's distance.
size_t Distance(const std::string& a, const std::string& b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t replaced = diagonal + (a[i - 1] != b[j - 1]);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, replaced});
    }
  }
  return row[b.size()];
}

absl::Status UnknownField(const Descriptor& message, const std::string& name) {
  std::string nearest;
  for (int i = 0; i < message.field_count(); ++i) {
    const std::string& known = message.field(i)->name();
    if (nearest.empty() || Distance(name, known) < Distance(name, nearest)) nearest = known;
  }
  std::string hint;
  if (!nearest.empty() && Distance(name, nearest) <= 3) {
    hint = absl::StrCat(": did you mean ", nearest, "?");
  }
  return BadField(name, absl::StrCat("unknown field of ", message.name(), hint));
}

// Keeps the first error, with its line.
class FirstError final : public google::protobuf::io::ErrorCollector {
 public:
  void AddError(int line, int column, const std::string& message) override {
    if (!text_.empty()) return;
    text_ = absl::StrCat("line ", line + 1, ", column ", column + 1, ": ", message);
    message_ = message;
  }
  // 'Message type "toroid.v1.JobSpec" has no field named "modle".' gets a hint.
  absl::Status ToStatus() const {
    const std::vector<std::string> parts = absl::StrSplit(message_, '"');
    if (parts.size() >= 4 && absl::StrContains(message_, "has no field named")) {
      const Descriptor* type =
          v1::JobSpec::descriptor()->file()->pool()->FindMessageTypeByName(parts[1]);
      if (type != nullptr) {
        const absl::Status hint = UnknownField(*type, parts[3]);
        return BadField("job", absl::StrCat(text_.substr(0, text_.find(": ")), ": ",
                                            std::string(hint.message())));
      }
    }
    return BadField("job", text_);
  }

 private:
  std::string text_, message_;
};

absl::Status MergeText(const std::string& text, v1::JobSpec* spec) {
  FirstError error;
  google::protobuf::TextFormat::Parser parser;
  parser.RecordErrorsTo(&error);
  if (!parser.MergeFromString(text, spec)) return error.ToStatus();
  return absl::OkStatus();
}

// Empties the list at `path`, unless that lies in an element of another list.
void ClearList(const std::vector<std::string>& path, Message& spec) {
  Message* message = &spec;
  for (size_t i = 0; i < path.size(); ++i) {
    const FieldDescriptor* field = message->GetDescriptor()->FindFieldByName(path[i]);
    const google::protobuf::Reflection& values = *message->GetReflection();
    if (i + 1 == path.size()) return values.ClearField(message, field);
    if (field->is_repeated() || !values.HasField(*message, field)) return;
    message = values.MutableMessage(message, field);
  }
}

// "a.b.c=value" as the text "a { b { c: value } }"; {} is a message with nothing in it. Of a list
// the first setting takes the place of what the file says, the others add to it: `begun` has the
// lists that were set before.
absl::Status ApplySetting(const std::string& setting, v1::JobSpec* spec,
                          std::set<std::string>& begun) {
  const size_t equals = setting.find('=');
  if (equals == std::string::npos) {
    return BadField("set", absl::StrCat("'", setting, "' has no '=': write a.b.c=value"));
  }
  const std::vector<std::string> path = absl::StrSplit(setting.substr(0, equals), '.');
  std::string value = setting.substr(equals + 1);
  const Descriptor* message = v1::JobSpec::descriptor();
  std::string text, closing;
  for (size_t i = 0; i < path.size(); ++i) {
    const FieldDescriptor* field = message->FindFieldByName(path[i]);
    if (field == nullptr) return UnknownField(*message, path[i]);
    const bool leaf = i + 1 == path.size();
    const bool is_message = field->type() == FieldDescriptor::TYPE_MESSAGE;
    if (leaf == is_message && !(leaf && value == "{}" && !field->is_repeated())) {
      return BadField(setting.substr(0, equals),
                      leaf ? "is a message: name one of its fields, or give {}" : "is no message");
    }
    if (leaf) {
      if (field->is_repeated() && begun.insert(setting.substr(0, equals)).second) {
        ClearList(path, *spec);
      }
      if (field->type() == FieldDescriptor::TYPE_STRING && (value.empty() || value[0] != '"')) {
        value = absl::StrCat("\"", absl::CEscape(value), "\"");
      }
      absl::StrAppend(&text, path[i], ": ", value, closing);
    } else {
      absl::StrAppend(&text, path[i], " { ");
      closing += " }";
      message = field->message_type();
    }
  }
  const absl::Status merged = MergeText(text, spec);
  if (merged.ok()) return merged;
  return BadField(setting.substr(0, equals), absl::StrCat("unreadable value '", value, "'"));
}

// What is used where a spec leaves the field out, as a spec would write it. Training has defaults
// of its own (convert_job.cc), Adafactor one that is no number (convert_train.cc).
std::string DefaultOf(const Message& filled, const FieldDescriptor& field) {
  if (field.is_repeated()) return "none";
  const std::string& name = field.full_name();
  if (name == "toroid.v1.Adafactor.weight_decay") return "lr^2";
  if (name == "toroid.v1.Model.layout") return "striped:16; of a job that trains zigzag";
  const Descriptor* const around = field.containing_type()->containing_type();
  if (around == v1::Exchange::descriptor() && field.name() == "codec") return "exchange.codec";
  if (name == "toroid.v1.Mesh.data") return "0; of a job that trains and says no mesh -1";
  // What stands for these is not said in a spec by a name.
  if (name == "toroid.v1.TrainData.format") return "by the file's name";
  if (name == "toroid.v1.Exchange.codec") return "FP32";
  if (name == "toroid.v1.Exchange.policy") return "HALT";
  std::string value;
  google::protobuf::TextFormat::PrintFieldValueToString(filled, &field, -1, &value);
  return value;
}

// What a spec that says no more than it has to becomes.
v1::JobSpec Filled(const char* task) {
  const auto spec = ParseJobSpec(absl::StrCat("model { path: \"M\" } ", task), {});
  TOROID_CHECK_MSG(spec.ok(), std::string(spec.status().message()));
  return ToProto(*spec);
}

// Fields that have no default.
bool HasToBeSaid(const FieldDescriptor& field) {
  const std::string& name = field.full_name();
  static const std::set<std::string>& names =
      *new std::set<std::string>{"toroid.v1.Model.path",
                                 "toroid.v1.Shape.preset",
                                 "toroid.v1.TrainTask.steps",
                                 "toroid.v1.TrainData.path",
                                 "toroid.v1.TrainData.sequence_length",
                                 "toroid.v1.TrainData.batch_tokens",
                                 "toroid.v1.BatchStage.first_step",
                                 "toroid.v1.BatchStage.batch_tokens",
                                 "toroid.v1.AdamW.lr",
                                 "toroid.v1.Adafactor.lr"};
  return names.count(name) > 0 || field.containing_type()->name() == "TokenIds" ||
         (field.real_containing_oneof() != nullptr &&
          field.real_containing_oneof()->name() == "source");
}

constexpr char kTrain[] =
    "output { dir: \"D\" } train { steps: 1 data { path: \"P\" sequence_length: 1 batch_tokens: 1 "
    "} spike {} optimizer { ";

// A spec has one task, a task one optimizer: of the others the defaults are taken from specs that
// have them. Null: `field` is none of those.
const Message* FilledElsewhere(const FieldDescriptor& field) {
  static const auto& others = *new std::map<std::string, v1::JobSpec>{
      {"toroid.v1.JobSpec.score", Filled("score { text { text: \"T\" } }")},
      {"toroid.v1.JobSpec.train", Filled(absl::StrCat(kTrain, "adamw { lr: 1 } } }").c_str())},
      {"toroid.v1.TrainOptimizer.adafactor",
       Filled(absl::StrCat(kTrain, "adafactor { lr: 1 } } }").c_str())},
      {"toroid.v1.JobSpec.verify",
       Filled(absl::StrCat(kTrain, "adamw { lr: 1 } } } verify {}").c_str())}};
  const auto found = others.find(field.full_name());
  if (found == others.end()) return nullptr;
  const v1::JobSpec& spec = found->second;
  if (spec.has_verify()) return &spec.verify();
  if (spec.has_score()) return &spec.score();
  if (spec.train().optimizer().has_adafactor()) return &spec.train().optimizer().adafactor();
  return &spec.train();
}

// The fields of a message, one a line, with their defaults: their values in `filled`.
void Describe(const Message& filled, int depth, std::string& out) {
  const Descriptor& message = *filled.GetDescriptor();
  for (int i = 0; i < message.field_count(); ++i) {
    const FieldDescriptor& field = *message.field(i);
    const bool one_of = field.real_containing_oneof() != nullptr;
    std::vector<std::string> notes;
    if (one_of) notes.push_back(absl::StrCat("one of ", field.real_containing_oneof()->name()));
    if (field.is_repeated()) notes.push_back("repeated");
    out.append(2 * depth, ' ');
    absl::StrAppend(&out, field.name());
    if (field.type() == FieldDescriptor::TYPE_MESSAGE) {
      absl::StrAppend(&out, " {", notes.empty() ? "" : "  # ", absl::StrJoin(notes, ", "), "\n");
      const google::protobuf::Reflection& values = *filled.GetReflection();
      const Message* elsewhere = FilledElsewhere(field);
      Describe(elsewhere != nullptr ? *elsewhere
               : field.is_repeated()
                   ? *values.GetMessageFactory()->GetPrototype(field.message_type())
                   : values.GetMessage(filled, &field),
               depth + 1, out);
      out.append(2 * depth, ' ');
      out += "}\n";
      continue;
    }
    if (field.type() == FieldDescriptor::TYPE_ENUM) {
      std::vector<std::string> names;
      for (int k = 1; k < field.enum_type()->value_count(); ++k) {
        names.push_back(field.enum_type()->value(k)->name());
      }
      absl::StrAppend(&out, ": ", absl::StrJoin(names, " | "));
    } else {
      absl::StrAppend(&out, ": ", field.type_name());
    }
    if (!HasToBeSaid(field)) notes.push_back(absl::StrCat("default ", DefaultOf(filled, field)));
    if (!notes.empty()) absl::StrAppend(&out, "  # ", absl::StrJoin(notes, ", "));
    out += '\n';
  }
}

}  // namespace

absl::StatusOr<JobSpec> ParseJobSpec(const std::string& text,
                                     const std::vector<std::string>& settings) {
  v1::JobSpec spec;
  const size_t first = text.find_first_not_of(" \t\r\n");
  if (first != std::string::npos && text[first] == '{') {
    const auto parsed = google::protobuf::util::JsonStringToMessage(text, &spec);
    if (!parsed.ok())
      return BadField("job", std::string(parsed.message().data(), parsed.message().size()));
  } else {
    TOROID_RETURN_IF_ERROR(MergeText(text, &spec));
  }
  // Of two paths to one value a setting by either beats the text by either.
  if (spec.train().has_exchange()) {
    TOROID_RETURN_IF_ERROR(LiftCodec(*spec.mutable_train()->mutable_exchange()));
    for (const std::string& setting : settings) {
      const std::string path = setting.substr(0, setting.find('='));
      if (PathOnceRead(path) != path) spec.mutable_train()->mutable_exchange()->clear_codec();
    }
  }
  std::set<std::string> begun;
  for (const std::string& setting : settings) {
    TOROID_RETURN_IF_ERROR(ApplySetting(setting, &spec, begun));
  }
  return FromProto(spec);
}

std::string JobSpecText(const JobSpec& spec) {
  std::string text;
  google::protobuf::TextFormat::PrintToString(ToProto(spec), &text);
  return text;
}

std::string JobSpecSchema() {
  std::string out;
  Describe(Filled("generate { prompt { text: \"T\" } }"), 0, out);
  return out;
}

}  // namespace toroid
