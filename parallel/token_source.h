// TokenSource: what rank 0 does between two decode steps: draw a token, turn it into text, know
// whether it is the last. One object per answer; rank 0 only.
#pragma once

#include <optional>
#include <set>
#include <vector>

#include "core/model/sampler.h"
#include "core/text/stream_decoder.h"
#include "parallel/request.h"

namespace toroid {

class TokenSource {
 public:
  // `sequence` numbers the answers that share a seed. `tokenizer` may be null (a model without one:
  // no text) and must outlive this. model_stops: the model's end-of-sequence ids.
  TokenSource(const GenerateRequest& request, uint64_t sequence, const Tokenizer* tokenizer,
              int64_t vocab, const std::vector<int64_t>& model_stops);

  // Errors: sampling parameters, an empty stop string.
  absl::Status Start(const std::vector<int32_t>& prompt);
  // Draws the token at `position` from logits [V] and appends it to `result` (ids, text, logprobs,
  // min_margin, finish). An end-of-sequence id is among the ids, its text is not shown.
  absl::Status Next(const std::vector<double>& logits, int64_t position, TokenEvent& event,
                    GenerateResult& result);
  // The same with what the op Sample has drawn at `position`, asked by Row. REQUIRES: no
  // penalties.
  absl::Status Take(const SampledRow& drawn, int64_t position, TokenEvent& event,
                    GenerateResult& result);
  SampleRow Row(int64_t position) const { return sampler_->Row(position); }
  bool stopped() const { return stopped_; }

 private:
  void Append(const Sampled& drawn, TokenEvent& event, GenerateResult& result);

  const GenerateRequest& request_;
  const uint64_t sequence_;
  const int64_t vocab_;
  std::set<int32_t> stop_ids_;
  std::optional<Sampler> sampler_;
  std::optional<StreamDecoder> decoder_;
  std::optional<StopMatcher> matcher_;
  bool stopped_ = false;
};

}  // namespace toroid
