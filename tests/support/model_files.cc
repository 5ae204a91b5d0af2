#include "tests/support/model_files.h"

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "core/check.h"

namespace toroid {

TemporaryDirectory::TemporaryDirectory() {
  std::string name = (std::filesystem::temp_directory_path() / "toroid-test-XXXXXX").string();
  TOROID_CHECK(::mkdtemp(name.data()) != nullptr);
  path_ = name;
}

TemporaryDirectory::~TemporaryDirectory() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

std::string TemporaryDirectory::Write(const std::string& name, const std::string& bytes) const {
  const std::string path = path_ + "/" + name;
  std::ofstream out(path, std::ios::binary);
  out.write(bytes.data(), std::streamsize(bytes.size()));
  TOROID_CHECK(out.good());
  return path;
}

namespace {
std::string Text(const std::string& value) { return Raw(uint64_t(value.size())) + value; }

std::string Repeat(float value, uint64_t count) {
  std::string bytes;
  for (uint64_t i = 0; i < count; ++i) bytes += Raw(value);
  return bytes;
}
}  // namespace

void GgufBuilder::Key(const std::string& name, uint32_t type, const std::string& value) {
  keys_.push_back({name, Raw(type) + value});
}

void GgufBuilder::String(const std::string& name, const std::string& value) {
  Key(name, 8, Text(value));
}

void GgufBuilder::Strings(const std::string& name, const std::vector<std::string>& values) {
  std::string bytes = Raw(uint32_t{8}) + Raw(uint64_t(values.size()));
  for (const std::string& value : values) bytes += Text(value);
  Key(name, 9, bytes);
}

void GgufBuilder::Remove(const std::string& name) {
  std::erase_if(keys_, [&](const auto& key) { return key.first == name; });
}

void GgufBuilder::Ones(const std::string& name, uint64_t rows, uint64_t cols) {
  Tensor tensor{name, {cols}, 0, Repeat(1.0f, cols * (rows == 0 ? 1 : rows)), -1};
  if (rows != 0) tensor.dims.push_back(rows);
  tensors.push_back(std::move(tensor));
}

std::string GgufBuilder::Build() const {
  std::string out = magic + Raw(version);
  out += Raw(uint64_t(tensor_count < 0 ? int64_t(tensors.size()) : tensor_count));
  out += Raw(uint64_t(key_count < 0 ? int64_t(keys_.size()) : key_count));
  for (const auto& [name, value] : keys_) out += Text(name) + value;
  std::string data;
  for (const Tensor& tensor : tensors) {
    out += Text(tensor.name) + Raw(uint32_t(tensor.dims.size()));
    for (const uint64_t dim : tensor.dims) out += Raw(dim);
    out +=
        Raw(tensor.type) + Raw(uint64_t(tensor.offset < 0 ? int64_t(data.size()) : tensor.offset));
    data += tensor.data;
    data.resize((data.size() + alignment - 1) / alignment * alignment);
  }
  out.resize((out.size() + alignment - 1) / alignment * alignment);
  return out + data;
}

GgufBuilder SmallGguf(const std::string& architecture) {
  GgufBuilder file;
  const std::string prefix = architecture + ".";
  file.String("general.architecture", architecture);
  file.Uint32(prefix + "block_count", 1);
  file.Uint32(prefix + "embedding_length", 32);
  file.Uint32(prefix + "context_length", 128);
  file.Uint32(prefix + "feed_forward_length", 64);
  file.Uint32(prefix + "attention.head_count", 4);
  file.Uint32(prefix + "attention.head_count_kv", 2);
  file.Float32(prefix + "attention.layer_norm_rms_epsilon", 1e-5f);
  file.Float32(prefix + "rope.freq_base", 10000.0f);
  file.Uint32(prefix + "vocab_size", 40);
  file.Ones("token_embd.weight", 40, 32);
  file.Ones("output_norm.weight", 0, 32);
  const std::string layer = "blk.0.";
  file.Ones(layer + "attn_norm.weight", 0, 32);
  file.Ones(layer + "ffn_norm.weight", 0, 32);
  file.Ones(layer + "attn_q.weight", 32, 32);
  file.Ones(layer + "attn_k.weight", 16, 32);
  file.Ones(layer + "attn_v.weight", 16, 32);
  file.Ones(layer + "attn_output.weight", 32, 32);
  file.Ones(layer + "ffn_gate.weight", 64, 32);
  file.Ones(layer + "ffn_up.weight", 64, 32);
  file.Ones(layer + "ffn_down.weight", 32, 64);
  if (architecture == "qwen2") {
    file.Ones(layer + "attn_q.bias", 0, 32);
    file.Ones(layer + "attn_k.bias", 0, 16);
    file.Ones(layer + "attn_v.bias", 0, 16);
  }
  if (architecture == "qwen3") {
    file.Ones(layer + "attn_q_norm.weight", 0, 8);
    file.Ones(layer + "attn_k_norm.weight", 0, 8);
  }
  return file;
}

std::string SafetensorsBytes(const std::string& header, const std::string& data) {
  return Raw(uint64_t(header.size())) + header + data;
}

}  // namespace toroid
