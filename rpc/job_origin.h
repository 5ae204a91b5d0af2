// Where the fields of a job's spec get their values: --set beats the file, the file beats the
// environment, that beats the default.
//
// A field has a path, "generate.sampling.seed", and a variable, TOROID_GENERATE_SAMPLING_SEED: the
// path in capitals, dots as underscores. What lies in a repeated message has neither. A variable is
// for fields that nothing else says: it is ignored where the file or a setting says the field, or
// has chosen another arm of a oneof that the field lies in (then the arm is theirs); of variables
// of two arms the first in the order of `config schema` chooses.
#pragma once

#include <map>
#include <string>
#include <vector>

namespace toroid {

struct JobField {
  std::string path, variable;
};
// Every field that has a variable, in the order of `config schema`.
std::vector<JobField> JobFields();

// Where the value of the field is once the spec is read: at its path, but for a codec that the mode
// of an exchange names, "train.exchange.streaming.codec": "train.exchange.codec".
std::string PathOnceRead(const std::string& path);

// Variables by name.
using Environment = std::map<std::string, std::string>;

// What is known of a spec before it is parsed: the text and the settings are those of ParseJobSpec.
struct JobSources {
  std::string text;
  std::vector<std::string> settings;
  Environment environment;
};

// The variables that count, as settings "path=value" in the order of `config schema`: they go
// before the other settings. Enum values may be written small, and FP32 and FP64 as --compute has
// them.
std::vector<std::string> SettingsOfVariables(const JobSources& sources);

// By path once read: "--set", "file" or the variable's name. A path that is not there has its
// default. A message that the file says is there too; a repeated one counts as one field.
std::map<std::string, std::string> JobOrigins(const JobSources& sources);

}  // namespace toroid
