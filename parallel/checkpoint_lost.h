// A run that refuses to begin because what its job has committed does not lie where it was
// launched: told by type, since whoever launched it can do so elsewhere.
#pragma once

#include "absl/status/status.h"
#include "absl/strings/cord.h"
#include "absl/strings/string_view.h"

namespace toroid {

inline constexpr char kCheckpointLost[] = "toroid/checkpoint-lost";  // payload

// FailedPrecondition.
inline absl::Status CheckpointLost(absl::string_view message) {
  absl::Status status = absl::FailedPreconditionError(message);
  status.SetPayload(kCheckpointLost, absl::Cord("1"));
  return status;
}

inline bool IsCheckpointLost(const absl::Status& status) {
  return status.GetPayload(kCheckpointLost).has_value();
}

}  // namespace toroid
