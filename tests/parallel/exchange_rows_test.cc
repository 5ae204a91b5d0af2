// A part in two messages, chosen rows first, is what it is in one.
#include "parallel/exchange_rows.h"

#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "core/io/random_model.h"
#include "core/model/param_groups.h"
#include "core/random.h"

namespace toroid {
namespace {

// A third of the embedding's rows, where the one rank of a world stores them, some side by side.
StoredRows SomeRows(const ModelConfig& config, int64_t layers) {
  const ParamGroups groups(config, ParamLayout(config, 0, 1), 0, 1, layers);
  const GroupMember* table = groups.group(groups.embedding()).Find(kEmbeddingTable);
  StoredRows rows{table->offset, table->slice.col_count, {}};
  for (int64_t r = 0; r < table->slice.row_count; ++r) {
    rows.chosen.push_back(Philox(3, uint64_t(r / 2), 0)[0] % 3 == 0);
  }
  return rows;
}

std::vector<float> Values(int64_t n) {
  std::vector<float> values;
  for (int64_t i = 0; i < n; ++i) values.push_back(float(i % 8191) * 0.37f - 1500);
  return values;
}

std::string Text(const SharedBytes& bytes) { return std::string(absl::string_view(bytes)); }

TEST(StoredRowsTest, SplitAllElementsInOrder) {
  const StoredRows rows{10, 4, {false, true, true, false, true}};
  const auto ranges = [&](bool chosen) { return rows.Ranges(40, chosen); };
  EXPECT_EQ(ranges(true), (std::vector<Range>{{14, 22}, {26, 30}}));
  EXPECT_EQ(ranges(false), (std::vector<Range>{{0, 14}, {22, 26}, {30, 40}}));
  EXPECT_EQ(rows.Ranges(28, true), (std::vector<Range>{{14, 22}, {26, 28}}));
  EXPECT_EQ(StoredRows().Ranges(40, false), (std::vector<Range>{{0, 40}}));
  EXPECT_TRUE(StoredRows().Ranges(40, true).empty());
}

TEST(ExchangeRowsTest, JoinedAreWhatOneMessageHas) {
  ThreadPool pool(1);
  const BytePool memory;
  constexpr MeshShape kOne = {1, 1, 1};
  for (const char* name : {"tiny-gqa", "gpt2-tiny"}) {  // this one with more behind its rows
    const ModelConfig config = *RandomShape(name);
    const StoredRows rows = SomeRows(config, config.layers);
    const ExchangeCoder coder(config, config.layers, kOne, 0);
    const int64_t n = coder.size(0);
    const std::vector<float> values = Values(n);
    for (const Codec codec : {Codec::kFp64, Codec::kFp32, Codec::kBf16}) {
      const CodecRounding rounding = {true, 7, 3};
      const CodedRange whole = coder.Encode(pool, 0, values.data(), codec, rounding);
      CodedRange coded = coder.NewRange(0, codec);
      for (const bool chosen : {true, false}) {
        for (const Range& range : rows.Ranges(n, chosen)) {
          coder.EncodeRange(pool, 0, range, values.data(), rounding, coded);
        }
      }
      EXPECT_EQ(coded.codes, whole.codes);
      for (const MeshShape& peer : {kOne, MeshShape{1, 1, 3}, MeshShape{2, 1, 1}}) {
        SCOPED_TRACE(absl::StrCat(name, ", ", CodecName(codec), ", ", ToString(peer)));
        const ExchangeLayout sender(config, config.layers, kOne, 0, peer);
        for (const ExchangePart& sent : sender.sends(0)) {
          const ExchangeLayout receiver(config, config.layers, peer, sent.rank, kOne);
          const ExchangePart& part = receiver.receives(0).at(0);
          const SharedBytes first = PackRows(sent, coded, rows, true, memory);
          const SharedBytes rest = PackRows(sent, coded, rows, false, memory);
          EXPECT_EQ(int64_t(first.size() + rest.size()),
                    PayloadBytes(sent, true, codec) + RowsBytes(config.vocab));
          const auto joined = JoinRows(part, codec, first, rest, memory);
          ASSERT_TRUE(joined.ok()) << joined.status();
          EXPECT_EQ(*joined, PackPart(sent, whole));
          // Control: codes of another row.
          std::string other = Text(rest);
          other[0] = char(other[0] ^ 1);
          EXPECT_FALSE(*JoinRows(part, codec, first, other, memory) == *joined);
        }
      }
    }
  }
}

TEST(ExchangeRowsTest, WhatIsNoHalfIsRefused) {
  ThreadPool pool(1);
  const BytePool memory;
  const ModelConfig config = *RandomShape("tiny-gqa");
  const StoredRows rows = SomeRows(config, config.layers);
  const ExchangeCoder coder(config, config.layers, {1, 1, 1}, 0);
  const std::vector<float> values = Values(coder.size(0));
  const CodedRange coded = coder.Encode(pool, 0, values.data(), Codec::kBf16, {});
  const ExchangeLayout layout(config, config.layers, {1, 1, 1}, 0, {1, 1, 1});
  const ExchangePart& part = layout.sends(0).at(0);
  const std::string first = Text(PackRows(part, coded, rows, true, memory));
  const std::string rest = Text(PackRows(part, coded, rows, false, memory));
  const auto refused = [&](const std::string& a, const std::string& b) {
    return JoinRows(part, Codec::kBf16, a, b, memory).status().code() ==
           absl::StatusCode::kInvalidArgument;
  };
  EXPECT_FALSE(refused(first, rest));
  EXPECT_TRUE(refused(rest, first));
  EXPECT_TRUE(refused("", rest));
  EXPECT_TRUE(refused(first.substr(0, 23), rest));
  EXPECT_TRUE(refused(first.substr(0, 24), rest));
  EXPECT_TRUE(refused(first, rest.substr(1)));
  EXPECT_TRUE(refused(first + "xx", rest));
  const auto with = [&](size_t number, int64_t value) {
    std::string changed = first;
    std::memcpy(&changed[number * sizeof value], &value, sizeof value);
    return changed;
  };
  for (const int64_t wrong : {int64_t{-1}, int64_t{1}, int64_t{1} << 62}) {
    EXPECT_TRUE(refused(with(0, wrong), rest)) << wrong;  // begin
    EXPECT_TRUE(refused(with(1, wrong), rest)) << wrong;  // width
    EXPECT_TRUE(refused(with(2, wrong), rest)) << wrong;  // number
  }
  EXPECT_TRUE(refused(with(1, 0), rest));
  std::string bit = first;
  bit[24] = char(bit[24] ^ 1);
  EXPECT_TRUE(refused(bit, rest));
}

}  // namespace
}  // namespace toroid
