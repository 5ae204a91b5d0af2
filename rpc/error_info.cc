#include "rpc/error_info.h"

#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "core/check.h"

namespace toroid {
namespace {

constexpr char kPayload[] = "toroid/error-info";

// Each word as "length:bytes"; the payload is made and read in one process only.
void AppendWord(std::string& out, absl::string_view word) {
  absl::StrAppend(&out, word.size(), ":", word);
}

bool TakeWord(absl::string_view& in, std::string& word) {
  const size_t colon = in.find(':');
  size_t length = 0;
  if (colon == absl::string_view::npos || !absl::SimpleAtoi(in.substr(0, colon), &length) ||
      length > in.size() - colon - 1) {
    return false;
  }
  word = std::string(in.substr(colon + 1, length));
  in.remove_prefix(colon + 1 + length);
  return true;
}

}  // namespace

absl::Status WithErrorInfo(absl::Status status, const ErrorInfo& info) {
  TOROID_CHECK(!status.ok());
  std::string bytes;
  AppendWord(bytes, info.reason);
  AppendWord(bytes, absl::StrCat(info.metadata.size()));
  for (const auto& [key, value] : info.metadata) {
    AppendWord(bytes, key);
    AppendWord(bytes, value);
  }
  for (const FieldViolation& field : info.fields) {
    AppendWord(bytes, field.field);
    AppendWord(bytes, field.description);
  }
  status.SetPayload(kPayload, absl::Cord(bytes));
  return status;
}

absl::Status MakeError(absl::StatusCode code, absl::string_view message, const ErrorInfo& info) {
  return WithErrorInfo(absl::Status(code, message), info);
}

ErrorInfo GetErrorInfo(const absl::Status& status) {
  ErrorInfo info;
  const absl::optional<absl::Cord> payload = status.GetPayload(kPayload);
  if (!payload.has_value()) return info;
  const std::string bytes(*payload);
  absl::string_view rest = bytes;
  std::string count_text;
  size_t count = 0;
  if (!TakeWord(rest, info.reason) || !TakeWord(rest, count_text) ||
      !absl::SimpleAtoi(count_text, &count)) {
    return info;
  }
  std::string first, second;
  for (size_t i = 0; i < count && TakeWord(rest, first) && TakeWord(rest, second); ++i) {
    info.metadata[first] = second;
  }
  while (TakeWord(rest, first) && TakeWord(rest, second)) info.fields.push_back({first, second});
  return info;
}

absl::Status BadField(absl::string_view field, absl::string_view description) {
  return MakeError(absl::StatusCode::kInvalidArgument, absl::StrCat(field, ": ", description),
                   {"BAD_FIELD", {}, {{std::string(field), std::string(description)}}});
}

}  // namespace toroid
