// Any bytes as a log of merges, with checksums put right so that they are got past: what is
// accepted is written again as the same bytes would be, and read again as the same records.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>

#include "core/io/crc32c.h"
#include "core/io/merge_log.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace toroid;
  std::string bytes(reinterpret_cast<const char*>(data), size);
  for (size_t at = 16; at + 8 <= bytes.size();) {
    uint32_t length;
    std::memcpy(&length, &bytes[at], 4);
    if (length > bytes.size() - at - 8) break;
    const uint32_t checksum =
        Crc32c({reinterpret_cast<const uint8_t*>(bytes.data()) + at + 8, length});
    std::memcpy(&bytes[at + 4], &checksum, 4);
    at += 8 + size_t{length};
  }
  const auto log = ParseMergeLog(bytes, "f");
  if (!log.ok()) return 0;
  if (log->torn < 0 || log->bytes + log->torn != int64_t(bytes.size())) __builtin_trap();
  for (const MergeRecord& record : log->records) {
    if (record.step < 0 || int64_t(record.inputs.size()) > kMostMergeInputs) __builtin_trap();
    for (size_t i = 1; i < record.inputs.size(); ++i) {
      if (record.inputs[i].pod <= record.inputs[i - 1].pod) __builtin_trap();
    }
  }
  const auto whole = ParseMergeLog(absl::string_view(bytes).substr(0, size_t(log->bytes)), "f");
  if (!whole.ok() || whole->torn != 0 || whole->records != log->records) __builtin_trap();
  return 0;
}
