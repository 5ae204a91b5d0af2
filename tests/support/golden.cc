#include "tests/support/golden.h"

#include <algorithm>
#include <bit>
#include <cctype>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "core/check.h"
#include "tests/support/source_path.h"

namespace toroid {
namespace {

static_assert(std::endian::native == std::endian::little, "the arrays are little-endian");

std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  TOROID_CHECK_MSG(file.good(), path + ": not found");
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

template <typename T>
std::vector<double> Widen(const char* bytes, int64_t count) {
  std::vector<T> values(count);
  std::memcpy(values.data(), bytes, count * sizeof(T));
  return std::vector<double>(values.begin(), values.end());
}

}  // namespace

std::string GoldenModelPath(const std::string& name) {
  return SourcePath("tests/golden/models/" + name);
}

Golden Golden::Load(const std::string& name) {
  Golden golden;
  golden.path_ = GoldenModelPath(name);
  golden.fields_ = nlohmann::json::parse(ReadFile(golden.path_ + ".json"), nullptr,
                                         /*allow_exceptions=*/false);
  TOROID_CHECK_MSG(golden.fields_.is_object(), golden.path_ + ".json: not a JSON object");
  if (golden.fields_.contains("arrays")) golden.bytes_ = ReadFile(golden.path_ + ".bin");
  return golden;
}

const nlohmann::json& Golden::operator[](const std::string& field) const {
  auto found = fields_.find(field);
  TOROID_CHECK_MSG(found != fields_.end(), path_ + ".json: no field " + field);
  return *found;
}

std::vector<int32_t> Golden::Ids(const std::string& field) const {
  return (*this)[field].get<std::vector<int32_t>>();
}

std::vector<int64_t> Golden::Shape(const std::string& name) const {
  const nlohmann::json& arrays = (*this)["arrays"];
  TOROID_CHECK_MSG(arrays.contains(name), path_ + ".json: no array " + name);
  return arrays[name]["shape"].get<std::vector<int64_t>>();
}

std::vector<double> Golden::Array(const std::string& name) const {
  int64_t count = 1;
  for (int64_t dim : Shape(name)) count *= dim;
  const nlohmann::json& entry = (*this)["arrays"][name];
  const bool is_double = entry["dtype"] == "f64";
  const int64_t offset = entry["offset"].get<int64_t>();
  const int64_t size = count * (is_double ? 8 : 4);
  TOROID_CHECK_MSG(offset + size <= static_cast<int64_t>(bytes_.size()),
                   path_ + ".bin: ends before array " + name);
  const char* bytes = bytes_.data() + offset;
  return is_double ? Widen<double>(bytes, count) : Widen<float>(bytes, count);
}

bool GoldenModel::variant() const {
  if (gguf()) return model.find("gguf/llama_l") == 0 || model == "gguf/llama_yarn.gguf";
  return std::filesystem::is_symlink(GoldenModelPath(model) + "/model.safetensors");
}

std::string GoldenModel::TestName() const {
  std::string name = model;
  for (char& c : name) c = std::isalnum(c) ? c : '_';
  return name;
}

void PrintTo(const GoldenModel& model, std::ostream* out) { *out << model.model; }

std::vector<GoldenModel> GoldenModels(bool (*wanted)(const GoldenModel&)) {
  namespace fs = std::filesystem;
  std::vector<GoldenModel> models;
  for (const auto& entry : fs::directory_iterator(GoldenModelPath("."))) {
    const std::string name = entry.path().filename().string();
    if (fs::exists(entry.path() / "expected.json")) models.push_back({name, name + "/expected"});
  }
  for (const auto& entry : fs::directory_iterator(GoldenModelPath("gguf"))) {
    const std::string name = "gguf/" + entry.path().stem().string();
    fs::path golden = entry.path();
    golden.replace_extension(".json");
    if (entry.path().extension() == ".gguf" && fs::exists(golden)) {
      models.push_back({name + ".gguf", name});
    }
  }
  if (wanted != nullptr) std::erase_if(models, [&](const GoldenModel& m) { return !wanted(m); });
  std::sort(models.begin(), models.end(),
            [](const GoldenModel& a, const GoldenModel& b) { return a.model < b.model; });
  return models;
}

}  // namespace toroid
