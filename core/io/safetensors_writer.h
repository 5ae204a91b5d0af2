// Writer of one safetensors file whose tensors are known beforehand and come in pieces, in order:
// the header first, then bytes as they are appended. Holds no tensor.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "core/io/file_system.h"
#include "kernels/dtype.h"

namespace toroid {

struct SafetensorsEntry {
  std::string name;
  DType dtype = DType::kF32;  // kF32 or kBF16
  std::vector<int64_t> shape;
  int64_t bytes() const;
};

class SafetensorsWriter {
 public:
  // Creates the file and writes its header, the data aligned to 8 bytes. Errors name the path.
  static absl::StatusOr<SafetensorsWriter> Create(FileSystem& files, const std::string& path,
                                                  const std::vector<SafetensorsEntry>& tensors);
  absl::Status Append(absl::Span<const uint8_t> bytes) { return file_->Append(bytes); }
  // The file is durable. REQUIRES: as many bytes were appended as the tensors have.
  absl::Status Finish();

 private:
  explicit SafetensorsWriter(std::unique_ptr<WritableFile> file) : file_(std::move(file)) {}
  std::unique_ptr<WritableFile> file_;
};

}  // namespace toroid
