// Quantities as people type them: 32k, 1M, 25.6k, 8GiB, 500ms, 2h.
//
// Suffixes k, M, G, T of counts and bytes are powers of 1024 unless a fraction or a trailing B says
// 1000: the functions tell which. Stateless.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace toroid {

// A number of things: "4096", "32k" = 32,768 and "1M" = 1,048,576 (a model's "32k" is 32,768 in
// every model card), "25.6k" = 25,600 (a fraction counts by 1000, as vLLM reads it).
// InvalidArgument names the text and the forms that are understood; so does a result that is no
// whole number.
absl::StatusOr<int64_t> ParseCount(absl::string_view text);

// Bytes: "512", "64k" = "64KiB" = 65,536, "8GiB", "1GB" = 10^9, "1.5GiB".
absl::StatusOr<int64_t> ParseBytes(absl::string_view text);

// Seconds: "500ms", "60" = "60s", "2.5m", "2h", "1h30m", "0" (off).
absl::StatusOr<double> ParseSeconds(absl::string_view text);

// A finite real number: "0.7", "1e-4", "-2".
absl::StatusOr<double> ParseReal(absl::string_view text);

// A signed or unsigned 64-bit whole number without suffix: ids, seeds.
absl::StatusOr<int64_t> ParseInteger(absl::string_view text);
absl::StatusOr<uint64_t> ParseSeed(absl::string_view text);

// "1.5 GiB", "640 B".
std::string FormatBytes(double bytes);
// "12.3 k", "4.1 M", "871": for rates and counts in talk, never in data.
std::string FormatCount(double count);
// "1h02m", "3m20s", "12s", "0.4s".
std::string FormatSeconds(double seconds);

}  // namespace toroid
