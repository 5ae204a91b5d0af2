// The answers of a request while they are made: a token of each row at a time, over the sharded
// cache. Every rank follows rank 0, which alone draws.
#include <algorithm>
#include <chrono>
#include <functional>

#include "core/status_macros.h"
#include "parallel/engine_sequence.h"

namespace toroid {
namespace {

using Clock = std::chrono::steady_clock;

// Row `row`'s part of an amount that `rows` share, so that the parts add up.
int64_t Part(int64_t amount, int64_t row, int64_t rows) {
  return amount * (row + 1) / rows - amount * row / rows;
}

}  // namespace

absl::Status Engine::MakeAnswers(Batch& batch) {
  // Each row has its part of what a step takes and sends.
  const auto charged = [&](const std::function<absl::Status()>& work) {
    const auto start = Clock::now();
    const std::vector<CommCounters> before = Counters();
    const absl::Status status = work();
    const Traffic sent = TrafficOf(before, before, Counters());
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    const int64_t rows = int64_t(batch.rows.size());
    for (int64_t row = 0; row < rows; ++row) {
      Answer& answer = *batch.rows[row];
      answer.result.report.timing.decode_s += seconds / double(rows);
      for (size_t i = 0; i < sent.axes.size(); ++i) {
        answer.traffic.axes[i].sent += Part(sent.axes[i].sent, row, rows);
        answer.traffic.axes[i].calls += Part(sent.axes[i].calls, row, rows);
      }
    }
    return status;
  };
  batch.rotation = NewRotation(int64_t(batch.request.prompt_ids.size()) + batch.request.max_tokens);
  while (true) {
    TOROID_RETURN_IF_ERROR(Admit(batch));
    if (batch.rows.empty()) return absl::OkStatus();
    TOROID_RETURN_IF_ERROR(charged([&] { return Draw(batch); }));
    Leave(batch);
    if (batch.rows.empty()) continue;
    TOROID_RETURN_IF_ERROR(charged([&] {
      Step(batch);
      return absl::OkStatus();
    }));
  }
}

// Answers begin, in order, while there are rows for them. The first of a prompt reads it; the last
// goes on with the prompt's own sequence, the others with a fork of it.
absl::Status Engine::Admit(Batch& batch) {
  const GenerateRequest& request = batch.request;
  const int64_t n = request.n, answers = (1 + int64_t(request.more_prompt_ids.size())) * n;
  for (; batch.next < answers && int64_t(batch.rows.size()) < batch.most_rows; ++batch.next) {
    const int64_t prompt_index = batch.next / n, index = batch.next % n;
    const std::vector<int32_t>& ids = PromptAt(request, prompt_index);
    const int64_t limit = int64_t(ids.size()) + request.max_tokens;
    if (index == 0) {
      // Where frequencies follow the length, texts of another length wait for rows of their own.
      const RopeFrequencies rope = Rope(config(), limit);
      if (!(rope == batch.rotation.rope) && !batch.rows.empty()) break;
      batch.rotation.rope = rope;
      ops_->Upload(s_, rope.inv_freq.data(), batch.rotation.inv_freq);
    }
    batch.rows.push_back(std::make_unique<Answer>(
        Answer{.source = TokenSource(request, uint64_t(batch.next), tokenizer_.get(),
                                     config().vocab, stop_ids_)}));
    Answer& answer = *batch.rows.back();
    answer.result.prompt_index = prompt_index;
    answer.result.index = index;
    answer.result.prompt_tokens = answer.length = int64_t(ids.size());
    if (mesh_->rank() == 0) answer.failure = answer.source.Start(ids);
    if (index == 0) TOROID_RETURN_IF_ERROR(ReadPrompt(batch, prompt_index, answer));
    answer.result.prompt_logprobs = batch.prompt_logprobs;
    answer.logits = batch.logits;
    answer.cached = index + 1 < n ? cache_->Fork(s_, batch.prompt) : batch.prompt;
    if (request.max_tokens == 0) {
      answer.ended = true;
      Leave(batch);
    }
  }
  return absl::OkStatus();
}

// Rank 0 draws a token of each row, decides whether it is its last, and tells the others.
absl::Status Engine::Draw(Batch& batch) {
  enum : int64_t { kGoOn = 0, kLast = 1, kFailed = 2 };
  const int64_t rows = int64_t(batch.rows.size());
  std::vector<TokenEvent> events(rows);
  std::vector<int64_t> words(2 * rows);
  absl::Status failure;
  if (mesh_->rank() == 0) {
    for (int64_t row = 0; row < rows; ++row) {
      Answer& answer = *batch.rows[row];
      TokenEvent& event = events[row];
      event.prompt_index = answer.result.prompt_index;
      event.index = answer.result.index;
      if (failure.ok()) failure = answer.failure;
      if (failure.ok() && answer.logits.empty()) {
        failure = answer.source.Take(answer.drawn, answer.length, event, answer.result);
      } else if (failure.ok()) {
        failure = answer.source.Next(answer.logits, answer.length, event, answer.result);
      }
      event.last = answer.source.stopped() || answer.made + 1 == batch.request.max_tokens;
      words[2 * row] = !failure.ok() ? kFailed : event.last ? kLast : kGoOn;
      words[2 * row + 1] = event.id;
    }
  }
  if (mesh_->world().size() > 1) {
    Arena::Mark mark(*scratch_);
    Tensor told = scratch_->New("tokens", DType::kI64, {rows, 2});
    ops_->Upload(s_, words.data(), told);
    mesh_->world().Broadcast(s_, told, 0);
    ops_->Download(s_, told, words.data());
  }
  if (words[2 * (rows - 1)] == kFailed) {
    return failure.ok() ? absl::AbortedError("rank 0 could not draw a token") : failure;
  }
  TOROID_RETURN_IF_ERROR(StepStatus(batch.events));
  for (int64_t row = 0; row < rows; ++row) {
    Answer& answer = *batch.rows[row];
    if (mesh_->rank() == 0) batch.events.on_token(events[row]);
    answer.ended = words[2 * row] == kLast;
    answer.id = int32_t(words[2 * row + 1]);
    ++answer.made;
  }
  return absl::OkStatus();
}

// Ended answers give back their pages; the last row moves to the place of one that ended.
void Engine::Leave(Batch& batch) {
  for (size_t row = 0; row < batch.rows.size();) {
    if (!batch.rows[row]->ended) {
      ++row;
      continue;
    }
    cache_->End(batch.rows[row]->cached);
    std::swap(batch.rows[row], batch.rows.back());
    batch.done.push_back(std::move(batch.rows.back()));
    batch.rows.pop_back();
  }
}

// A device that has all logits draws from them itself, unless that takes what only the host knows:
// how often each id has been.
bool Engine::DrawsOnDevice(const GenerateRequest& request) const {
  return ops_->repeats() && mesh_->world().size() == 1 && !request.sampling.penalises();
}

// What the device draws from rows of logits [1, n, c]: SampledRow [n].
Tensor Engine::SampleRows(Tensor logits_snc, const std::vector<SampleRow>& rows) {
  const int64_t n = int64_t(rows.size());
  const Tensor rows_n7 = scratch_->New("rows to draw", DType::kI64, {n, kSampleRowWords});
  const Tensor drawn_n3 = scratch_->New("drawn", DType::kI64, {n, kSampledRowWords});
  SampleWork most = SampleWork::kGreedy;
  for (const SampleRow& row : rows) most = std::max(most, WorkOf(row, config().vocab));
  ops_->Upload(s_, rows.data(), rows_n7);
  ops_->Sample(s_, logits_snc.Reshape({n, logits_snc.dims[2]}).Cols(0, config().vocab), most,
               rows_n7, drawn_n3);
  return drawn_n3;
}

// The logits behind each row's last token, or what the device draws from them.
void Engine::Step(Batch& batch) {
  const int64_t rows = int64_t(batch.rows.size());
  StepRows step;
  for (int64_t row = 0; row < rows; ++row) {
    Answer& answer = *batch.rows[row];
    const int64_t position = answer.length++;
    const bool owner = mesh_->data_rank() == 0 && OwnerOfNew(position) == mesh_->ring_rank();
    step.slots.push_back(owner ? cache_->Append(answer.cached, 1)[0] : -1);
    step.ids.push_back(answer.id);
    step.positions.push_back(int32_t(position));
    step.lengths.push_back(int32_t(cache_->length(answer.cached)));
    const int64_t table = swap_tables_ && rows > 1 && row < 2 ? 1 - row : row;
    cache_->Bind(s_, table, answer.cached);
  }
  At("decode", -1, step.positions[0]);
  Arena::Mark mark(*scratch_);
  const Tensor logits_snc = NewLogits(Decode(batch.rotation, step));
  if (DrawsOnDevice(batch.request)) {
    std::vector<SampleRow> draws;
    for (const auto& answer : batch.rows) draws.push_back(answer->source.Row(answer->length));
    std::vector<SampledRow> drawn(draws.size());
    ops_->Download(s_, SampleRows(logits_snc, draws), drawn.data());
    for (int64_t row = 0; row < rows; ++row) {
      batch.rows[row]->logits.clear();
      batch.rows[row]->drawn = drawn[row];
    }
    return;
  }
  std::vector<std::vector<double>> logits = HostLogits(logits_snc);
  for (size_t row = 0; row < logits.size(); ++row) {
    batch.rows[row]->logits = std::move(logits[row]);
  }
}

}  // namespace toroid
