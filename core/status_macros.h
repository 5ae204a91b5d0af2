// The two lines every function that calls a Status function writes.
#pragma once

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#define TOROID_RETURN_IF_ERROR(expression)                     \
  do {                                                         \
    ::absl::Status status_macro_result = (expression);         \
    if (!status_macro_result.ok()) return status_macro_result; \
  } while (false)

#define TOROID_STATUS_CONCAT_INNER(a, b) a##b
#define TOROID_STATUS_CONCAT(a, b) TOROID_STATUS_CONCAT_INNER(a, b)

// TOROID_ASSIGN_OR_RETURN(auto file, MappedFile::Open(path));
#define TOROID_ASSIGN_OR_RETURN(lhs, expression) \
  TOROID_ASSIGN_OR_RETURN_INNER(TOROID_STATUS_CONCAT(status_or_, __LINE__), lhs, expression)
#define TOROID_ASSIGN_OR_RETURN_INNER(result, lhs, expression) \
  auto result = (expression);                                  \
  if (!result.ok()) return result.status();                    \
  lhs = std::move(result).value()
