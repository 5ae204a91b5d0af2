// CRC-32C (Castagnoli; RFC 3720, section 12.1), for telling damaged files and frames. Thread-safe.
#pragma once

#include <cstdint>

#include "absl/types/span.h"

namespace toroid {

// The checksum of `bytes`, or of what `before` is the checksum of followed by them.
uint32_t Crc32c(absl::Span<const uint8_t> bytes, uint32_t before = 0);

// The two ways to it, the same numbers: tables, anywhere; the instruction, on processors with SSE
// 4.2 alone.
uint32_t Crc32cByTables(absl::Span<const uint8_t> bytes, uint32_t before);
uint32_t Crc32cByInstruction(absl::Span<const uint8_t> bytes, uint32_t before);

}  // namespace toroid
