#include "launcher/summary.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "launcher/quantity.h"

namespace toroid {
namespace {

std::string Tail(const RunReport& report) {
  std::string text;
  if (report.timing.load_s > 0) {
    absl::StrAppend(&text, "; loaded in ", FormatSeconds(report.timing.load_s));
  }
  absl::StrAppend(&text, "; mesh ", ToString(report.mesh), "; peak ", PerRank(report.memory.peak),
                  " per rank");
  if (report.mesh.ring > 1) {
    absl::StrAppend(&text, "; ring ", PerRank(BytesSent(report, "ring")), " sent per rank");
  }
  return text;
}

}  // namespace

std::string PerRank(const std::vector<int64_t>& bytes) {
  if (bytes.empty()) return "unknown";
  const auto [low, high] = std::minmax_element(bytes.begin(), bytes.end());
  const auto text = [](int64_t n) { return FormatBytes(static_cast<double>(n)); };
  if (text(*low) == text(*high)) return text(*low);
  if (bytes.size() > 8) return absl::StrCat(text(*low), " to ", text(*high));
  std::string list;
  for (const int64_t n : bytes) absl::StrAppend(&list, list.empty() ? "" : " / ", text(n));
  return list;
}

std::vector<int64_t> BytesSent(const RunReport& report, const std::string& axis) {
  for (const AxisReport& row : report.comm) {
    if (row.axis == axis) return row.bytes_sent;
  }
  return std::vector<int64_t>(static_cast<size_t>(report.mesh.size()), 0);
}

std::string GenerateSummary(const GenerateResult& result) {
  const Timing& timing = result.report.timing;
  return absl::StrFormat("%d tokens, %.1f tokens/s; prompt %d tokens, %.1f tokens/s%s",
                         result.ids.size(), timing.decode_tokens_per_s, result.prompt_tokens,
                         timing.prefill_tokens_per_s, Tail(result.report));
}

std::string ScoreSummary(const ScoreResult& result) {
  return absl::StrFormat("%d tokens scored, %.1f tokens/s%s", result.tokens,
                         result.report.timing.prefill_tokens_per_s, Tail(result.report));
}

}  // namespace toroid
