// Why a request was refused, for a program to read: travels inside an absl::Status in our own
// processes and as google.rpc.ErrorInfo and BadRequest over gRPC.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace toroid {

struct FieldViolation {
  std::string field;  // "mesh.ring"
  std::string description;
  bool operator==(const FieldViolation&) const = default;
};

struct ErrorInfo {
  std::string reason;  // UPPER_SNAKE_CASE
  std::map<std::string, std::string> metadata;
  std::vector<FieldViolation> fields;
  bool operator==(const ErrorInfo&) const = default;
};

inline constexpr char kErrorDomain[] = "toroid";
// Of a launch that trains: what the job has committed does not lie where it was launched.
inline constexpr char kCheckpointLostReason[] = "CHECKPOINT_LOST";

// A status with its info. REQUIRES: code is not OK.
absl::Status MakeError(absl::StatusCode code, absl::string_view message, const ErrorInfo& info);
absl::Status WithErrorInfo(absl::Status status, const ErrorInfo& info);
// Empty reason if the status carries none.
ErrorInfo GetErrorInfo(const absl::Status& status);
// InvalidArgument about one field of a request.
absl::Status BadField(absl::string_view field, absl::string_view description);

}  // namespace toroid
