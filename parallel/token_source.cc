#include "parallel/token_source.h"

#include <algorithm>

#include "core/status_macros.h"

namespace toroid {

TokenSource::TokenSource(const GenerateRequest& request, uint64_t sequence,
                         const Tokenizer* tokenizer, int64_t vocab,
                         const std::vector<int64_t>& model_stops)
    : request_(request),
      sequence_(sequence),
      vocab_(vocab),
      stop_ids_(request.stop_ids.begin(), request.stop_ids.end()) {
  if (!request.ignore_eos) stop_ids_.insert(model_stops.begin(), model_stops.end());
  if (tokenizer != nullptr) decoder_.emplace(tokenizer);
}

absl::Status TokenSource::Start(const std::vector<int32_t>& prompt) {
  TOROID_ASSIGN_OR_RETURN(StopMatcher matcher, StopMatcher::Create(request_.stop));
  matcher_.emplace(std::move(matcher));
  TOROID_ASSIGN_OR_RETURN(Sampler sampler,
                          Sampler::Create(request_.sampling, vocab_, sequence_, prompt));
  sampler_.emplace(std::move(sampler));
  return absl::OkStatus();
}

absl::Status TokenSource::Next(const std::vector<double>& logits, int64_t position,
                               TokenEvent& event, GenerateResult& result) {
  TOROID_ASSIGN_OR_RETURN(const Sampled drawn,
                          sampler_->Sample(std::span<const double>(logits), position));
  Append(drawn, event, result);
  return absl::OkStatus();
}

absl::Status TokenSource::Take(const SampledRow& row, int64_t position, TokenEvent& event,
                               GenerateResult& result) {
  TOROID_ASSIGN_OR_RETURN(const Sampled drawn, Sampler::Checked(row, position));
  Append(drawn, event, result);
  return absl::OkStatus();
}

void TokenSource::Append(const Sampled& drawn, TokenEvent& event, GenerateResult& result) {
  sampler_->Append(drawn.id);
  event.id = drawn.id;
  event.log_p = drawn.log_p;
  result.min_margin = result.ids.empty() ? drawn.margin : std::min(result.min_margin, drawn.margin);
  result.ids.push_back(drawn.id);
  if (request_.logprobs) result.logprobs.push_back(drawn.log_p);

  const bool end = stop_ids_.contains(drawn.id);
  const bool last = end || int64_t(result.ids.size()) >= request_.max_tokens;
  std::string text;
  if (decoder_.has_value()) {
    if (!end) text = decoder_->Push(drawn.id);
    if (last) text += decoder_->Finish();
  }
  event.text = matcher_->Push(text);
  if (last && !matcher_->stopped()) event.text += matcher_->Finish();
  stopped_ = end || matcher_->stopped();
  if (stopped_) result.finish = FinishReason::kStop;
  result.text += event.text;
}

}  // namespace toroid
