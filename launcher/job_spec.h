// Job specs from files: protobuf text format, JSON or YAML, with --set on top and TOROID_* below.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "rpc/job.h"
#include "rpc/job_origin.h"

namespace toroid {

// The file's text as ParseJobSpec reads it: YAML (by the names .yaml and .yml)
// becomes JSON, the rest is as it is. path: "-" is standard input.
absl::StatusOr<std::string> ReadJobText(const std::string& path);

// YAML 1.2 core scalars: null, true, numbers; what is quoted is text.
// InvalidArgument names the line; so does a document deeper than 32 levels or
// with more than 100,000 nodes (aliases count).
absl::StatusOr<std::string> YamlToJson(const std::string& text);

// Settings "a.b=@FILE" with the file's text in place; "a.b=-" reads standard
// input.
absl::StatusOr<std::vector<std::string>> ReadSettings(const std::vector<std::string>& settings);

// The file, what --set says, and this process's TOROID_* variables. One that is no field's and no
// other name of toroid's is talked about on stderr.
absl::StatusOr<JobSources> ReadJobSources(const std::string& path,
                                          const std::vector<std::string>& settings);
// The spec that they make. An error names the file, and the variables that had a say.
absl::StatusOr<JobSpec> MergeJobSources(const std::string& path, const JobSources& sources);

// "unknown variable: TOROID_SEDE: did you mean TOROID_SEED?" for each name that toroid does not
// read.
std::vector<std::string> UnknownVariables(const Environment& environment);
// Names of variables that toroid reads, those of a spec's fields aside.
std::vector<std::string> OwnVariables();

// Both steps.
absl::StatusOr<JobSpec> ReadJobSpec(const std::string& path,
                                    const std::vector<std::string>& settings);

}  // namespace toroid
