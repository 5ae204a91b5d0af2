// The text of a manifest, written and read.
#include <cinttypes>
#include <cmath>
#include <cstdio>
#include <limits>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "core/check.h"
#include "core/io/checkpoint_manifest.h"
#include "core/io/checkpoint_shard.h"
#include "core/io/fingerprint.h"
#include "core/io/json_fields.h"
#include "core/io/model_config_json.h"
#include "core/status_macros.h"

namespace toroid {
namespace {

using nlohmann::json;

constexpr absl::string_view kBeforeHash = "{\"hash\":\"", kBehindHash = "\",\n";
constexpr size_t kHexDigits = 16;
constexpr int64_t kMostNumbers = 1 << 20;  // of one name

// 64 bits do not survive every reader of JSON as a number.
std::string Hex(uint64_t value) {
  char text[kHexDigits + 1];
  std::snprintf(text, sizeof text, "%016" PRIx64, value);
  return text;
}

bool ReadHex(absl::string_view text, uint64_t& out) {
  out = 0;
  for (const char c : text) {
    const int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
    if (digit < 0) return false;
    out = out << 4 | uint64_t(digit);
  }
  return text.size() == kHexDigits;
}

// What JSON has no number for is a text.
json NumberJson(double x) {
  if (std::isfinite(x)) return x;
  return std::isnan(x) ? "nan" : x > 0 ? "inf" : "-inf";
}

bool ReadNumber(const json& value, double& out) {
  if (value.is_number()) {
    out = value.get<double>();
  } else if (value == json("nan")) {
    out = std::numeric_limits<double>::quiet_NaN();
  } else if (value == json("inf") || value == json("-inf")) {
    out = std::numeric_limits<double>::infinity() * (value == json("inf") ? 1 : -1);
  } else {
    return false;
  }
  return true;
}

json StateJson(const TrainingState& state) {
  json numbers = json::object(), texts = json::object();
  for (const auto& [name, values] : state.numbers) {
    json& list = numbers[name] = json::array();
    for (const double x : values) list.push_back(NumberJson(x));
  }
  for (const auto& [name, text] : state.texts) texts[name] = text;
  return {{"step", state.step},
          {"branch", state.branch},
          {"data_position", state.data_position},
          {"seed", Hex(state.seed)},
          {"skipped", state.skipped.ToString()},
          {"numbers", std::move(numbers)},
          {"texts", std::move(texts)}};
}

json PieceJson(const CheckpointPiece& piece) {
  const ParamSlice& s = piece.slice;
  return {piece.parameter, s.row_begin, s.row_count, s.col_begin,
          s.col_count,     piece.begin, piece.count};
}

// Reads one object, every key of which must be asked for.
class Reader {
 public:
  Reader(const json& object, const std::string& where) : object_(object), where_(where) {}

  // Null, and an error kept, if the key is absent or its value is not of this kind.
  const json* Find(const char* key, json::value_t kind) {
    const auto found = object_.find(key);
    ++asked_;
    if (found == object_.end()) {
      Wrong(absl::StrCat(key, " is missing"));
    } else if (found->type() != kind) {
      Wrong(absl::StrCat(key, " = ", Shown(*found), ": of another kind"));
    } else {
      return &*found;
    }
    return nullptr;
  }
  // An integer from `low` to 2^60.
  void Int(const char* key, int64_t low, int64_t& out) {
    const auto found = object_.find(key);
    ++asked_;
    if (found == object_.end()) return Wrong(absl::StrCat(key, " is missing"));
    if (!IsCount(*found) || found->get<int64_t>() < low) {
      return Wrong(
          absl::StrCat(key, " = ", Shown(*found), ": must be an integer from ", low, " to 2^60"));
    }
    out = found->get<int64_t>();
  }
  void HexNumber(const char* key, uint64_t& out) {
    const json* value = Find(key, json::value_t::string);
    if (value != nullptr && !ReadHex(value->get<std::string>(), out)) {
      Wrong(absl::StrCat(key, " = ", Shown(*value), ": must be 16 hex digits"));
    }
  }
  static bool IsCount(const json& value) {
    return value.is_number_unsigned() && value.get<uint64_t>() <= uint64_t{1} << 60;
  }
  void Wrong(absl::string_view why) {
    if (status_.ok()) status_ = absl::DataLossError(absl::StrCat(where_, ": ", why));
  }
  absl::Status Done() {
    if (asked_ != object_.size()) Wrong("it has fields that this toroid does not know");
    return status_;
  }

 private:
  const json& object_;
  const std::string& where_;
  size_t asked_ = 0;
  absl::Status status_;
};

absl::Status ReadState(const json& object, const std::string& where, TrainingState& out) {
  Reader reader(object, where);
  reader.Int("step", 0, out.step);
  reader.Int("branch", 0, out.branch);
  reader.Int("data_position", 0, out.data_position);
  reader.HexNumber("seed", out.seed);
  if (const json* text = reader.Find("skipped", json::value_t::string)) {
    absl::StatusOr<SkipList> skipped = SkipList::Parse(text->get<std::string>());
    if (skipped.ok()) {
      out.skipped = *std::move(skipped);
    } else {
      reader.Wrong(absl::StrCat("skipped: ", skipped.status().message()));
    }
  }
  if (const json* numbers = reader.Find("numbers", json::value_t::object)) {
    for (const auto& [name, values] : numbers->items()) {
      std::vector<double>& list = out.numbers[name];
      bool good = values.is_array() && int64_t(values.size()) <= kMostNumbers;
      for (const json& value : good ? values : json::array()) {
        good = good && ReadNumber(value, list.emplace_back());
      }
      if (!good) reader.Wrong(absl::StrCat("numbers: ", name, ": must be a list of numbers"));
    }
  }
  if (const json* texts = reader.Find("texts", json::value_t::object)) {
    for (const auto& [name, text] : texts->items()) {
      if (text.is_string()) {
        out.texts[name] = text.get<std::string>();
      } else {
        reader.Wrong(absl::StrCat("texts: ", name, ": must be a text"));
      }
    }
  }
  return reader.Done();
}

// A list of `count` integers from 0 to 2^60, behind `skip` other items.
bool ReadCounts(const json& list, size_t skip, absl::Span<int64_t* const> out) {
  if (!list.is_array() || list.size() != skip + out.size()) return false;
  for (size_t i = 0; i < out.size(); ++i) {
    if (!Reader::IsCount(list[skip + i])) return false;
    *out[i] = list[skip + i].get<int64_t>();
  }
  return true;
}

// Bytes of all kinds of so many elements still fit an integer; no model comes near.
constexpr int64_t kMostElements = int64_t{1} << 56;

void ReadParameters(const json& list, Reader& reader, CheckpointManifest& out) {
  int64_t left = kMostElements;
  for (const json& item : list) {
    CheckpointParameter& parameter = out.parameters.emplace_back();
    if (!ReadCounts(item, 1, {&parameter.rows, &parameter.cols}) || !item[0].is_string() ||
        parameter.rows < 1 || parameter.cols < 1 || parameter.cols > left / parameter.rows) {
      return reader.Wrong(
          absl::StrCat("parameters: ", Shown(item), ": must be [name, rows, cols]"));
    }
    parameter.name = item[0].get<std::string>();
    left -= parameter.rows * parameter.cols;
  }
}

absl::Status ReadShard(const json& object, const std::string& where, const std::string& name,
                       CheckpointShard& out) {
  if (!object.is_object()) return absl::DataLossError(absl::StrCat(where, ": no object"));
  Reader reader(object, where);
  const json* file = reader.Find("file", json::value_t::string);
  if (file != nullptr && *file != json(name)) {
    reader.Wrong(absl::StrCat("file = ", Shown(*file), ": must be ", name));
  }
  reader.Int("bytes", 0, out.bytes);
  reader.HexNumber("hash", out.hash);
  if (const json* pieces = reader.Find("pieces", json::value_t::array)) {
    for (const json& item : *pieces) {
      CheckpointPiece& piece = out.pieces.emplace_back();
      ParamSlice& s = piece.slice;
      if (!ReadCounts(item, 0,
                      {&piece.parameter, &s.row_begin, &s.row_count, &s.col_begin, &s.col_count,
                       &piece.begin, &piece.count})) {
        reader.Wrong(absl::StrCat("pieces: ", Shown(item), ": must be seven integers"));
        break;
      }
    }
  }
  return reader.Done();
}

absl::Status ReadShards(const json& list, const std::string& where, CheckpointManifest& out) {
  for (const json& item : list) {
    const std::string name = ShardName(int64_t(out.shards.size()), int64_t(list.size()));
    TOROID_RETURN_IF_ERROR(
        ReadShard(item, absl::StrCat(where, ": ", name), name, out.shards.emplace_back()));
  }
  const absl::Status covers = CoversOnce(out.parameters, out.shards);
  if (!covers.ok()) return absl::DataLossError(absl::StrCat(where, ": ", covers.message()));
  for (size_t i = 0; i < out.shards.size(); ++i) {
    // No overflow: CoversOnce has bounded the elements by those of the parameters.
    const int64_t data = out.shards[i].elements() * out.kinds();
    if (out.shards[i].bytes != ShardBytes(RowBytes(out.dtype, data))) {
      return absl::DataLossError(absl::StrCat(where, ": ",
                                              ShardName(int64_t(i), int64_t(list.size())),
                                              ": its length is not that of its pieces"));
    }
  }
  return absl::OkStatus();
}

void ReadAlso(const json& list, Reader& reader, CheckpointManifest& out) {
  for (const json& name : list) {
    if (!name.is_string() || out.also.size() == CheckpointManifest::kMostAlso) {
      return reader.Wrong(absl::StrCat("also: ", Shown(name), ": must be one of at most ",
                                       CheckpointManifest::kMostAlso, " names"));
    }
    out.also.push_back(name.get<std::string>());
  }
}

absl::Status ReadManifest(const json& object, const std::string& where, CheckpointManifest& out) {
  Reader reader(object, where);
  int64_t schema = 0;
  uint64_t hash = 0;
  reader.HexNumber("hash", hash);
  reader.Int("schema", 1, schema);
  if (schema > CheckpointManifest::kSchema) {
    return absl::UnimplementedError(absl::StrCat(where, ": schema ", schema, ": this toroid reads ",
                                                 CheckpointManifest::kSchema, ": use a newer one"));
  }
  reader.Int("epoch", 0, out.epoch);
  reader.HexNumber("save_id", out.save_id);
  if (const json* type = reader.Find("dtype", json::value_t::string)) {
    out.dtype = *type == json("f64") ? DType::kF64 : DType::kF32;
    if (*type != json(Info(out.dtype).name)) reader.Wrong("dtype must be f32 or f64");
  }
  const json* mesh = reader.Find("mesh", json::value_t::array);
  if (mesh != nullptr && (!ReadCounts(*mesh, 0, {&out.data, &out.ring, &out.tensor}) ||
                          std::max({out.data, out.ring, out.tensor}) > int64_t{1} << 20)) {
    reader.Wrong("mesh must be [data, ring, tensor]");
  }
  if (object.contains("origin")) {
    if (const json* origin = reader.Find("origin", json::value_t::object)) {
      Reader fields(*origin, where);
      fields.Int("bytes", 1, out.origin.bytes);
      fields.HexNumber("hash", out.origin.hash);
      TOROID_RETURN_IF_ERROR(fields.Done());
    }
  }
  if (object.contains("also")) {
    if (const json* also = reader.Find("also", json::value_t::array)) ReadAlso(*also, reader, out);
  }
  const json* state = reader.Find("state", json::value_t::object);
  const json* model = reader.Find("model", json::value_t::object);
  const json* parameters = reader.Find("parameters", json::value_t::array);
  const json* shards = reader.Find("shards", json::value_t::array);
  if (parameters != nullptr) ReadParameters(*parameters, reader, out);
  if (shards != nullptr && out.data * out.ring * out.tensor != int64_t(shards->size())) {
    reader.Wrong("the mesh has not as many ranks as there are shards");
  }
  TOROID_RETURN_IF_ERROR(reader.Done());
  TOROID_RETURN_IF_ERROR(ReadState(*state, where + ": state", out.state));
  const absl::StatusOr<ModelConfig> config = ReadModelConfig(*model, where + ": model");
  if (!config.ok()) return absl::DataLossError(config.status().message());
  out.model = *config;
  return ReadShards(*shards, where, out);
}

}  // namespace

std::string TrainingStateText(const TrainingState& state) {
  return StateJson(state).dump(-1, ' ', false, json::error_handler_t::replace);
}

absl::StatusOr<TrainingState> ParseTrainingState(absl::string_view text, const std::string& where) {
  const absl::StatusOr<json> object = ParseJsonObject(text, where);
  if (!object.ok()) return absl::DataLossError(object.status().message());
  TrainingState state;
  TOROID_RETURN_IF_ERROR(ReadState(*object, where, state));
  return state;
}

uint64_t HashOfText(absl::string_view text) {
  FingerprintHash hash;
  hash.Text(text);
  return hash.value();
}

uint64_t ManifestHash(absl::string_view text) {
  uint64_t hash = 0;
  TOROID_CHECK(text.size() > kBeforeHash.size() &&
               ReadHex(text.substr(kBeforeHash.size(), kHexDigits), hash));
  return hash;
}

std::string CheckpointManifest::ToText() const {
  json list = json::array(), files = json::array();
  for (const CheckpointParameter& p : parameters) list.push_back({p.name, p.rows, p.cols});
  for (size_t i = 0; i < shards.size(); ++i) {
    json pieces = json::array();
    for (const CheckpointPiece& piece : shards[i].pieces) pieces.push_back(PieceJson(piece));
    files.push_back({{"file", ShardName(int64_t(i), int64_t(shards.size()))},
                     {"bytes", shards[i].bytes},
                     {"hash", Hex(shards[i].hash)},
                     {"pieces", std::move(pieces)}});
  }
  json object = {{"schema", kSchema},
                 {"epoch", epoch},
                 {"save_id", Hex(save_id)},
                 {"dtype", Info(dtype).name},
                 {"mesh", {data, ring, tensor}},
                 {"state", StateJson(state)},
                 {"model", ModelConfigJson(model)},
                 {"parameters", std::move(list)},
                 {"shards", std::move(files)}};
  if (!also.empty()) object["also"] = also;
  if (origin.bytes > 0) object["origin"] = {{"bytes", origin.bytes}, {"hash", Hex(origin.hash)}};
  // The object's own opening brace stands before the hash.
  const std::string rest = object.dump(-1, ' ', false, json::error_handler_t::replace).substr(1);
  return absl::StrCat(kBeforeHash, Hex(HashOfText(rest)), kBehindHash, rest);
}

absl::StatusOr<CheckpointManifest> CheckpointManifest::Parse(absl::string_view text,
                                                             const std::string& where) {
  const size_t head = kBeforeHash.size() + kHexDigits + kBehindHash.size();
  uint64_t hash = 0;
  if (text.size() < head || text.substr(0, kBeforeHash.size()) != kBeforeHash ||
      !ReadHex(text.substr(kBeforeHash.size(), kHexDigits), hash) ||
      text.substr(head - kBehindHash.size(), kBehindHash.size()) != kBehindHash) {
    return absl::DataLossError(absl::StrCat(where, ": damaged: it does not begin with its hash"));
  }
  if (HashOfText(text.substr(head)) != hash) {
    return absl::DataLossError(absl::StrCat(where, ": damaged: its text is not what was written"));
  }
  const absl::StatusOr<json> object = ParseJsonObject(text, where);
  if (!object.ok()) return absl::DataLossError(object.status().message());
  CheckpointManifest manifest;
  TOROID_RETURN_IF_ERROR(ReadManifest(*object, where, manifest));
  return manifest;
}

}  // namespace toroid
