// Typed reading of one JSON object that must not be skipped over: whoever reads it learns which
// keys nobody asked for. Included by .cc files of core alone, for it brings nlohmann's header.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace toroid {

class JsonFields {
 public:
  // `object` outlives this; `where` begins every message, as in "DIR/config.json: rope_scaling".
  JsonFields(const nlohmann::json& object, std::string where)
      : object_(object), where_(std::move(where)) {}

  // The value, null if the key is absent or null. Marks the key as understood.
  const nlohmann::json* Find(const std::string& key);
  bool Has(const std::string& key) { return Find(key) != nullptr; }

  // Absent or null: the fallback, or InvalidArgument if there is none. Another kind:
  // InvalidArgument.
  absl::Status Int(const std::string& key, int64_t& out);
  absl::Status IntOr(const std::string& key, int64_t fallback, int64_t& out);
  absl::Status DoubleOr(const std::string& key, double fallback, double& out);
  absl::Status BoolOr(const std::string& key, bool fallback, bool& out);
  absl::Status StringOr(const std::string& key, const std::string& fallback, std::string& out);
  // An integer or an array of integers.
  absl::Status Ints(const std::string& key, std::vector<int64_t>& out);

  // Marks keys as understood without reading them.
  void Ignore(absl::string_view key) { understood_.insert(std::string(key)); }
  // Unimplemented naming the first key that was not understood and is not null, false, 0 or empty.
  absl::Status RefuseOthers() const;

  absl::Status Wrong(const std::string& key, absl::string_view rule) const;
  const std::string& where() const { return where_; }

 private:
  const nlohmann::json& object_;
  std::string where_;
  absl::flat_hash_set<std::string> understood_;
};

// The object in a text; InvalidArgument if it is no JSON or no object.
absl::StatusOr<nlohmann::json> ParseJsonObject(absl::string_view text, const std::string& where);

// Gives `out` a value that is exactly what is written of one of its type; false: it is of another
// kind, or an integer beyond 2^60 or `out`.
bool TakeJson(const nlohmann::json& value, std::string& out);
bool TakeJson(const nlohmann::json& value, bool& out);
bool TakeJson(const nlohmann::json& value, double& out);
bool TakeJson(const nlohmann::json& value, float& out);
bool TakeJson(const nlohmann::json& value, int64_t& out);
bool TakeJson(const nlohmann::json& value, int32_t& out);
template <typename T>
bool TakeJson(const nlohmann::json& value, std::vector<T>& out) {
  if (!value.is_array()) return false;
  out.clear();
  out.reserve(value.size());
  for (const nlohmann::json& item : value) {
    if (!TakeJson(item, out.emplace_back())) return false;
  }
  return true;
}
template <typename T>
bool TakeJson(const nlohmann::json& value, std::optional<T>& out) {
  return TakeJson(value, out.emplace());
}

// A value for a message, cut to a readable length.
std::string Shown(const nlohmann::json& value);

}  // namespace toroid
