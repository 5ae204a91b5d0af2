#include "tests/support/repeated_heads.h"

#include <filesystem>
#include <fstream>
#include <vector>

#include "core/check.h"
#include "core/io/file_system.h"
#include "core/io/hugging_face_config.h"
#include "core/io/safetensors_writer.h"
#include "core/io/weights.h"

namespace toroid {

void WriteWithRepeatedKvHeads(const std::string& model, uint64_t seed, int64_t kv_heads,
                              const std::string& directory) {
  const ModelSource source = *OpenModel(model, seed);
  ModelSource wide = *OpenModel(model, seed);  // only its configuration is used
  TOROID_CHECK_EQ(kv_heads % source.config.kv_heads, 0);
  const int64_t times = kv_heads / source.config.kv_heads;
  wide.config.kv_heads = kv_heads;
  std::filesystem::create_directories(directory);
  std::ofstream(directory + "/config.json") << *HuggingFaceConfigText(wide, DType::kF32);
  std::vector<SafetensorsEntry> entries;
  std::vector<uint8_t> data;
  for (const ParamSpec& spec : ParamTable(source.config)) {
    if (!spec.alias.empty()) continue;
    const bool vector = spec.group == "norm" || spec.group == "bias";
    std::vector<uint8_t> values(size_t(spec.rows * spec.cols) * sizeof(float));
    TOROID_CHECK(
        LoadParam(source, spec, {0, spec.rows, 0, spec.cols}, DType::kF32, values.data()).ok());
    const bool by_kv_head = spec.split == Split::kKvHeads;
    const int64_t outputs = (vector ? spec.cols : spec.rows) * (by_kv_head ? times : 1);
    entries.push_back(
        {spec.name, DType::kF32,
         vector ? std::vector<int64_t>{outputs} : std::vector<int64_t>{outputs, spec.cols}});
    const size_t head = by_kv_head ? values.size() / size_t(source.config.kv_heads) : values.size();
    for (size_t at = 0; at < values.size(); at += head) {
      for (int64_t i = 0; i < (by_kv_head ? times : 1); ++i) {
        data.insert(data.end(), values.begin() + int64_t(at), values.begin() + int64_t(at + head));
      }
    }
  }
  auto writer = SafetensorsWriter::Create(PosixFiles(), directory + "/model.safetensors", entries);
  TOROID_CHECK(writer.ok() && writer->Append(data).ok() && writer->Finish().ok());
}

}  // namespace toroid
