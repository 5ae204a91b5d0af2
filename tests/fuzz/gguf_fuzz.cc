// Any bytes as a GGUF file: parse, read every key by every accessor, configuration, tokenizer.
#include <cstddef>
#include <cstdint>

#include "core/io/gguf.h"
#include "core/io/gguf_config.h"
#include "core/model/rope.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace toroid;
  const auto file = GgufFile::Parse({data, size}, "f");
  if (!file.ok()) return 0;
  uint64_t sum = 0;
  for (const GgufTensor& tensor : file->tensors()) {
    if (tensor.data.empty()) __builtin_trap();
    sum += tensor.data.front() + tensor.data.back();
    int64_t elements = 1;
    for (const int64_t dim : tensor.shape) elements *= dim;
    if (RowBytes(tensor.dtype, elements) != int64_t(tensor.data.size())) __builtin_trap();
  }
  for (const auto& [key, value] : file->values()) {
    sum += file->Int(key).ok() + file->Double(key).ok() + file->Bool(key).ok() +
           file->String(key).ok() + file->Ints(key).ok() + file->Floats(key).ok() +
           file->Strings(key).ok();
  }
  const auto config = GgufModelConfig(*file);
  if (config.ok() && config->head_dim <= 1024) sum += Rope(*config, 1).inv_freq.size();
  sum += GgufTokenizer(*file).ok();
  asm volatile("" : : "r"(sum));  // what was read counts as used
  return 0;
}
