#include "core/text/stream_decoder.h"

#include <algorithm>
#include <utility>

#include "core/text/tokenizer_parts.h"
#include "core/text/unicode.h"

namespace toroid {

StreamDecoder::StreamDecoder(const Tokenizer* tokenizer, bool skip_special)
    : tokenizer_(tokenizer), skip_special_(skip_special), run_(&tokenizer->parts().decoder) {}

std::string StreamDecoder::Push(int32_t id) {
  std::string text;
  const Vocabulary& vocabulary = tokenizer_->parts().vocabulary;
  if (!vocabulary.Has(id) || (skip_special_ && vocabulary.IsSpecial(id))) return text;
  run_.Push(tokenizer_->parts().Spelling(id), &text);
  return text;
}

std::string StreamDecoder::Finish() {
  std::string text;
  run_.Finish(&text);
  return text;
}

absl::StatusOr<StopMatcher> StopMatcher::Create(std::vector<std::string> stops) {
  std::vector<Pattern> patterns;
  for (std::string& stop : stops) {
    if (stop.empty()) {
      return absl::InvalidArgumentError("a stop string is empty: leave it out");
    }
    if (!IsValidUtf8(stop)) {
      return absl::InvalidArgumentError("a stop string is not valid UTF-8");
    }
    Pattern pattern;
    pattern.border.resize(stop.size(), 0);
    for (size_t i = 1, length = 0; i < stop.size(); ++i) {
      while (length > 0 && stop[i] != stop[length]) length = pattern.border[length - 1];
      if (stop[i] == stop[length]) ++length;
      pattern.border[i] = length;
    }
    pattern.text = std::move(stop);
    patterns.push_back(std::move(pattern));
  }
  return StopMatcher(std::move(patterns));
}

std::string StopMatcher::Push(std::string_view text) {
  if (stopped_) return "";
  for (size_t i = 0; i < text.size(); ++i) {
    held_.push_back(text[i]);
    const Pattern* found = nullptr;
    for (Pattern& p : patterns_) {
      while (p.matched > 0 && p.text[p.matched] != text[i]) p.matched = p.border[p.matched - 1];
      if (p.text[p.matched] == text[i]) ++p.matched;
      if (p.matched == p.text.size() && (!found || p.text.size() > found->text.size())) found = &p;
    }
    if (found != nullptr) {
      stopped_ = true;
      stop_ = found->text;
      held_.resize(held_.size() - stop_.size());
      return std::exchange(held_, "");
    }
  }
  size_t keep = 0;
  for (const Pattern& p : patterns_) keep = std::max(keep, p.matched);
  std::string ready = held_.substr(0, held_.size() - keep);
  held_.erase(0, held_.size() - keep);
  return ready;
}

std::string StopMatcher::Finish() {
  for (Pattern& p : patterns_) p.matched = 0;
  return std::exchange(held_, "");
}

}  // namespace toroid
