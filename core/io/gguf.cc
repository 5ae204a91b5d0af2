#include "core/io/gguf.h"

#include <cstring>
#include <limits>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "core/io/gguf_parser.h"
#include "core/status_macros.h"

namespace toroid {
namespace {

template <typename T>
T Load(const uint8_t* data) {
  T value;
  std::memcpy(&value, data, sizeof(T));
  return value;
}

bool IsInteger(GgufValue::Type type) {
  switch (type) {
    case GgufValue::kUint8:
    case GgufValue::kInt8:
    case GgufValue::kUint16:
    case GgufValue::kInt16:
    case GgufValue::kUint32:
    case GgufValue::kInt32:
    case GgufValue::kUint64:
    case GgufValue::kInt64:
      return true;
    default:
      return false;
  }
}

// REQUIRES: IsInteger(type). False if the number does not fit.
bool LoadInteger(GgufValue::Type type, const uint8_t* data, int64_t& out) {
  switch (type) {
    case GgufValue::kUint8:
      out = *data;
      return true;
    case GgufValue::kInt8:
      out = int8_t(*data);
      return true;
    case GgufValue::kUint16:
      out = Load<uint16_t>(data);
      return true;
    case GgufValue::kInt16:
      out = Load<int16_t>(data);
      return true;
    case GgufValue::kUint32:
      out = Load<uint32_t>(data);
      return true;
    case GgufValue::kInt32:
      out = Load<int32_t>(data);
      return true;
    case GgufValue::kInt64:
      out = Load<int64_t>(data);
      return true;
    default:
      break;
  }
  const uint64_t value = Load<uint64_t>(data);
  out = int64_t(value);
  return value <= uint64_t(std::numeric_limits<int64_t>::max());
}

// A string at `data`; its length was checked by the parser.
std::string LoadString(const uint8_t*& data) {
  const uint64_t length = Load<uint64_t>(data);
  data += 8;
  std::string text(reinterpret_cast<const char*>(data), size_t(length));
  data += length;
  return text;
}

}  // namespace

absl::StatusOr<GgufFile> GgufFile::Parse(absl::Span<const uint8_t> bytes, const std::string& name) {
  GgufFile file;
  file.name_ = name;
  TOROID_RETURN_IF_ERROR(GgufParser(bytes, name).Parse(file.values_, file.tensors_, file.header_));
  return file;
}

absl::Status GgufFile::WrongKind(const std::string& key, absl::string_view wanted) const {
  return absl::InvalidArgumentError(absl::StrCat(name_, ": key ", key, " is not ", wanted));
}

absl::StatusOr<GgufValue> GgufFile::Find(const std::string& key, bool is_array) const {
  const auto found = values_.find(key);
  if (found == values_.end()) {
    return absl::NotFoundError(absl::StrCat(name_, ": key ", key, " is missing"));
  }
  if (found->second.is_array != is_array) {
    return WrongKind(key, is_array ? "an array" : "a single value");
  }
  return found->second;
}

absl::StatusOr<int64_t> GgufFile::Int(const std::string& key) const {
  TOROID_ASSIGN_OR_RETURN(const GgufValue value, Find(key, false));
  int64_t result = 0;
  if (!IsInteger(value.type)) return WrongKind(key, "an integer");
  if (!LoadInteger(value.type, value.data.data(), result)) return WrongKind(key, "below 2^63");
  return result;
}

absl::StatusOr<double> GgufFile::Double(const std::string& key) const {
  TOROID_ASSIGN_OR_RETURN(const GgufValue value, Find(key, false));
  if (value.type == GgufValue::kFloat32) return double(Load<float>(value.data.data()));
  if (value.type == GgufValue::kFloat64) return Load<double>(value.data.data());
  TOROID_ASSIGN_OR_RETURN(const int64_t integer, Int(key));
  return double(integer);
}

absl::StatusOr<bool> GgufFile::Bool(const std::string& key) const {
  TOROID_ASSIGN_OR_RETURN(const GgufValue value, Find(key, false));
  if (value.type != GgufValue::kBool) return WrongKind(key, "a truth value");
  return value.data[0] != 0;
}

absl::StatusOr<std::string> GgufFile::String(const std::string& key) const {
  TOROID_ASSIGN_OR_RETURN(const GgufValue value, Find(key, false));
  if (value.type != GgufValue::kString) return WrongKind(key, "a string");
  const uint8_t* data = value.data.data();
  return LoadString(data);
}

absl::StatusOr<std::vector<int64_t>> GgufFile::Ints(const std::string& key) const {
  TOROID_ASSIGN_OR_RETURN(const GgufValue value, Find(key, true));
  if (!IsInteger(value.type)) return WrongKind(key, "an array of integers");
  std::vector<int64_t> result(value.count);
  const size_t width = value.count == 0 ? 0 : value.data.size() / value.count;
  for (uint64_t i = 0; i < value.count; ++i) {
    if (!LoadInteger(value.type, value.data.data() + i * width, result[i])) {
      return WrongKind(key, "an array of integers below 2^63");
    }
  }
  return result;
}

absl::StatusOr<std::vector<float>> GgufFile::Floats(const std::string& key) const {
  TOROID_ASSIGN_OR_RETURN(const GgufValue value, Find(key, true));
  if (value.type != GgufValue::kFloat32) return WrongKind(key, "an array of 32-bit floats");
  std::vector<float> result(value.count);
  if (!result.empty()) std::memcpy(result.data(), value.data.data(), value.data.size());
  return result;
}

absl::StatusOr<std::vector<std::string>> GgufFile::Strings(const std::string& key) const {
  TOROID_ASSIGN_OR_RETURN(const GgufValue value, Find(key, true));
  if (value.type != GgufValue::kString) return WrongKind(key, "an array of strings");
  std::vector<std::string> result;
  result.reserve(value.count);
  const uint8_t* data = value.data.data();
  for (uint64_t i = 0; i < value.count; ++i) result.push_back(LoadString(data));
  return result;
}

absl::StatusOr<int64_t> GgufFile::IntOr(const std::string& key, int64_t fallback) const {
  if (!Has(key)) return fallback;
  return Int(key);
}

absl::StatusOr<double> GgufFile::DoubleOr(const std::string& key, double fallback) const {
  if (!Has(key)) return fallback;
  return Double(key);
}

}  // namespace toroid
