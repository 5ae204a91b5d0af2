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

std::string ComputeName(Compute compute) {
  return compute == Compute::kF64 ? "f64" : compute == Compute::kBF16 ? "bf16" : "f32";
}

// "; sent per rank: ring 1.2 MiB, tensor 0 B", empty for a world of one rank. bytes: of an axis.
template <typename Bytes>
std::string Sent(const RunReport& report, Bytes bytes) {
  std::string text;
  for (const AxisReport& axis : report.comm) {
    absl::StrAppend(&text, text.empty() ? "; sent per rank: " : ", ", axis.axis, " ",
                    PerRank(bytes(axis)));
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

std::vector<std::string> WorldDetails(const LoadRequest& load, const MeshShape& mesh,
                                      const std::vector<std::string>& hosts) {
  std::vector<std::string> lines = {absl::StrCat(
      "world: mesh ", ToString(mesh), "; layout ", ToString(load.layout), "; compute ",
      ComputeName(load.compute), "; context ",
      load.context > 0 ? absl::StrCat(load.context, " tokens") : std::string("the model's own"),
      "; pages of ", load.page_tokens, " tokens")};
  for (int64_t rank = 0; rank < mesh.size(); ++rank) {
    const int64_t tensor = rank % mesh.tensor, rest = rank / mesh.tensor;
    lines.push_back(absl::StrCat("rank ", rank, ": data ", rest / mesh.ring, ", ring ",
                                 rest % mesh.ring, ", tensor ", tensor));
    if (!hosts.empty()) {
      absl::StrAppend(&lines.back(), ", host ", hosts.at(static_cast<size_t>(rank)));
    }
  }
  return lines;
}

std::vector<std::string> WorldDetails(LoadRequest load, const LoadedModel& model) {
  load.context = model.context;
  return WorldDetails(load, model.mesh, model.hosts);
}

std::string AcceptedLine(const Accepted& accepted) {
  return absl::StrCat("pod ", accepted.pod, ", mesh ", ToString(accepted.mesh),
                      accepted.kept ? ", model already loaded" : "");
}

std::vector<std::string> RunDetails(const RunReport& report) {
  std::vector<std::string> lines;
  const Timing& timing = report.timing;
  if (timing.load_s > 0) lines.push_back(absl::StrFormat("load: %.3fs", timing.load_s));
  if (timing.prefill_s > 0) {
    lines.push_back(absl::StrFormat(
        "prefill: %.3fs, %.1f tokens/s%s", timing.prefill_s, timing.prefill_tokens_per_s,
        Sent(report, [](const AxisReport& axis) { return axis.prefill_bytes_sent; })));
  }
  if (timing.decode_s > 0) {
    lines.push_back(absl::StrFormat("decode: %.3fs, %.1f tokens/s%s", timing.decode_s,
                                    timing.decode_tokens_per_s,
                                    Sent(report, [](const AxisReport& axis) {
                                      std::vector<int64_t> bytes = axis.bytes_sent;
                                      for (size_t i = 0; i < bytes.size(); ++i) {
                                        bytes[i] -= axis.prefill_bytes_sent.at(i);
                                      }
                                      return bytes;
                                    })));
  }
  const MemoryReport& memory = report.memory;
  if (!memory.peak.empty()) {
    lines.push_back(absl::StrCat("memory per rank: ", PerRank(memory.predicted), " foreseen, ",
                                 PerRank(memory.peak), " used; weights ", PerRank(memory.weights),
                                 ", cache ", PerRank(memory.kv), ", scratch ",
                                 PerRank(memory.scratch), "; resident ", PerRank(memory.resident)));
  }
  return lines;
}

}  // namespace toroid
