#include "core/io/safetensors_writer.h"

#include <nlohmann/json.hpp>
#include <utility>

#include "core/check.h"
#include "core/status_macros.h"

namespace toroid {

int64_t SafetensorsEntry::bytes() const {
  int64_t elements = 1;
  for (const int64_t dim : shape) elements *= dim;
  return RowBytes(dtype, elements);
}

absl::StatusOr<SafetensorsWriter> SafetensorsWriter::Create(
    FileSystem& files, const std::string& path, const std::vector<SafetensorsEntry>& tensors) {
  // transformers refuses files that do not say what wrote them.
  nlohmann::ordered_json::object_t table;
  table.emplace_back("__metadata__", nlohmann::ordered_json{{"format", "pt"}});
  int64_t end = 0;
  for (const SafetensorsEntry& tensor : tensors) {
    TOROID_CHECK(tensor.dtype == DType::kF32 || tensor.dtype == DType::kBF16);
    const int64_t begin = end;
    end += tensor.bytes();
    table.emplace_back(
        tensor.name, nlohmann::ordered_json{{"dtype", tensor.dtype == DType::kF32 ? "F32" : "BF16"},
                                            {"shape", tensor.shape},
                                            {"data_offsets", {begin, end}}});
  }
  const nlohmann::ordered_json header(std::move(table));
  std::string text = header.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  text.resize((text.size() + 7) / 8 * 8, ' ');
  const uint64_t size = text.size();
  TOROID_ASSIGN_OR_RETURN(std::unique_ptr<WritableFile> file, files.Create(path));
  SafetensorsWriter writer(std::move(file));
  TOROID_RETURN_IF_ERROR(writer.Append({reinterpret_cast<const uint8_t*>(&size), sizeof size}));
  TOROID_RETURN_IF_ERROR(
      writer.Append({reinterpret_cast<const uint8_t*>(text.data()), text.size()}));
  return writer;
}

absl::Status SafetensorsWriter::Finish() {
  TOROID_RETURN_IF_ERROR(file_->Sync());
  return file_->Close();
}

}  // namespace toroid
