// Job specs from files: protobuf text format, JSON or YAML, with --set on top.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "rpc/job.h"

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

absl::StatusOr<JobSpec> ReadJobSpec(const std::string& path,
                                    const std::vector<std::string>& settings);

}  // namespace toroid
