// Engine::Generate: ring prefill of each prompt, then its answers, one token at a time over the
// sharded cache.
#include <algorithm>
#include <chrono>
#include <iterator>

#include "absl/strings/str_cat.h"
#include "core/status_macros.h"
#include "parallel/engine_sequence.h"
#include "parallel/host_exchange.h"
#include "parallel/token_source.h"

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

const std::vector<int32_t>& PromptAt(const GenerateRequest& request, int64_t prompt_index) {
  return prompt_index == 0 ? request.prompt_ids : request.more_prompt_ids[prompt_index - 1];
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

absl::Status Engine::CheckGenerate(const GenerateRequest& request) const {
  const int64_t prompts = 1 + int64_t(request.more_prompt_ids.size());
  TOROID_RETURN_IF_ERROR(CheckAnswers(prompts, request.n));
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
  std::vector<GenerateResult> answers;
  for (int64_t p = 0; p <= int64_t(request.more_prompt_ids.size()); ++p) {
    TOROID_RETURN_IF_ERROR(AnswerPrompt(request, p, events, answers));
    if (answers.back().finish == FinishReason::kCancelled) break;
  }
  GenerateResult result = std::move(answers.front());
  result.more.assign(std::make_move_iterator(answers.begin() + 1),
                     std::make_move_iterator(answers.end()));
  return result;
}

// Reads the prompt once; each answer begins at its end, where the cache is cut back to. At least
// one answer is appended, unless there is an error; a cancelled one is the last.
absl::Status Engine::AnswerPrompt(const GenerateRequest& request, int64_t prompt_index,
                                  const EngineEvents& events,
                                  std::vector<GenerateResult>& answers) {
  const std::vector<int32_t>& ids = PromptAt(request, prompt_index);
  const absl::StatusOr<MemoryUse> foreseen = shadow_->DryGenerate(request, ids);
  TOROID_RETURN_IF_ERROR(Reserve(foreseen));
  const int64_t prompt_tokens = int64_t(ids.size());
  Sequence sequence(ids, prompt_tokens + request.max_tokens, /*keep=*/true, load_, "prefill",
                    events);
  std::vector<CommCounters> before = Counters();
  absl::Status status;
  {
    Arena::Mark mark(*scratch_);
    status = ShareStatus(mesh_->world(), Begin(sequence));
    absl::StatusOr<std::vector<double>> logits;
    int64_t cached = 0;  // local tokens of the prompt
    GenerateResult answer;
    for (int64_t i = 0; i < request.n && status.ok(); ++i) {
      // The prompt's own log p stay with each of its answers.
      answer = {.prompt_tokens = prompt_tokens,
                .prompt_logprobs = std::move(answer.prompt_logprobs),
                .prompt_index = prompt_index,
                .index = i};
      std::vector<CommCounters> prefilled = before;
      if (i == 0) {
        logits = ReadPrompt(sequence, request, answer, prefilled);
        status = logits.status();
        cached = cache_->length();
      } else {
        cache_->CutTo(cached);
        sequence.length = prompt_tokens;
      }
      if (status.ok()) status = Continue(sequence, request, *logits, answer);
      // Cancelled is what all ranks agreed on, so they still can gather: what was done is told.
      if (!status.ok() && !absl::IsCancelled(status)) break;
      if (!status.ok()) answer.finish = FinishReason::kCancelled;
      FillReport(*foreseen, before, prefilled, answer.report);
      before = Counters();
      answers.push_back(answer);
    }
  }
  cache_->End();
  scratch_->Trim();
  return absl::IsCancelled(status) ? absl::OkStatus() : status;
}

// The logits behind the prompt's last token, on rank 0.
absl::StatusOr<std::vector<double>> Engine::ReadPrompt(Sequence& sequence,
                                                       const GenerateRequest& request,
                                                       GenerateResult& result,
                                                       std::vector<CommCounters>& prefilled) {
  const auto start = Clock::now();
  Timing& timing = result.report.timing;
  std::vector<double> logits;
  {
    Arena::Mark mark(*scratch_);
    const absl::StatusOr<Tensor> prefill = Prefill(sequence);
    prefilled = Counters();
    timing.prefill_s = Seconds(start, Clock::now());
    TOROID_ASSIGN_OR_RETURN(Tensor x_uD, prefill);
    TOROID_RETURN_IF_ERROR(PromptLogProbs(sequence, x_uD, request.prompt_logprobs, result));
    logits = LastLogits(sequence, GatherRows(sequence, x_uD, {result.prompt_tokens - 1}));
  }
  if (lost_page_ >= 0) {
    for (int64_t layer = 0; layer < model_->layers(); ++layer) {
      const int64_t row = lost_page_ * load_.page_tokens;
      ops_->Fill(s_, cache_->keys(layer).Rows(row, load_.page_tokens), 0.0);
      ops_->Fill(s_, cache_->values(layer).Rows(row, load_.page_tokens), 0.0);
    }
  }
  timing.prefill_s = Seconds(start, Clock::now());
  timing.prefill_tokens_per_s = double(result.prompt_tokens) / timing.prefill_s;
  return logits;
}

absl::Status Engine::Continue(Sequence& sequence, const GenerateRequest& request,
                              std::vector<double> logits, GenerateResult& result) {
  const auto start = Clock::now();
  const absl::Status decoded = DecodeLoop(sequence, request, std::move(logits), result);
  Timing& timing = result.report.timing;
  timing.decode_s = Seconds(start, Clock::now());
  if (timing.decode_s > 0) {
    timing.decode_tokens_per_s = double(result.ids.size()) / timing.decode_s;
  }
  return decoded;
}

absl::Status Engine::PromptLogProbs(const Sequence& sequence, Tensor x_uD, int64_t count,
                                    GenerateResult& result) {
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
    model_->ends().Head(NewPass(sequence, n, Tensor()), h_nD, labels_n, log_p_n, log_z_n);
    std::vector<double> log_p(n);
    ops_->Download(s_, log_p_n, log_p.data());
    for (int64_t i = 0; i < n; ++i) {
      result.prompt_logprobs.emplace_back(positions[begin + i], log_p[i]);
    }
    TOROID_RETURN_IF_ERROR(StepStatus(sequence.events));
  }
  return absl::OkStatus();
}

// Rank 0 draws each token, decides whether it is the last, and tells the others.
absl::Status Engine::DecodeLoop(Sequence& sequence, const GenerateRequest& request,
                                std::vector<double> logits, GenerateResult& result) {
  enum : int64_t { kGoOn = 0, kStop = 1, kFailed = 2 };
  TokenSource source(request, uint64_t(result.prompt_index * request.n + result.index),
                     tokenizer_.get(), config().vocab, stop_ids_);
  absl::Status failure;
  if (mesh_->rank() == 0) failure = source.Start(sequence.ids);
  for (int64_t made = 0; made < request.max_tokens; ++made) {
    Arena::Mark mark(*scratch_);
    int64_t message[2] = {kGoOn, 0};
    TokenEvent event;
    event.prompt_index = result.prompt_index;
    event.index = result.index;
    if (mesh_->rank() == 0) {
      if (failure.ok()) failure = source.Next(logits, sequence.length, event, result);
      message[0] = !failure.ok() ? kFailed : source.stopped() ? kStop : kGoOn;
      message[1] = event.id;
    }
    Tensor told = scratch_->New("token", DType::kI64, {2});
    ops_->Upload(s_, message, told);
    mesh_->world().Broadcast(s_, told, 0);
    ops_->Download(s_, told, message);
    if (message[0] == kFailed) {
      return failure.ok() ? absl::AbortedError("rank 0 could not draw a token") : failure;
    }
    TOROID_RETURN_IF_ERROR(StepStatus(sequence.events));
    if (mesh_->rank() == 0) sequence.events.on_token(event);
    if (message[0] == kStop) break;
    if (made + 1 < request.max_tokens) {
      logits = LastLogits(sequence, Decode(sequence, int32_t(message[1])));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<MemoryUse> Engine::DryGenerate(const GenerateRequest& request,
                                              const std::vector<int32_t>& prompt_ids) {
  const EngineEvents silent;
  Sequence sequence(prompt_ids, int64_t(prompt_ids.size()) + request.max_tokens,
                    /*keep=*/true, load_, "prefill", silent);
  scratch_->ResetPeak();
  {
    Arena::Mark mark(*scratch_);
    TOROID_RETURN_IF_ERROR(Begin(sequence));
    {
      Arena::Mark prefill_mark(*scratch_);
      TOROID_ASSIGN_OR_RETURN(Tensor x_uD, Prefill(sequence));
      GenerateResult ignored;
      TOROID_RETURN_IF_ERROR(PromptLogProbs(sequence, x_uD, request.prompt_logprobs, ignored));
      LastLogits(sequence, GatherRows(sequence, x_uD, {int64_t(sequence.ids.size()) - 1}));
    }
    Arena::Mark decode_mark(*scratch_);
    scratch_->New("token", DType::kI64, {2});
    if (request.max_tokens > 1) LastLogits(sequence, Decode(sequence, 0));
  }
  cache_->End();
  return Used();
}

}  // namespace toroid
