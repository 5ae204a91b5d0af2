#include "launcher/summary.h"

#include <algorithm>
#include <functional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "launcher/exit_code.h"
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

double Tokens(const GenerateResult& answer) { return static_cast<double>(answer.ids.size()); }

// A prompt is read once, for its first answer.
double PrefilledTokens(const GenerateResult& answer) {
  return answer.index == 0 ? static_cast<double>(answer.prompt_tokens) : 0;
}

template <typename Function>
void Combine(const std::vector<int64_t>& from, std::vector<int64_t>& into, Function both) {
  for (size_t i = 0; i < std::min(from.size(), into.size()); ++i) into[i] = both(into[i], from[i]);
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

std::string JobProgressLine(const JobStatus& job) {
  const TaskProgress& progress = *job.progress;
  std::string line =
      absl::StrCat(job.id, "  ", progress.phase, " ", progress.done, "/", progress.total);
  std::vector<std::string> losses;
  double rate = 0;
  ExchangeProgress exchange;
  for (const JobPod& pod : job.pods) {
    if (!pod.progress.has_value() || pod.state == "LOST" || pod.state == "JOINING") continue;
    if (pod.progress->loss.has_value()) {
      losses.push_back(absl::StrFormat("%s %.4f", pod.pod, *pod.progress->loss));
    }
    rate += pod.progress->tokens_per_s;
    const ExchangeProgress told = pod.progress->exchange.value_or(ExchangeProgress());
    exchange.bytes_sent += told.bytes_sent;
    exchange.wait_share = std::max(exchange.wait_share, told.wait_share);
    exchange.staleness = std::max(exchange.staleness, told.staleness);
    exchange.reconnects += told.reconnects;
  }
  if (!losses.empty()) {
    absl::StrAppend(&line, "  loss ", absl::StrJoin(losses, ", "));
  } else if (progress.loss.has_value()) {
    absl::StrAppendFormat(&line, "  loss %.4f", *progress.loss);
  }
  if (job.pods.empty()) rate = progress.tokens_per_s;
  if (rate > 0) absl::StrAppendFormat(&line, "  %.1f tokens/s", rate);
  if (!progress.exchange.has_value() || job.pods.empty()) return line;
  absl::StrAppendFormat(&line, "  sent %.3g MB  waited %.0f%%", double(exchange.bytes_sent) / 1e6,
                        100 * exchange.wait_share);
  if (exchange.staleness > 0) absl::StrAppend(&line, "  staleness ", exchange.staleness);
  if (exchange.reconnects > 0) absl::StrAppend(&line, "  ", exchange.reconnects, " streams cut");
  return line;
}

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

std::string AnswerHeading(int64_t prompt_index, int64_t index) {
  return absl::StrCat("prompt ", prompt_index, ", answer ", index, ":");
}

RunReport WholeReport(const GenerateResult& result) {
  RunReport whole = result.report;
  if (result.more.empty()) return whole;
  double tokens = Tokens(result), prompt_tokens = PrefilledTokens(result);
  for (const GenerateResult& answer : result.more) {
    const RunReport& report = answer.report;
    tokens += Tokens(answer);
    prompt_tokens += PrefilledTokens(answer);
    whole.timing.prefill_s += report.timing.prefill_s;
    whole.timing.decode_s += report.timing.decode_s;
    using Bytes = std::vector<int64_t> MemoryReport::*;
    for (const Bytes bytes : {&MemoryReport::peak, &MemoryReport::predicted, &MemoryReport::kv,
                              &MemoryReport::scratch, &MemoryReport::resident}) {
      Combine(report.memory.*bytes, whole.memory.*bytes,
              [](int64_t a, int64_t b) { return std::max(a, b); });
    }
    for (size_t i = 0; i < std::min(report.comm.size(), whole.comm.size()); ++i) {
      Combine(report.comm[i].bytes_sent, whole.comm[i].bytes_sent, std::plus<int64_t>());
      Combine(report.comm[i].prefill_bytes_sent, whole.comm[i].prefill_bytes_sent,
              std::plus<int64_t>());
    }
  }
  const auto rate = [](double count, double seconds) { return seconds > 0 ? count / seconds : 0; };
  whole.timing.prefill_tokens_per_s = rate(prompt_tokens, whole.timing.prefill_s);
  whole.timing.decode_tokens_per_s = rate(tokens, whole.timing.decode_s);
  return whole;
}

std::string GenerateSummary(const GenerateResult& result) {
  double tokens = Tokens(result), prompt_tokens = PrefilledTokens(result);
  for (const GenerateResult& answer : result.more) {
    tokens += Tokens(answer);
    prompt_tokens += PrefilledTokens(answer);
  }
  const RunReport whole = WholeReport(result);
  std::string text = absl::StrFormat("%d tokens, %.1f tokens/s; prompt %d tokens, %.1f tokens/s%s",
                                     static_cast<int64_t>(tokens), whole.timing.decode_tokens_per_s,
                                     static_cast<int64_t>(prompt_tokens),
                                     whole.timing.prefill_tokens_per_s, Tail(whole));
  if (!result.more.empty()) text = absl::StrCat(1 + result.more.size(), " answers: ", text);
  return text;
}

std::string ScoreSummary(const ScoreResult& result) {
  return absl::StrFormat("%d tokens scored, %.1f tokens/s%s", result.tokens,
                         result.report.timing.prefill_tokens_per_s, Tail(result.report));
}

std::string WorstTensor(const VerifyResult& result) {
  return absl::StrFormat("%s of layer %d, error %.3e, bound %.1e", result.worst.tensor,
                         result.worst.layer, result.worst.error, result.worst.bound);
}

absl::Status Verdict(const VerifyResult& result) {
  if (result.pass) return absl::OkStatus();
  return WithExitCode(
      absl::InternalError(absl::StrCat("not equal to one rank: ", WorstTensor(result),
                                       ": please report this with the command")),
      kExitFailure);
}

std::string TrainSummary(const TrainResult& result) {
  const TrainingResult& run = result.run;
  std::string text = absl::StrFormat("%d steps", run.steps);
  if (run.tokens > 0) {
    absl::StrAppendFormat(&text, ", loss %.4f -> %.4f; %s tokens in %s, %.1f tokens/s",
                          run.first_loss, run.last_loss, FormatCount(double(run.tokens)),
                          FormatSeconds(result.seconds), result.tokens_per_s);
  }
  if (result.mfu) absl::StrAppendFormat(&text, ", mfu %.1f%%", *result.mfu * 100);
  if (run.skipped > 0) absl::StrAppend(&text, "; ", run.skipped, " steps without an update");
  if (run.rewinds > 0) absl::StrAppend(&text, "; went back ", run.rewinds, " times");
  if (result.pods > 1) absl::StrAppend(&text, "; one of ", result.pods, " pods");
  absl::StrAppend(&text, "; mesh ", ToString(result.mesh));
  if (result.peak_bytes > 0) {
    absl::StrAppend(&text, "; peak ", FormatBytes(double(result.peak_bytes)), " on rank 0");
  }
  absl::StrAppend(&text, "; checkpoint ", run.checkpoint.empty() ? "none" : run.checkpoint);
  return text;
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
