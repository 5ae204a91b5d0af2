#include "core/text/stream_decoder.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "core/text/unicode.h"
#include "tests/core/text/golden_text.h"

namespace toroid {
namespace {

std::unique_ptr<const Tokenizer> Load(const std::string& name) {
  auto tokenizer = Tokenizer::FromHuggingFace(ReadTextGolden(name + ".json"));
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return *std::move(tokenizer);
}

TEST(StreamDecoder, NeverGivesHalfACharacter) {
  for (const char* name : {"llama3", "llama2"}) {
    const auto tokenizer = Load(name);
    const std::string text = "x 👩‍👩‍👧‍👦 é 你好 𝔘 z";
    const auto ids = tokenizer->Encode(text, {false, true});
    ASSERT_TRUE(ids.ok());
    StreamDecoder decoder(tokenizer.get());
    std::string whole;
    size_t silent = 0;
    for (int32_t id : *ids) {
      const std::string now = decoder.Push(id);
      EXPECT_TRUE(IsValidUtf8(now));
      EXPECT_EQ(now.find(kReplacementCharacter), std::string::npos);
      silent += now.empty();
      whole += now;
    }
    // Control: there were halves to hold back.
    EXPECT_GT(silent, 3u);
    EXPECT_EQ(whole + decoder.Finish(), text);
  }
}

TEST(StreamDecoder, GivesTextAsSoonAsItIsFinal) {
  const auto tokenizer = Load("llama3");
  const auto ids = tokenizer->Encode("the value of it", {false, true});
  ASSERT_TRUE(ids.ok());
  StreamDecoder decoder(tokenizer.get());
  for (int32_t id : *ids) EXPECT_NE(decoder.Push(id), "");
  EXPECT_EQ(decoder.Finish(), "");
}

TEST(StreamDecoder, UnfinishedCharactersBecomeReplacements) {
  const auto tokenizer = Load("llama3");
  const auto ids = tokenizer->Encode("\U0001F600", {false, true});
  ASSERT_TRUE(ids.ok() && ids->size() > 1);
  StreamDecoder decoder(tokenizer.get());
  EXPECT_EQ(decoder.Push(ids->front()), "");
  EXPECT_EQ(decoder.Finish(), kReplacementCharacter);
  // As new after Finish.
  EXPECT_EQ(decoder.Push(tokenizer->TokenId("a")), "a");
}

// Feeds `text` in pieces of `size` bytes; returns what was shown and what stopped it.
std::pair<std::string, std::string> Match(const std::vector<std::string>& stops,
                                          const std::string& text, size_t size) {
  auto matcher = StopMatcher::Create(stops);
  EXPECT_TRUE(matcher.ok());
  std::string shown;
  for (size_t at = 0; at < text.size(); at += size) shown += matcher->Push(text.substr(at, size));
  shown += matcher->Finish();
  return {shown, matcher->stop()};
}

TEST(StopMatcher, FindsStopsHoweverTheTextIsCut) {
  struct Case {
    std::vector<std::string> stops;
    std::string text, shown, stop;
  };
  const std::vector<Case> cases = {
      {{"END"}, "some ENtext END more", "some ENtext ", "END"},
      {{"END"}, "no stop EN", "no stop EN", ""},
      {{}, "abc", "abc", ""},
      {{"aab"}, "aaaab", "aa", "aab"},
      {{"abab"}, "abaabab", "aba", "abab"},
      {{"abcd", "bc"}, "xabcd", "xa", "bc"},
      {{"c", "abc"}, "xabc", "x", "abc"},
      {{"\n\n", "你好"}, "a\n你你好b", "a\n你", "你好"},
      {{"x"}, "x", "", "x"},
  };
  for (const Case& c : cases) {
    for (size_t size = 1; size <= c.text.size(); ++size) {
      EXPECT_EQ(Match(c.stops, c.text, size), std::make_pair(c.shown, c.stop)) << c.text << size;
    }
  }
}

TEST(StopMatcher, HoldsBackOnlyWhatMayBeAStop) {
  auto matcher = StopMatcher::Create({"</s>"});
  ASSERT_TRUE(matcher.ok());
  EXPECT_EQ(matcher->Push("one <"), "one ");
  EXPECT_EQ(matcher->Push("/"), "");
  EXPECT_EQ(matcher->Push("b> two"), "</b> two");
  EXPECT_EQ(matcher->Push(" </s> three"), " ");
  EXPECT_TRUE(matcher->stopped());
  EXPECT_EQ(matcher->Push("four"), "");
  EXPECT_EQ(matcher->Finish(), "");
}

TEST(StopMatcher, RefusesStopsThatAreNoText) {
  EXPECT_FALSE(StopMatcher::Create({""}).ok());
  EXPECT_FALSE(StopMatcher::Create({"\x80"}).ok());
}

}  // namespace
}  // namespace toroid
