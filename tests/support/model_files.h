// Model files made by tests: GGUF and safetensors bytes built field by field, so that a test can
// get any one of them wrong, and a directory to put them in.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

namespace toroid {

// A directory that is removed with all it holds.
class TemporaryDirectory {
 public:
  TemporaryDirectory();
  ~TemporaryDirectory();
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  const std::string& path() const { return path_; }
  // Writes a file and returns its path.
  std::string Write(const std::string& name, const std::string& bytes) const;

 private:
  std::string path_;
};

// Little-endian bytes of a number.
template <typename T>
std::string Raw(T value) {
  std::string bytes(sizeof(T), '\0');
  std::memcpy(bytes.data(), &value, sizeof(T));
  return bytes;
}

// Builds a GGUF file. Defaults are right; what a test wants wrong it sets.
class GgufBuilder {
 public:
  struct Tensor {
    std::string name;
    std::vector<uint64_t> dims;  // innermost first, as in the file
    uint32_t type = 0;           // F32
    std::string data;
    int64_t offset = -1;  // -1: where it belongs
  };

  std::string magic = "GGUF";
  uint32_t version = 3;
  int64_t tensor_count = -1;  // -1: as many as there are
  int64_t key_count = -1;
  uint64_t alignment = 32;
  std::vector<Tensor> tensors;

  // Adds a key; `value` is what follows the type.
  void Key(const std::string& name, uint32_t type, const std::string& value);
  void String(const std::string& name, const std::string& value);
  void Uint32(const std::string& name, uint32_t value) { Key(name, 4, Raw(value)); }
  void Float32(const std::string& name, float value) { Key(name, 6, Raw(value)); }
  void Bool(const std::string& name, bool value) { Key(name, 7, Raw(uint8_t(value))); }
  void Strings(const std::string& name, const std::vector<std::string>& values);
  // Replaces or removes the key.
  void Remove(const std::string& name);
  // A float32 tensor of ones; rows 0: a vector.
  void Ones(const std::string& name, uint64_t rows, uint64_t cols);

  std::string Build() const;

 private:
  std::vector<std::pair<std::string, std::string>> keys_;
};

// A one-layer GGUF model of `architecture` with every tensor in place: D 32, F 64, 4 query and 2 KV
// heads of 8, vocabulary 40.
GgufBuilder SmallGguf(const std::string& architecture);

// 8 bytes of length, the header's text, the data.
std::string SafetensorsBytes(const std::string& header, const std::string& data);

}  // namespace toroid
