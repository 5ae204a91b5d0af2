#include "core/io/json_fields.h"

#include "absl/strings/str_cat.h"

namespace toroid {

using nlohmann::json;

namespace {
// An integer that arithmetic of sizes can take. Unsigned numbers are looked at as such: a
// comparison of json values would take 2^64 - 1 for -1.
bool IsModestInteger(const json& value) {
  constexpr uint64_t kLimit = uint64_t{1} << 60;
  if (value.is_number_unsigned()) return value.get<uint64_t>() <= kLimit;
  return value.is_number_integer() && value.get<int64_t>() >= -int64_t(kLimit);
}
}  // namespace

bool TakeJson(const json& value, std::string& out) {
  if (!value.is_string()) return false;
  out = value.get<std::string>();
  return true;
}
bool TakeJson(const json& value, bool& out) {
  if (!value.is_boolean()) return false;
  out = value.get<bool>();
  return true;
}
bool TakeJson(const json& value, double& out) {
  if (!value.is_number()) return false;
  out = value.get<double>();
  return true;
}
bool TakeJson(const json& value, float& out) {
  double wide = 0;
  if (!TakeJson(value, wide)) return false;
  out = float(wide);
  return true;
}
bool TakeJson(const json& value, int64_t& out) {
  if (!IsModestInteger(value)) return false;
  out = value.get<int64_t>();
  return true;
}
bool TakeJson(const json& value, int32_t& out) {
  int64_t wide = 0;
  if (!TakeJson(value, wide) || wide < INT32_MIN || wide > INT32_MAX) return false;
  out = int32_t(wide);
  return true;
}

std::string Shown(const json& value) {
  constexpr size_t kLength = 60;
  std::string text = value.dump(-1, ' ', true, json::error_handler_t::replace);
  if (text.size() > kLength) text = text.substr(0, kLength) + "...";
  return text;
}

absl::StatusOr<json> ParseJsonObject(absl::string_view text, const std::string& where) {
  json value = json::parse(text.begin(), text.end(), nullptr, /*allow_exceptions=*/false);
  if (value.is_discarded()) {
    return absl::InvalidArgumentError(absl::StrCat(where, ": no valid JSON"));
  }
  if (!value.is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(where, ": no JSON object"));
  }
  return value;
}

const json* JsonFields::Find(const std::string& key) {
  understood_.insert(key);
  const auto found = object_.find(key);
  return found == object_.end() || found->is_null() ? nullptr : &*found;
}

absl::Status JsonFields::Wrong(const std::string& key, absl::string_view rule) const {
  const auto found = object_.find(key);
  return absl::InvalidArgumentError(
      absl::StrCat(where_, ": ", key, found == object_.end() ? "" : " = ",
                   found == object_.end() ? "" : Shown(*found), ": ", rule));
}

absl::Status JsonFields::Int(const std::string& key, int64_t& out) {
  const json* value = Find(key);
  if (value == nullptr) return Wrong(key, "is missing");
  if (!IsModestInteger(*value)) {
    return Wrong(key, "must be an integer");
  }
  out = value->get<int64_t>();
  return absl::OkStatus();
}

absl::Status JsonFields::IntOr(const std::string& key, int64_t fallback, int64_t& out) {
  out = fallback;
  return Has(key) ? Int(key, out) : absl::OkStatus();
}

absl::Status JsonFields::DoubleOr(const std::string& key, double fallback, double& out) {
  const json* value = Find(key);
  out = fallback;
  if (value == nullptr) return absl::OkStatus();
  if (!value->is_number()) return Wrong(key, "must be a number");
  out = value->get<double>();
  return absl::OkStatus();
}

absl::Status JsonFields::BoolOr(const std::string& key, bool fallback, bool& out) {
  const json* value = Find(key);
  out = fallback;
  if (value == nullptr) return absl::OkStatus();
  if (!value->is_boolean()) return Wrong(key, "must be true or false");
  out = value->get<bool>();
  return absl::OkStatus();
}

absl::Status JsonFields::StringOr(const std::string& key, const std::string& fallback,
                                  std::string& out) {
  const json* value = Find(key);
  out = fallback;
  if (value == nullptr) return absl::OkStatus();
  if (!value->is_string()) return Wrong(key, "must be a text");
  out = value->get<std::string>();
  return absl::OkStatus();
}

absl::Status JsonFields::Ints(const std::string& key, std::vector<int64_t>& out) {
  const json* value = Find(key);
  out.clear();
  if (value == nullptr) return absl::OkStatus();
  const json single = json::array({*value});
  for (const json& item : value->is_array() ? *value : single) {
    if (!IsModestInteger(item)) {
      return Wrong(key, "must be an integer or a list of integers");
    }
    out.push_back(item.get<int64_t>());
  }
  return absl::OkStatus();
}

absl::Status JsonFields::RefuseOthers() const {
  for (const auto& [key, value] : object_.items()) {
    const bool off = value.is_null() || value == json(false) ||
                     (value.is_number() && value.get<double>() == 0) ||
                     ((value.is_structured() || value.is_string()) && value.empty()) ||
                     value == json("");
    if (off || understood_.contains(key)) continue;
    return absl::UnimplementedError(
        absl::StrCat(where_, ": ", key, " = ", Shown(value),
                     ": toroid does not know this key; it may change the mathematics, so the model "
                     "is refused"));
  }
  return absl::OkStatus();
}

}  // namespace toroid
