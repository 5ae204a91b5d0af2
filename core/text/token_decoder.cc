#include "core/text/token_decoder.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/text/text_steps.h"
#include "core/text/unicode.h"

namespace toroid {
namespace {

// The byte of a token <0xHH>, else -1. "+H" is read as Rust's from_str_radix reads it.
int FallbackByte(std::string_view token) {
  if (token.size() != 6 || token.substr(0, 3) != "<0x" || token[5] != '>') return -1;
  const auto digit = [](char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
  };
  const int high = token[3] == '+' ? 0 : digit(token[3]), low = digit(token[4]);
  return high < 0 || low < 0 ? -1 : 16 * high + low;
}

}  // namespace

absl::Status TokenDecoder::Add(Step step, std::string_view name, bool streams_when_fused) {
  for (const Step& before : steps_) {
    step.fused |= before.kind == Step::kFuse || before.kind == Step::kByteLevel;
  }
  if (step.fused && !streams_when_fused) {
    return absl::UnimplementedError(absl::StrCat("the decoder ",
                                                 absl::string_view(name.data(), name.size()),
                                                 " behind Fuse or ByteLevel is not implemented"));
  }
  steps_.push_back(std::move(step));
  return absl::OkStatus();
}

absl::Status TokenDecoder::AddReplaceLiteral(std::string pattern, std::string content) {
  if (pattern.empty()) return absl::InvalidArgumentError("the decoder Replace has no pattern");
  Step step(Step::kReplaceLiteral);
  step.pattern = std::move(pattern);
  step.content = std::move(content);
  return Add(std::move(step), "Replace", true);
}

absl::Status TokenDecoder::AddReplaceRegex(Regex pattern, std::string content) {
  Step step(Step::kReplaceRegex);
  step.regex = std::move(pattern);
  step.content = std::move(content);
  return Add(std::move(step), "Replace with a regular expression", false);
}

absl::Status TokenDecoder::AddByteFallback() {
  return Add(Step(Step::kByteFallback), "ByteFallback", false);
}
absl::Status TokenDecoder::AddFuse() { return Add(Step(Step::kFuse), "Fuse", true); }

absl::Status TokenDecoder::AddStrip(char32_t content, size_t start, size_t stop) {
  Step step(Step::kStrip);
  step.character = content;
  step.start = start;
  step.stop = stop;
  return Add(std::move(step), "Strip", true);
}

absl::Status TokenDecoder::AddMetaspace(char32_t replacement, bool drop_in_first) {
  Step step(Step::kMetaspace);
  step.character = replacement;
  step.drop_in_first = drop_in_first;
  return Add(std::move(step), "Metaspace", false);
}

absl::Status TokenDecoder::AddByteLevel() {
  return Add(Step(Step::kByteLevel), "ByteLevel", false);
}

TokenDecoder::Run::Run(const TokenDecoder* decoder)
    : decoder_(decoder), states_(decoder->steps_.size()) {}

void TokenDecoder::Run::Push(std::string_view token, std::string* out) {
  if (decoder_->empty() && !first_) out->push_back(' ');
  first_ = false;
  Feed(0, token, out);
}

void TokenDecoder::Run::Finish(std::string* out) {
  for (size_t step = 0; step < states_.size(); ++step) Flush(step, out);
  states_.assign(states_.size(), State{});
  first_ = true;
}

void TokenDecoder::Run::Feed(size_t index, std::string_view token, std::string* out) {
  if (index == states_.size()) {
    out->append(token);
    return;
  }
  const Step& step = decoder_->steps_[index];
  switch (step.kind) {
    case Step::kReplaceLiteral:
      return FeedReplace(index, token, out);
    case Step::kReplaceRegex: {
      Normalizer replace;  // the same search and replace
      replace.AddReplace(*step.regex, step.content);
      auto replaced = replace.Apply(token);
      return Feed(index + 1, replaced.ok() ? *replaced : token, out);
    }
    case Step::kByteFallback:
      return FeedByteFallback(index, token, out);
    case Step::kFuse:
      return Feed(index + 1, token, out);
    case Step::kStrip:
      return step.fused ? FeedFusedStrip(index, token, out) : FeedStrip(index, token, out);
    case Step::kMetaspace:
      return FeedMetaspace(index, token, out);
    case Step::kByteLevel:
      return FeedByteLevel(index, token, out);
  }
}

void TokenDecoder::Run::Flush(size_t index, std::string* out) {
  State& state = states_[index];
  switch (decoder_->steps_[index].kind) {
    case Step::kReplaceLiteral:  // the start of a pattern that never came
      if (!state.pending.empty()) Feed(index + 1, state.pending, out);
      return;
    case Step::kByteFallback:
      return FlushBytes(index, out);
    case Step::kByteLevel:
      return EmitUtf8(index, true, out);
    default:  // what Strip holds back is what it removes
      return;
  }
}

// Fused, the pattern may lie across tokens: the longest end that could start it waits.
void TokenDecoder::Run::FeedReplace(size_t index, std::string_view token, std::string* out) {
  const Step& step = decoder_->steps_[index];
  std::string& pending = states_[index].pending;
  pending.append(token);
  std::string replaced;
  size_t done = 0;
  for (size_t at = pending.find(step.pattern); at != std::string::npos;
       at = pending.find(step.pattern, done)) {
    replaced.append(pending, done, at - done).append(step.content);
    done = at + step.pattern.size();
  }
  size_t keep = 0;
  if (step.fused) {
    keep = std::min(step.pattern.size() - 1, pending.size() - done);
    while (keep > 0 && pending.compare(pending.size() - keep, keep, step.pattern, 0, keep) != 0) {
      --keep;
    }
  }
  replaced.append(pending, done, pending.size() - keep - done);
  pending.erase(0, pending.size() - keep);
  if (!step.fused || !replaced.empty()) Feed(index + 1, replaced, out);
}

void TokenDecoder::Run::FeedByteFallback(size_t index, std::string_view token, std::string* out) {
  const int byte = FallbackByte(token);
  if (byte >= 0) {
    states_[index].pending.push_back(static_cast<char>(byte));
    return;
  }
  FlushBytes(index, out);
  Feed(index + 1, token, out);
}

void TokenDecoder::Run::FlushBytes(size_t index, std::string* out) {
  const std::string bytes = std::exchange(states_[index].pending, "");
  if (bytes.empty()) return;
  if (IsValidUtf8(bytes)) return Feed(index + 1, bytes, out);
  for (size_t i = 0; i < bytes.size(); ++i) Feed(index + 1, kReplacementCharacter, out);
}

void TokenDecoder::Run::FeedStrip(size_t index, std::string_view token, std::string* out) {
  const Step& step = decoder_->steps_[index];
  for (size_t i = 0; i < step.start && !token.empty(); ++i) {
    size_t end = 0;
    if (NextCharacter(token, &end) != step.character) break;
    token.remove_prefix(end);
  }
  for (size_t i = 0; i < step.stop && !token.empty(); ++i) {
    size_t begin = 0;
    if (PreviousCharacter(token, token.size(), &begin) != step.character) break;
    token = token.substr(0, begin);
  }
  Feed(index + 1, token, out);
}

void TokenDecoder::Run::FeedFusedStrip(size_t index, std::string_view token, std::string* out) {
  const Step& step = decoder_->steps_[index];
  State& state = states_[index];
  while (!state.started && !token.empty()) {
    size_t end = 0;
    if (state.count == step.start || NextCharacter(token, &end) != step.character) {
      state.started = true;
    } else {
      token.remove_prefix(end);
      ++state.count;
    }
  }
  // The last `stop` characters wait while they are `character`: at the end they are removed.
  state.pending.append(token);
  size_t keep = state.pending.size();
  for (size_t i = 0; i < step.stop && keep > 0; ++i) {
    size_t begin = 0;
    if (PreviousCharacter(state.pending, keep, &begin) != step.character) break;
    keep = begin;
  }
  const std::string ready = state.pending.substr(0, keep);
  state.pending.erase(0, keep);
  if (!ready.empty()) Feed(index + 1, ready, out);
}

void TokenDecoder::Run::FeedMetaspace(size_t index, std::string_view token, std::string* out) {
  const Step& step = decoder_->steps_[index];
  const bool drop = states_[index].count++ == 0 && step.drop_in_first;
  std::string text;
  for (size_t at = 0; at < token.size();) {
    const size_t begin = at;
    if (NextCharacter(token, &at) != step.character) {
      text.append(token.substr(begin, at - begin));
    } else if (!drop) {
      text.push_back(' ');
    }
  }
  Feed(index + 1, text, out);
}

void TokenDecoder::Run::FeedByteLevel(size_t index, std::string_view token, std::string* out) {
  std::string bytes;
  for (size_t at = 0; at < token.size();) {
    const int byte = CharacterToByte(NextCharacter(token, &at));
    if (byte < 0) {  // not in the alphabet (an added token): the token stands for itself
      bytes.assign(token);
      break;
    }
    bytes.push_back(static_cast<char>(byte));
  }
  states_[index].pending += bytes;
  EmitUtf8(index, false, out);
}

// Passes on whole characters; an unfinished one waits unless this is the last call.
void TokenDecoder::Run::EmitUtf8(size_t index, bool last, std::string* out) {
  std::string& pending = states_[index].pending;
  std::string ready;
  std::string_view rest = pending;
  while (!rest.empty()) {
    const Utf8Step step = StepUtf8(rest);
    if (step.kind == Utf8Step::kUnfinished && !last) break;
    ready.append(step.kind == Utf8Step::kGood ? rest.substr(0, step.length)
                                              : kReplacementCharacter);
    rest.remove_prefix(step.length);
  }
  pending.erase(0, pending.size() - rest.size());
  if (!ready.empty()) Feed(index + 1, ready, out);
}

}  // namespace toroid
