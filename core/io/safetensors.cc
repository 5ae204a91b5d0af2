#include "core/io/safetensors.h"

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "core/status_macros.h"

namespace toroid {
namespace {

constexpr uint64_t kMaxHeader = 100000000;
constexpr uint64_t kMaxBytes = uint64_t{1} << 60;
constexpr size_t kMaxDims = 16;

struct ElementType {
  const char* name;
  std::optional<DType> dtype;
};
constexpr ElementType kTypes[] = {
    {"F64", DType::kF64},      {"F32", DType::kF32},      {"F16", DType::kF16},
    {"BF16", DType::kBF16},    {"I64", DType::kI64},      {"I32", DType::kI32},
    {"U8", DType::kU8},        {"BOOL", std::nullopt},    {"I8", std::nullopt},
    {"I16", std::nullopt},     {"U16", std::nullopt},     {"U32", std::nullopt},
    {"U64", std::nullopt},     {"C64", std::nullopt},     {"F4", std::nullopt},
    {"F6_E2M3", std::nullopt}, {"F6_E3M2", std::nullopt}, {"F8_E4M3", std::nullopt},
    {"F8_E5M2", std::nullopt}, {"F8_E8M0", std::nullopt},
};

struct Entry {
  std::string name, type;
  std::vector<uint64_t> shape, offsets;
  bool has_type = false, has_shape = false, has_offsets = false;
};

// Walks the header as its grammar says and stops at the first thing that does not belong there. A
// tree of the JSON is never built: it could be many times larger than the file.
class HeaderHandler : public nlohmann::json_sax<nlohmann::json> {
 public:
  std::vector<Entry> entries;
  std::string error;  // the broken rule

  bool null() override { return Fail("holds a null"); }
  bool boolean(bool) override { return Fail("holds a truth value"); }
  bool number_integer(number_integer_t) override { return Fail("holds a negative number"); }
  bool number_float(number_float_t, const string_t&) override {
    return Fail("holds a number that is no 64-bit unsigned integer");
  }
  bool binary(binary_t&) override { return Fail("holds binary data"); }

  bool number_unsigned(number_unsigned_t value) override {
    if (state_ == State::kShape) {
      if (entries.back().shape.size() == kMaxDims) return Fail("has a shape of over 16 dimensions");
      entries.back().shape.push_back(value);
      return true;
    }
    if (state_ == State::kOffsets) {
      if (entries.back().offsets.size() == 2) return Fail("has over two data_offsets");
      entries.back().offsets.push_back(value);
      return true;
    }
    return Fail("holds a number where none belongs");
  }

  bool string(string_t& value) override {
    if (state_ == State::kMetadata) return true;
    if (state_ != State::kTensor || field_ != "dtype") {
      return Fail("holds a text where none belongs");
    }
    entries.back().type = value;
    field_.clear();
    return true;
  }

  bool start_object(size_t) override {
    switch (state_) {
      case State::kBegin:
        state_ = State::kTop;
        return true;
      case State::kTop:
        state_ = metadata_ ? State::kMetadata : State::kTensor;
        return true;
      default:
        return Fail("holds an object where none belongs");
    }
  }

  bool key(string_t& name) override {
    switch (state_) {
      case State::kTop:
        metadata_ = name == "__metadata__";
        if (!names_.insert(name).second) return Fail(absl::StrCat("has ", name, " twice"));
        if (!metadata_) entries.push_back({.name = name, .type = {}, .shape = {}, .offsets = {}});
        return true;
      case State::kMetadata:
        if (!metadata_names_.insert(name).second) {
          return Fail(absl::StrCat("has ", name, " twice in __metadata__"));
        }
        return true;
      default:
        return TensorField(name);
    }
  }

  bool end_object() override {
    if (state_ == State::kTop) {
      state_ = State::kEnd;
      return true;
    }
    if (state_ == State::kTensor) {
      const Entry& entry = entries.back();
      if (!entry.has_type || !entry.has_shape || !entry.has_offsets || entry.type.empty()) {
        return Fail(absl::StrCat("has tensor ", entry.name,
                                 " without all of dtype, shape and data_offsets"));
      }
    }
    state_ = State::kTop;
    return true;
  }

  bool start_array(size_t) override {
    if (state_ == State::kTensor && field_ == "shape") {
      state_ = State::kShape;
    } else if (state_ == State::kTensor && field_ == "data_offsets") {
      state_ = State::kOffsets;
    } else {
      return Fail("holds an array where none belongs");
    }
    field_.clear();
    return true;
  }

  bool end_array() override {
    if (state_ == State::kOffsets && entries.back().offsets.size() != 2) {
      return Fail(absl::StrCat("has tensor ", entries.back().name, " without two data_offsets"));
    }
    state_ = State::kTensor;
    return true;
  }

  bool parse_error(size_t position, const std::string&, const nlohmann::json::exception&) override {
    return Fail(absl::StrCat("is no valid JSON at byte ", position));
  }

 private:
  enum class State { kBegin, kTop, kMetadata, kTensor, kShape, kOffsets, kEnd };

  bool TensorField(const std::string& name) {
    Entry& entry = entries.back();
    bool* seen = name == "dtype"          ? &entry.has_type
                 : name == "shape"        ? &entry.has_shape
                 : name == "data_offsets" ? &entry.has_offsets
                                          : nullptr;
    if (seen == nullptr) {
      return Fail(absl::StrCat("has tensor ", entry.name, " with the unknown field ", name));
    }
    if (*seen) return Fail(absl::StrCat("has tensor ", entry.name, " with ", name, " twice"));
    *seen = true;
    field_ = name;
    return true;
  }

  bool Fail(absl::string_view rule) {
    if (error.empty()) error = absl::StrCat("the header ", rule);
    return false;
  }

  State state_ = State::kBegin;
  bool metadata_ = false;  // the value of the present key of the top object is __metadata__
  std::string field_;      // of a tensor, whose value comes next
  absl::flat_hash_set<std::string> names_, metadata_names_;
};

// Type and size of one entry; `name` is the file.
absl::Status CheckEntry(const Entry& entry, const std::string& name, SafetensorsTensor& tensor) {
  const auto bad = [&](absl::string_view rule) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, ": not a valid safetensors file: tensor ", entry.name, " ", rule));
  };
  const ElementType* type = nullptr;
  for (const ElementType& known : kTypes) {
    if (entry.type == known.name) type = &known;
  }
  if (type == nullptr) return bad(absl::StrCat("has the unknown dtype ", entry.type));
  if (!type->dtype.has_value()) {
    return absl::UnimplementedError(
        absl::StrCat(name, ": tensor ", entry.name, " has dtype ", type->name,
                     ", which toroid does not read; it reads F64, F32, F16 and BF16 weights"));
  }
  uint64_t elements = 1;
  for (const uint64_t dim : entry.shape) {
    if (dim > kMaxBytes || (dim != 0 && elements > kMaxBytes / dim)) {
      return bad("has a size that overflows");
    }
    elements *= dim;
    tensor.shape.push_back(int64_t(dim));
  }
  const uint64_t width = uint64_t(Info(*type->dtype).bytes);
  if (elements > kMaxBytes / width) return bad("has a size that overflows");
  const uint64_t begin = entry.offsets[0], end = entry.offsets[1];
  if (end < begin || end - begin != elements * width) {
    return bad(absl::StrCat("has data_offsets ", begin, " to ", end, ", its shape takes ",
                            elements * width, " bytes"));
  }
  tensor.name = entry.name;
  tensor.dtype = *type->dtype;
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<SafetensorsTensor>> ParseSafetensors(absl::Span<const uint8_t> bytes,
                                                                const std::string& name) {
  const auto bad = [&](absl::string_view rule) {
    return absl::InvalidArgumentError(absl::StrCat(name, ": not a valid safetensors file: ", rule));
  };
  uint64_t length = 0;
  if (bytes.size() < 8) return bad("it is shorter than 8 bytes");
  std::memcpy(&length, bytes.data(), 8);
  if (length > kMaxHeader) {
    return bad(absl::StrCat("the header's length, ", length, ", is above ", kMaxHeader));
  }
  if (length > bytes.size() - 8) {
    return bad(absl::StrCat("the header's length, ", length, ", is beyond the file (", bytes.size(),
                            " bytes); the file may be truncated"));
  }
  if (length == 0 || bytes[8] != '{') return bad("the header does not begin with {");
  HeaderHandler header;
  const char* text = reinterpret_cast<const char*>(bytes.data()) + 8;
  if (!nlohmann::json::sax_parse(text, text + length, &header)) return bad(header.error);

  std::vector<Entry>& entries = header.entries;
  std::sort(entries.begin(), entries.end(),
            [](const Entry& a, const Entry& b) { return a.offsets < b.offsets; });
  const absl::Span<const uint8_t> data = bytes.subspan(8 + size_t(length));
  std::vector<SafetensorsTensor> tensors;
  tensors.reserve(entries.size());
  uint64_t covered = 0;
  for (const Entry& entry : entries) {
    SafetensorsTensor tensor;
    TOROID_RETURN_IF_ERROR(CheckEntry(entry, name, tensor));
    const uint64_t begin = entry.offsets[0], end = entry.offsets[1];
    if (begin != covered) {
      return bad(absl::StrCat(
          "tensor ", entry.name, " begins at ", begin, ", ",
          begin < covered ? "within the tensor before it" : "after a hole in the data"));
    }
    if (end > data.size()) {
      return bad(absl::StrCat("tensor ", entry.name, " ends at ", end, ", the data at ",
                              data.size(), "; the file may be truncated"));
    }
    tensor.data = data.subspan(size_t(begin), size_t(end - begin));
    covered = end;
    tensors.push_back(std::move(tensor));
  }
  if (covered != data.size()) {
    return bad(absl::StrCat("the tensors cover ", covered, " of ", data.size(), " bytes of data"));
  }
  return tensors;
}

}  // namespace toroid
