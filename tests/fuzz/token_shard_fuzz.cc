// Any bytes as a token shard, with checksums put right so that they are got past: what is accepted
// gives tokens of its vocabulary, one document after the other, all of them.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "core/io/crc32c.h"
#include "core/train/token_shard.h"

namespace {

using Bytes = std::vector<uint8_t>;

template <typename T>
T At(const Bytes& bytes, size_t offset) {
  T value;
  std::memcpy(&value, bytes.data() + offset, sizeof(T));
  return value;
}

void Seal(Bytes& bytes, size_t begin, size_t size, size_t at) {
  const uint32_t checksum = toroid::Crc32c({bytes.data() + begin, size});
  std::memcpy(bytes.data() + at, &checksum, 4);
}

void SealAll(Bytes& bytes) {
  if (bytes.size() < 64) return;
  Seal(bytes, 0, 60, 60);
  const uint64_t size = bytes.size(), width = At<uint32_t>(bytes, 12);
  const uint64_t documents = At<uint64_t>(bytes, 24), tokens = At<uint64_t>(bytes, 32);
  if (width > 4 || tokens > size || documents > size) return;
  const uint64_t data = tokens * width, blocks = (data + 65535) / 65536;
  const uint64_t tables = 64 + (data + 7) / 8 * 8;
  const uint64_t checksums = tables + 8 * (documents + 1);
  if (size != checksums + 4 * blocks + 4) return;
  for (uint64_t i = 0; i < blocks; ++i) {
    const uint64_t left = data - i * 65536;
    Seal(bytes, 64 + i * 65536, left < 65536 ? left : 65536, checksums + 4 * i);
  }
  Seal(bytes, tables, size - 4 - tables, size - 4);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace toroid;
  Bytes bytes(data, data + size);
  SealAll(bytes);
  const auto shard = TokenShard::Parse(bytes, "f");
  if (!shard.ok()) return 0;
  int64_t tokens = 0;
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < shard->documents(); ++i) {
    const int64_t length = shard->Length(i);
    if (length < 1) __builtin_trap();
    ids.resize(size_t(length));
    tokens += length;
    if (!shard->Read(i, 0, length, ids.data()).ok()) return 0;
    for (const int32_t id : ids) {
      if (id < 0 || id >= shard->vocab_size()) __builtin_trap();
    }
  }
  if (tokens != shard->tokens()) __builtin_trap();
  return 0;
}
