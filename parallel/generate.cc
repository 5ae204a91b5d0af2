// Engine::Generate: a request's memory, and the ring prefill of each of its prompts.
// decode_batch.cc makes the answers.
#include <algorithm>
#include <chrono>
#include <functional>
#include <iterator>
#include <map>
#include <numeric>
#include <set>

#include "absl/strings/str_cat.h"
#include "core/status_macros.h"
#include "parallel/engine_sequence.h"
#include "parallel/host_exchange.h"

namespace toroid {
namespace {

using Clock = std::chrono::steady_clock;
constexpr int64_t kRowBlock = 256;  // prompt positions whose log p is made at a time

double Seconds(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

// `count` evenly spaced positions in 1 .. tokens - 1; all of them if there are fewer.
std::vector<int64_t> EvenlySpaced(int64_t tokens, int64_t count) {
  const int64_t most = tokens - 1;
  count = std::min(count, most);
  std::vector<int64_t> positions(std::max<int64_t>(0, count));
  for (int64_t i = 0; i < count; ++i) positions[i] = 1 + i * most / count;
  return positions;
}

}  // namespace

absl::Status CheckAnswers(int64_t prompts, int64_t n) {
  if (n < 1) return absl::InvalidArgumentError(absl::StrCat("n is ", n, ": use 1 or more"));
  if (prompts <= kMostAnswers && n <= kMostAnswers / std::max<int64_t>(prompts, 1)) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat(prompts, prompts == 1 ? " prompt" : " prompts",
                                                 " with n = ", n, ": one request has at most ",
                                                 kMostAnswers, " answers: ask several times"));
}

int64_t MostRows(const GenerateRequest& request) {
  const int64_t answers = (1 + int64_t(request.more_prompt_ids.size())) * request.n;
  return std::min(answers, request.batch > 0 ? request.batch : kUsualBatch);
}

absl::Status Engine::CheckGenerate(const GenerateRequest& request) const {
  const int64_t prompts = 1 + int64_t(request.more_prompt_ids.size());
  TOROID_RETURN_IF_ERROR(CheckAnswers(prompts, request.n));
  if (request.batch < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("the batch is ", request.batch, ": use 1 or more, or 0 for ", kUsualBatch));
  }
  for (int64_t p = 0; p < prompts; ++p) {
    const absl::Status status = CheckRequest(PromptAt(request, p), request.max_tokens);
    if (status.ok()) continue;
    if (prompts == 1) return status;
    return absl::Status(status.code(), absl::StrCat("prompt ", p, ": ", status.message()));
  }
  TOROID_RETURN_IF_ERROR(request.sampling.Validate());
  for (const int32_t id : request.stop_ids) {
    if (id >= 0 && id < config().vocab) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        "stop id ", id, " is outside the vocabulary: use ids 0 to ", config().vocab - 1));
  }
  return absl::OkStatus();
}

absl::StatusOr<GenerateResult> Engine::Generate(const GenerateRequest& request,
                                                const EngineEvents& events) {
  TOROID_RETURN_IF_ERROR(CheckGenerate(request));
  int64_t rows = MostRows(request);
  TOROID_ASSIGN_OR_RETURN(const MemoryUse foreseen, ReserveBatch(request, rows));
  Batch batch{request, events, rows};
  absl::Status status;
  {
    Arena::Mark mark(*scratch_);
    status = MakeAnswers(batch);
  }
  // Cancelled is what all ranks agreed on, so they still can gather: what was done is told.
  if (absl::IsCancelled(status)) {
    for (std::unique_ptr<Answer>& answer : batch.rows) {
      answer->result.finish = FinishReason::kCancelled;
      batch.done.push_back(std::move(answer));
    }
    status = absl::OkStatus();
  }
  GenerateResult result;
  if (status.ok()) {
    const auto before = [](const std::unique_ptr<Answer>& a, const std::unique_ptr<Answer>& b) {
      return std::pair(a->result.prompt_index, a->result.index) <
             std::pair(b->result.prompt_index, b->result.index);
    };
    std::sort(batch.done.begin(), batch.done.end(), before);
    for (const std::unique_ptr<Answer>& answer : batch.done) {
      GenerateResult& made = answer->result;
      Timing& timing = made.report.timing;
      if (timing.decode_s > 0)
        timing.decode_tokens_per_s = double(made.ids.size()) / timing.decode_s;
      FillReport(foreseen, answer->traffic, made.report);
      made.batch = rows;
    }
    result = std::move(batch.done.front()->result);
    for (size_t i = 1; i < batch.done.size(); ++i) {
      result.more.push_back(std::move(batch.done[i]->result));
    }
  }
  cache_->EndAll();
  scratch_->Trim();
  TOROID_RETURN_IF_ERROR(status);
  return result;
}

// Global positions of the tokens that this rank will hold of a text that reaches `limit`: of the
// prompt by its layout, of what follows by stripes of one page.
std::vector<int32_t> Engine::LocalPositions(const TokenLayout& layout, int64_t limit) const {
  std::vector<int32_t> positions = layout.Positions(mesh_->data_rank(), mesh_->ring_rank());
  if (mesh_->data_rank() != 0) return positions;
  for (int64_t p = layout.lengths()[0]; p < limit; ++p) {
    if (OwnerOfNew(p) == mesh_->ring_rank()) positions.push_back(int32_t(p));
  }
  return positions;
}

// The most pages that a request may hold with so many answers at a time, whichever they are. A
// prompt's answers share its full pages and have the others each for itself. Where answers wait for
// a row, the prompt itself is kept for them besides.
KvCacheRoom Engine::RoomFor(const GenerateRequest& request, int64_t rows) const {
  const int64_t prompts = 1 + int64_t(request.more_prompt_ids.size());
  const int64_t held = rows + (request.n > 1 && prompts * request.n > rows ? 1 : 0);
  KvCacheRoom room{.pages = 0, .rows = rows, .row_pages = 0};
  std::map<int64_t, std::pair<int64_t, int64_t>> by_length;  // prompt tokens -> pages: all, own
  std::vector<int64_t> pages;                                // that each answer adds
  for (int64_t p = 0; p < prompts; ++p) {
    const int64_t tokens = int64_t(PromptAt(request, p).size());
    const auto [known, fresh] = by_length.try_emplace(tokens);
    if (fresh) {
      const TokenLayout layout(load_.layout, {tokens}, load_.mesh.data, load_.mesh.ring);
      const int64_t read = layout.count(mesh_->data_rank(), mesh_->ring_rank());
      const int64_t all =
          cache_->PagesOf(int64_t(LocalPositions(layout, tokens + request.max_tokens).size()));
      known->second = {all, all - read / load_.page_tokens};
    }
    const auto [all, own] = known->second;
    room.row_pages = std::max(room.row_pages, all);
    pages.push_back(all);
    pages.insert(pages.end(), request.n - 1, own);
  }
  // An answer adds most as the first of its prompt, so the largest are the worst choice.
  const auto end = pages.begin() + std::min(held, int64_t(pages.size()));
  std::partial_sort(pages.begin(), end, pages.end(), std::greater<>());
  room.pages = std::accumulate(pages.begin(), end, int64_t{0});
  return room;
}

// The request with so many rows, on the counting backend: its memory, and what it asks of scratch
// at each place.
absl::StatusOr<MemoryUse> Engine::DryGenerate(const GenerateRequest& request, int64_t rows) {
  const EngineEvents silent;
  scratch_->ResetPeak();
  TOROID_RETURN_IF_ERROR(cache_->Reserve(RoomFor(request, rows)));
  Arena::Mark mark(*scratch_);
  const Rotation rotation = NewRotation(int64_t(request.prompt_ids.size()) + request.max_tokens);
  std::set<int64_t> lengths;
  for (int64_t p = 0; p <= int64_t(request.more_prompt_ids.size()); ++p) {
    const std::vector<int32_t>& ids = PromptAt(request, p);
    if (!lengths.insert(int64_t(ids.size())).second) continue;
    Arena::Mark prompt_mark(*scratch_);
    Sequence sequence(ids, int64_t(ids.size()) + request.max_tokens, load_, "prefill", silent);
    sequence.rotation = rotation;
    sequence.cached = cache_->Begin(LocalPositions(sequence.layout, sequence.limit));
    Begin(sequence);
    TOROID_ASSIGN_OR_RETURN(Tensor x_uD, Prefill(sequence));
    std::vector<std::pair<int64_t, double>> ignored;
    TOROID_RETURN_IF_ERROR(PromptLogProbs(sequence, x_uD, request.prompt_logprobs, ignored));
    NewLogits(GatherRows(sequence, x_uD, {int64_t(ids.size()) - 1}));
    cache_->EndAll();
  }
  // With fewer rows than ranks of `tensor` each has the whole of them.
  for (const int64_t n : {rows, std::min(rows, std::max<int64_t>(load_.mesh.tensor - 1, 1))}) {
    Arena::Mark step_mark(*scratch_);
    scratch_->New("tokens", DType::kI64, {n, 2});
    if (request.max_tokens < 2) continue;
    const std::vector<int32_t> zeros(n, 0);
    const Tensor logits_snc =
        NewLogits(Decode(rotation, {std::vector<int64_t>(n, -1), zeros, zeros,
                                    std::vector<int32_t>(n, int32_t(cache_->row_tokens()))}));
    if (DrawsOnDevice(request)) SampleRows(logits_snc, std::vector<SampleRow>(n));
  }
  return Used();
}

// Memory for `rows` answers at a time, or for fewer where a rank has none for so many.
absl::StatusOr<MemoryUse> Engine::ReserveBatch(const GenerateRequest& request, int64_t& rows) {
  while (true) {
    const absl::StatusOr<MemoryUse> foreseen = shadow_->DryGenerate(request, rows);
    absl::Status status = foreseen.status();
    const KvCacheRoom room = RoomFor(request, rows);
    if (status.ok()) status = scratch_->Reserve(std::max(foreseen->scratch, kSmallScratch));
    if (status.ok() && foreseen->kv > cache_limit_) {
      status = absl::ResourceExhaustedError(absl::StrCat(
          "no memory for keys and values: ", foreseen->kv, " bytes, of ", cache_limit_));
    }
    if (status.ok()) status = cache_->Reserve(room, shuffle_seed_);
    scratch_->ResetPeak();
    status = ShareStatus(mesh_->world(), status);
    if (status.ok()) return foreseen;
    if (!absl::IsResourceExhausted(status) || rows == 1) return status;
    cache_->Release();
    shadow_->cache_->Release();
    rows = (rows + 1) / 2;
  }
}

// Reads the prompt into the cache, on the account of its first answer.
absl::Status Engine::ReadPrompt(Batch& batch, int64_t prompt_index, Answer& first) {
  const auto start = Clock::now();
  const std::vector<CommCounters> before = Counters();
  const std::vector<int32_t>& ids = PromptAt(batch.request, prompt_index);
  const int64_t tokens = int64_t(ids.size());
  Sequence sequence(ids, tokens + batch.request.max_tokens, load_, "prefill", batch.events);
  sequence.rotation = batch.rotation;
  sequence.cached = cache_->Begin(LocalPositions(sequence.layout, sequence.limit));
  batch.prompt = sequence.cached;
  batch.prompt_logprobs.clear();
  Timing& timing = first.result.report.timing;
  absl::Status status;
  std::vector<CommCounters> prefilled;
  {
    Arena::Mark mark(*scratch_);
    Begin(sequence);
    const absl::StatusOr<Tensor> x_uD = Prefill(sequence);
    prefilled = Counters();
    status = x_uD.status();
    if (status.ok()) {
      status =
          PromptLogProbs(sequence, *x_uD, batch.request.prompt_logprobs, batch.prompt_logprobs);
    }
    if (status.ok()) batch.logits = LastLogits(GatherRows(sequence, *x_uD, {tokens - 1}));
  }
  if (lost_page_ >= 0) {
    for (int64_t layer = 0; layer < model_->layers(); ++layer) {
      const int64_t row = lost_page_ * load_.page_tokens;
      ops_->Fill(s_, cache_->keys(layer).Rows(row, load_.page_tokens), 0.0);
      ops_->Fill(s_, cache_->values(layer).Rows(row, load_.page_tokens), 0.0);
    }
  }
  first.traffic = TrafficOf(before, prefilled, Counters());
  timing.prefill_s = Seconds(start, Clock::now());
  if (status.ok()) timing.prefill_tokens_per_s = double(tokens) / timing.prefill_s;
  return status;
}

absl::Status Engine::PromptLogProbs(const Sequence& sequence, Tensor x_uD, int64_t count,
                                    std::vector<std::pair<int64_t, double>>& log_probs) {
  const std::vector<int64_t> positions = EvenlySpaced(int64_t(sequence.ids.size()), count);
  for (size_t begin = 0; begin < positions.size(); begin += kRowBlock) {
    const size_t end = std::min(positions.size(), begin + kRowBlock);
    const int64_t n = int64_t(end - begin);
    std::vector<int64_t> rows;
    std::vector<int32_t> labels;
    for (size_t i = begin; i < end; ++i) {
      rows.push_back(positions[i] - 1);  // the logits that foretell position i
      labels.push_back(sequence.ids[positions[i]]);
    }
    Arena::Mark mark(*scratch_);
    const Tensor h_nD = GatherRows(sequence, x_uD, rows);
    Tensor labels_n = scratch_->New("labels", DType::kI32, {n});
    Tensor log_p_n = scratch_->New("log p", DType::kF64, {n});
    Tensor log_z_n = scratch_->New("log Z", DType::kF64, {n});
    ops_->Upload(s_, labels.data(), labels_n);
    model_->ends().Head(NewPass({}, n, Tensor()), h_nD, labels_n, log_p_n, log_z_n);
    std::vector<double> log_p(n);
    ops_->Download(s_, log_p_n, log_p.data());
    for (int64_t i = 0; i < n; ++i) {
      log_probs.emplace_back(positions[begin + i], log_p[i]);
    }
    TOROID_RETURN_IF_ERROR(StepStatus(sequence.events));
  }
  return absl::OkStatus();
}

}  // namespace toroid
