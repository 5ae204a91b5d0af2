// Engine::Score: the loss of a text, every position's log p in tiles of logits, and the last
// logits.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>

#include "core/status_macros.h"
#include "parallel/engine_sequence.h"
#include "parallel/host_exchange.h"

namespace toroid {
namespace {

constexpr int64_t kTokenTile = 256;  // tokens whose logits exist at a time
constexpr int64_t kRowBlock = 64;    // rows that Observe gathers at a time

// The largest `count` of values, largest first, ties by lower id.
std::vector<std::pair<int32_t, double>> Top(const std::vector<double>& values, int64_t count) {
  std::vector<int32_t> ids(values.size());
  std::iota(ids.begin(), ids.end(), 0);
  count = std::min<int64_t>(count, int64_t(ids.size()));
  std::partial_sort(ids.begin(), ids.begin() + count, ids.end(), [&](int32_t a, int32_t b) {
    return values[a] != values[b] ? values[a] > values[b] : a < b;
  });
  std::vector<std::pair<int32_t, double>> top;
  for (int64_t i = 0; i < count; ++i) top.emplace_back(ids[i], values[ids[i]]);
  return top;
}

double LogSumExp(const std::vector<double>& values) {
  const double most = *std::max_element(values.begin(), values.end());
  double sum = 0;
  for (double v : values) sum += std::exp(v - most);
  return most + std::log(sum);
}

}  // namespace

// log p of the token that follows each of this rank's tokens, at that token's position; 0
// elsewhere, and on all ranks of `tensor` but the first.
std::vector<double> Engine::OwnLogProbs(const Sequence& sequence, Tensor x_uD) {
  const int64_t total = int64_t(sequence.ids.size());
  const std::vector<int32_t> positions =
      sequence.layout.Positions(mesh_->data_rank(), mesh_->ring_rank());
  const int64_t t = int64_t(positions.size());
  std::vector<double> all(total, 0.0);
  std::vector<int32_t> labels(t);
  for (int64_t i = 0; i < t; ++i) {
    labels[i] = positions[i] + 1 < total ? sequence.ids[positions[i] + 1] : -1;
  }
  const Pass pass = NewPass(sequence.rotation, t, Tensor());
  Tensor a_tD = pass.Long("a", ops_->dtype(), {pass.residual.padded(), config().dim});
  model_->ends().FinalNorm(pass, x_uD, pass.residual.Share(a_tD));
  pass.residual.Gather(mesh_->tensor(), s_, a_tD);
  for (int64_t begin = 0; begin < t; begin += kTokenTile) {
    const int64_t b = std::min(kTokenTile, t - begin);
    At("head", -1, begin);
    Arena::Mark mark(*scratch_);
    Tensor labels_b = scratch_->New("labels", DType::kI32, {b});
    Tensor log_p_b = scratch_->New("log p", DType::kF64, {b});
    Tensor log_z_b = scratch_->New("log Z", DType::kF64, {b});
    ops_->Upload(s_, labels.data() + begin, labels_b);
    model_->ends().Head(pass, a_tD.Rows(begin, b), labels_b, log_p_b, log_z_b);
    std::vector<double> log_p(b);
    ops_->Download(s_, log_p_b, log_p.data());
    for (int64_t i = 0; i < b; ++i) {
      if (labels[begin + i] >= 0 && mesh_->tensor_rank() == 0) all[positions[begin + i]] = log_p[i];
    }
  }
  return all;
}

absl::StatusOr<ScoreResult> Engine::Score(const ScoreRequest& request, const EngineEvents& events) {
  TOROID_RETURN_IF_ERROR(CheckRequest(request.ids, 0));
  const absl::StatusOr<MemoryUse> foreseen = ForeseeScore(request);
  TOROID_RETURN_IF_ERROR(Reserve(foreseen));
  const auto start = std::chrono::steady_clock::now();
  const std::vector<CommCounters> before = Counters();
  const int64_t total = int64_t(request.ids.size());
  ScoreResult result;
  result.tokens = total - 1;
  {
    Sequence sequence(request.ids, total, load_, "score", events);
    Arena::Mark mark(*scratch_);
    Begin(sequence);
    TOROID_ASSIGN_OR_RETURN(Tensor x_uD, Prefill(sequence));
    const std::vector<CommCounters> prefilled = Counters();
    std::vector<double> log_p = OwnLogProbs(sequence, x_uD);
    SumHost(mesh_->world(), log_p);
    log_p.pop_back();  // nothing follows the last token
    const std::vector<double> logits = LastLogits(GatherRows(sequence, x_uD, {total - 1}));
    TOROID_RETURN_IF_ERROR(StepStatus(events));
    Timing& timing = result.report.timing;
    timing.prefill_s =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    timing.prefill_tokens_per_s = double(total) / timing.prefill_s;
    if (mesh_->rank() == 0) {
      if (!log_p.empty()) {
        result.mean_nll = -std::accumulate(log_p.begin(), log_p.end(), 0.0) / double(log_p.size());
      }
      result.perplexity = std::exp(result.mean_nll);
      result.last_logsumexp = LogSumExp(logits);
      result.last_top = Top(logits, request.top);
      if (request.logprobs) result.logprobs = std::move(log_p);
    }
    FillReport(*foreseen, TrafficOf(before, prefilled, Counters()), result.report);
  }
  scratch_->Trim();
  return result;
}

absl::StatusOr<MemoryUse> Engine::DryScore(const ScoreRequest& request) {
  const EngineEvents silent;
  const int64_t total = int64_t(request.ids.size());
  Sequence sequence(request.ids, total, load_, "score", silent);
  scratch_->ResetPeak();
  Arena::Mark mark(*scratch_);
  Begin(sequence);
  TOROID_ASSIGN_OR_RETURN(Tensor x_uD, Prefill(sequence));
  std::vector<double> log_p = OwnLogProbs(sequence, x_uD);
  SumHost(mesh_->world(), log_p);
  LastLogits(GatherRows(sequence, x_uD, {total - 1}));
  return Used();
}

// --- for verify and tests
// ---------------------------------------------------------------------------------

absl::Status Engine::Observe(
    const std::vector<int32_t>& ids, const Observer& observer,
    const std::function<void(int64_t position, const std::vector<double>&)>& logits,
    const EngineEvents& events) {
  TOROID_RETURN_IF_ERROR(CheckRequest(ids, 0));
  absl::StatusOr<MemoryUse> foreseen = ForeseeScore({ids, 0, false});
  if (foreseen.ok()) foreseen->scratch += kRowBlock * config().dim * 8 + 64;  // the rows below
  TOROID_RETURN_IF_ERROR(Reserve(foreseen));
  const int64_t total = int64_t(ids.size());
  Sequence sequence(ids, total, load_, "verify", events);
  sequence.observer = &observer;
  Arena::Mark mark(*scratch_);
  Begin(sequence);
  TOROID_ASSIGN_OR_RETURN(Tensor x_uD, Prefill(sequence));
  for (int64_t begin = 0; logits != nullptr && begin < total; begin += kRowBlock) {
    Arena::Mark block_mark(*scratch_);
    std::vector<int64_t> positions(std::min(kRowBlock, total - begin));
    std::iota(positions.begin(), positions.end(), begin);
    const Tensor rows_nD = GatherRows(sequence, x_uD, positions);
    for (int64_t i = 0; i < rows_nD.rows(); ++i) {
      Arena::Mark row_mark(*scratch_);
      const std::vector<double> row = LastLogits(rows_nD.Rows(i, 1));
      if (mesh_->rank() == 0) logits(begin + i, row);
    }
    TOROID_RETURN_IF_ERROR(StepStatus(events));
  }
  return StepStatus(events);
}

}  // namespace toroid
