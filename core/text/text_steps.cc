#include "core/text/text_steps.h"

#include <array>
#include <utility>

#include "core/status_macros.h"

namespace toroid {
namespace {

// The word pattern of Radford et al. 2019 (GPT-2).
constexpr std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

// Printable Latin-1 bytes stand for themselves, the others for U+0100 and on, in order.
struct ByteAlphabet {
  std::array<char32_t, 256> characters;
  std::array<std::string, 256> texts;
  std::array<int, 0x200> bytes;

  ByteAlphabet() {
    bytes.fill(-1);
    char32_t next = 0x100;
    for (unsigned b = 0; b < 256; ++b) {
      const bool printable = (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
      characters[b] = printable ? b : next++;
      bytes[characters[b]] = static_cast<int>(b);
      AppendUtf8(characters[b], &texts[b]);
    }
  }
};

const ByteAlphabet& Alphabet() {
  static const ByteAlphabet* alphabet = new ByteAlphabet;
  return *alphabet;
}

struct MarkedRange {
  TextRange range;
  bool marked;  // a match; after Merge: to be dropped
};

// The whole text as ranges, matches marked.
std::vector<MarkedRange> Mark(std::string_view text, const std::vector<TextRange>& matches,
                              bool invert) {
  std::vector<MarkedRange> ranges;
  ranges.reserve(2 * matches.size() + 1);
  size_t done = 0;
  for (const TextRange& match : matches) {
    if (done != match.begin) ranges.push_back({{done, match.begin}, invert});
    ranges.push_back({match, !invert});
    done = match.end;
  }
  if (done != text.size()) ranges.push_back({{done, text.size()}, invert});
  return ranges;
}

// Joins ranges as `behavior` says; each range is joined to the one before it (after it, for
// kMergedWithNext) or stands alone.
std::vector<TextRange> Join(const std::vector<MarkedRange>& ranges, SplitBehavior behavior) {
  std::vector<TextRange> out;
  out.reserve(ranges.size());
  bool previous = false;
  const auto visit = [&](const MarkedRange& r, bool backwards) {
    const bool join =
        behavior == SplitBehavior::kContiguous ? r.marked == previous : r.marked && !previous;
    if (join && !out.empty()) {
      (backwards ? out.back().begin : out.back().end) = backwards ? r.range.begin : r.range.end;
    } else {
      out.push_back(r.range);
    }
    previous = r.marked;
  };
  if (behavior == SplitBehavior::kMergedWithNext) {
    for (auto r = ranges.rbegin(); r != ranges.rend(); ++r) visit(*r, true);
    return {out.rbegin(), out.rend()};
  }
  for (const MarkedRange& r : ranges) visit(r, false);
  return out;
}

std::string ReplaceMatches(std::string_view text, const std::vector<TextRange>& matches,
                           std::string_view content) {
  std::string out;
  out.reserve(text.size());
  size_t done = 0;
  for (const TextRange& match : matches) {
    out.append(text.substr(done, match.begin - done)).append(content);
    done = match.end;
  }
  return out.append(text.substr(done));
}

std::vector<TextRange> FindNumeric(std::string_view text) {
  std::vector<TextRange> matches;
  for (size_t at = 0; at < text.size();) {
    const size_t begin = at;
    if (IsNumeric(NextCharacter(text, &at))) matches.push_back({begin, at});
  }
  return matches;
}

}  // namespace

char32_t ByteToCharacter(unsigned char byte) { return Alphabet().characters[byte]; }
int CharacterToByte(char32_t c) { return c < 0x200 ? Alphabet().bytes[c] : -1; }

void Normalizer::AddForm(NormalForm form) { steps_.push_back({form, std::nullopt, ""}); }
void Normalizer::AddPrepend(std::string prefix) {
  steps_.push_back({std::nullopt, std::nullopt, std::move(prefix)});
}
void Normalizer::AddReplace(Regex pattern, std::string content) {
  steps_.push_back({std::nullopt, std::move(pattern), std::move(content)});
}

absl::StatusOr<std::string> Normalizer::Apply(std::string_view text) const {
  std::string current(text);
  for (const Step& step : steps_) {
    if (step.form.has_value()) {
      current = Normalize(current, *step.form);
    } else if (step.pattern.has_value()) {
      std::vector<TextRange> matches;
      TOROID_RETURN_IF_ERROR(step.pattern->FindAll(current, &matches));
      if (!matches.empty()) current = ReplaceMatches(current, matches, step.content);
    } else if (!current.empty()) {
      current.insert(0, step.content);
    }
  }
  return current;
}

void PreTokenizer::AddSplit(Regex pattern, SplitBehavior behavior, bool invert) {
  Step step(Step::kSplit);
  step.pattern = std::move(pattern);
  step.behavior = behavior;
  step.invert = invert;
  steps_.push_back(std::move(step));
}

void PreTokenizer::AddDigits(bool individual) {
  Step step(Step::kDigits);
  step.behavior = individual ? SplitBehavior::kIsolated : SplitBehavior::kContiguous;
  steps_.push_back(std::move(step));
}

absl::Status PreTokenizer::AddByteLevel(bool add_prefix_space, bool use_regex) {
  Step step(Step::kByteLevel);
  step.prefix_space = add_prefix_space;
  if (use_regex) {
    TOROID_ASSIGN_OR_RETURN(step.pattern, Regex::Compile(kGpt2Pattern));
  }
  steps_.push_back(std::move(step));
  return absl::OkStatus();
}

void PreTokenizer::AddMetaspace(std::string replacement, PrependScheme scheme, bool split) {
  Step step(Step::kMetaspace);
  if (split) step.pattern = *Regex::Literal(replacement);
  step.behavior = SplitBehavior::kMergedWithNext;
  step.replacement = std::move(replacement);
  step.scheme = scheme;
  steps_.push_back(std::move(step));
}

absl::Status PreTokenizer::Apply(std::string_view text, bool at_start, const Sink& sink) const {
  return ApplyFrom(0, text, at_start, sink);
}

absl::Status PreTokenizer::ApplyFrom(size_t index, std::string_view text, bool at_start,
                                     const Sink& sink) const {
  if (text.empty()) return absl::OkStatus();
  if (index == steps_.size()) return sink(text);
  const Step& step = steps_[index];
  switch (step.kind) {
    case Step::kByteLevel:
      return ApplyByteLevel(index, text, at_start, sink);
    case Step::kMetaspace:
      return ApplyMetaspace(index, text, at_start, sink);
    case Step::kDigits:
      return CutByMatches(index, FindNumeric(text), text, at_start, sink);
    case Step::kSplit: {
      std::vector<TextRange> matches;
      TOROID_RETURN_IF_ERROR(step.pattern->FindAll(text, &matches));
      return CutByMatches(index, matches, text, at_start, sink);
    }
  }
  return absl::OkStatus();
}

absl::Status PreTokenizer::CutByMatches(size_t index, const std::vector<TextRange>& matches,
                                        std::string_view text, bool at_start,
                                        const Sink& sink) const {
  const Step& step = steps_[index];
  const auto pass_on = [&](const TextRange& range) {
    return ApplyFrom(index + 1, text.substr(range.begin, range.end - range.begin),
                     at_start && range.begin == 0, sink);
  };
  const std::vector<MarkedRange> ranges = Mark(text, matches, step.invert);
  if (step.behavior == SplitBehavior::kIsolated || step.behavior == SplitBehavior::kRemoved) {
    for (const MarkedRange& r : ranges) {
      if (r.marked && step.behavior == SplitBehavior::kRemoved) continue;
      TOROID_RETURN_IF_ERROR(pass_on(r.range));
    }
    return absl::OkStatus();
  }
  for (const TextRange& range : Join(ranges, step.behavior)) {
    TOROID_RETURN_IF_ERROR(pass_on(range));
  }
  return absl::OkStatus();
}

absl::Status PreTokenizer::ApplyByteLevel(size_t index, std::string_view text, bool at_start,
                                          const Sink& sink) const {
  const Step& step = steps_[index];
  std::string prefixed;
  if (step.prefix_space && text[0] != ' ') {
    prefixed.append(" ").append(text);
    text = prefixed;
  }
  std::vector<TextRange> matches;
  if (step.pattern.has_value()) TOROID_RETURN_IF_ERROR(step.pattern->FindAll(text, &matches));
  std::string spelled;
  const auto& texts = Alphabet().texts;
  for (const MarkedRange& r : Mark(text, matches, false)) {
    spelled.clear();
    for (char byte : text.substr(r.range.begin, r.range.end - r.range.begin)) {
      spelled += texts[static_cast<unsigned char>(byte)];
    }
    TOROID_RETURN_IF_ERROR(ApplyFrom(index + 1, spelled, at_start && r.range.begin == 0, sink));
  }
  return absl::OkStatus();
}

absl::Status PreTokenizer::ApplyMetaspace(size_t index, std::string_view text, bool at_start,
                                          const Sink& sink) const {
  const Step& step = steps_[index];
  std::string spaced;
  spaced.reserve(text.size() + 16);
  for (char c : text) {
    if (c == ' ') {
      spaced += step.replacement;
    } else {
      spaced += c;
    }
  }
  const bool prepend =
      step.scheme == PrependScheme::kAlways || (step.scheme == PrependScheme::kFirst && at_start);
  if (prepend && spaced.compare(0, step.replacement.size(), step.replacement) != 0) {
    spaced.insert(0, step.replacement);
  }
  std::vector<TextRange> matches;
  if (step.pattern.has_value()) TOROID_RETURN_IF_ERROR(step.pattern->FindAll(spaced, &matches));
  return CutByMatches(index, matches, spaced, at_start, sink);
}

}  // namespace toroid
