#include "core/train/token_shard.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <functional>

#include "core/io/crc32c.h"
#include "core/train/token_dataset.h"
#include "tests/support/token_sets.h"

namespace toroid {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

std::string BytesOf(const Documents& documents, int64_t vocab_size = 65536) {
  const TemporaryDirectory directory;
  return *ReadTextFile(WriteShard(directory, "s", documents, vocab_size), 1 << 30);
}

// Opens the bytes and reads every token.
absl::StatusOr<Documents> ReadAll(const std::string& bytes) {
  const auto shard =
      TokenShard::Parse({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()}, "s");
  if (!shard.ok()) return shard.status();
  Documents documents;
  for (int64_t i = 0; i < shard->documents(); ++i) {
    documents.emplace_back(size_t(shard->Length(i)));
    const auto status = shard->Read(i, 0, shard->Length(i), documents.back().data());
    if (!status.ok()) return status;
  }
  return documents;
}

Documents LongDocuments(int64_t vocab_size) {
  Documents documents = CountingDocuments({1, 40'000, 7, 30'000, 1});
  for (auto& document : documents) {
    for (int32_t& id : document) id = int32_t(int64_t(id) * 7919 % vocab_size);
  }
  return documents;
}

TEST(TokenShard, GivesBackWhatWasWritten) {
  for (const int64_t vocab : {256, 65536, 65537, 128'256}) {
    const Documents documents = LongDocuments(vocab);
    const std::string bytes = BytesOf(documents, vocab);
    const auto read = ReadAll(bytes);
    ASSERT_TRUE(read.ok()) << read.status();
    EXPECT_EQ(*read, documents);
    const auto shard =
        TokenShard::Parse({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()}, "s");
    EXPECT_EQ(shard->vocab_size(), vocab);
    EXPECT_EQ(shard->tokens(), 70'009);
    EXPECT_EQ(shard->source(), 7u);
    // Two bytes each, as long as that suffices.
    const size_t width = vocab <= 65536 ? 2 : 4;
    EXPECT_NEAR(double(bytes.size()), 70'009.0 * double(width), 200);
    int32_t part[3];
    ASSERT_TRUE(shard->Read(1, 32'767, 3, part).ok()) << "across a block's end";
    EXPECT_THAT(part,
                ElementsAre(documents[1][32'767], documents[1][32'768], documents[1][32'769]));
  }
}

TEST(TokenShard, EmptyDocumentsLeaveNoTrace) {
  EXPECT_EQ(*ReadAll(BytesOf({{}, {1, 2}, {}, {3}, {}})), (Documents{{1, 2}, {3}}));
  EXPECT_EQ(*ReadAll(BytesOf({})), Documents{});
  EXPECT_EQ(*ReadAll(BytesOf({{}})), Documents{});
}

TEST(TokenShard, EveryFlippedBitIsFound) {
  const std::string bytes = BytesOf({{1, 2, 3}, {4}, {5, 6}}, 100);
  ASSERT_TRUE(ReadAll(bytes).ok());
  for (size_t bit = 0; bit < 8 * bytes.size(); ++bit) {
    std::string flipped = bytes;
    flipped[bit / 8] = char(flipped[bit / 8] ^ (1 << bit % 8));
    const auto read = ReadAll(flipped);
    ASSERT_FALSE(read.ok()) << "bit " << bit;
    EXPECT_THAT(std::string(read.status().message()), HasSubstr("s: "));
  }
}

TEST(TokenShard, EveryOtherLengthIsRefused) {
  const std::string bytes = BytesOf({{1, 2, 3}, {4}});
  for (size_t size = 0; size < bytes.size(); ++size) {
    EXPECT_FALSE(ReadAll(bytes.substr(0, size)).ok()) << size;
  }
  EXPECT_FALSE(ReadAll(bytes + '\0').ok());
}

TEST(TokenShard, NamesTheDamagedBlockAndReadsTheOthers) {
  const Documents documents = LongDocuments(65536);
  std::string bytes = BytesOf(documents);
  bytes[64 + 65536 + 5] = char(bytes[64 + 65536 + 5] ^ 1);  // token 32770: in document 1
  const auto shard =
      TokenShard::Parse({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()}, "s");
  ASSERT_TRUE(shard.ok()) << shard.status();
  std::vector<int32_t> ids(40'000);
  EXPECT_TRUE(shard->Read(1, 0, 32'767, ids.data()).ok());
  EXPECT_TRUE(shard->Read(3, 29'000, 1000, ids.data()).ok());
  for (int attempt = 0; attempt < 2; ++attempt) {
    const absl::Status status = shard->Read(1, 0, 32'768, ids.data());
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
    EXPECT_THAT(std::string(status.message()), HasSubstr("in the 64 KiB from byte 65600"));
  }
}

// A hostile shard has right checksums.
std::string Forged(const std::function<void(std::string&)>& change, const Documents& documents) {
  std::string bytes = BytesOf(documents, 100);
  change(bytes);
  const auto sum = [&](size_t begin, size_t size) {
    return Raw(Crc32c({reinterpret_cast<const uint8_t*>(bytes.data()) + begin, size}));
  };
  const size_t data = 8;  // at most four tokens
  const size_t begins = 64 + data, blocks = bytes.size() - 8;
  bytes.replace(blocks, 4, sum(64, 8));
  bytes.replace(blocks + 4, 4, sum(begins, blocks + 4 - begins));
  bytes.replace(60, 4, sum(0, 60));
  return bytes;
}

TEST(TokenShard, HostileNumbersAreRefusedByRule) {
  struct Case {
    size_t at;
    std::string value;
    const char* message;
  };
  const Case cases[] = {
      {0, "X", "does not begin with TOROIDTS"},
      {8, Raw(uint32_t{2}), "version 2; this program reads 1"},
      {12, Raw(uint32_t{3}), "3 bytes per token"},
      {12, Raw(uint32_t{4}), "its header asks for"},
      {16, Raw(uint64_t{0}), "a vocabulary of 0"},
      {16, Raw(uint64_t{1} << 31), "a vocabulary of 2147483648"},
      {16, Raw(uint64_t{4}), "token 4 in a vocabulary of 4"},
      {24, Raw(uint64_t{5}), "5 documents and 4 tokens do not fit"},
      {24, Raw(uint64_t{1}), "its header asks for"},
      {32, Raw(~uint64_t{0}), "tokens do not fit"},
      {32, Raw(uint64_t{1} << 62), "tokens do not fit"},
      {32, Raw(uint64_t{3}), "what pads its tokens is not zero"},
      {72, Raw(int64_t{1}), "do not cover its tokens"},
      {80, Raw(int64_t{0}), "document 0 is empty"},
      {80, Raw(int64_t{5}), "document 1 is empty"},
      {80, Raw(int64_t{-1}), "document 0 is empty"},
      {88, Raw(int64_t{5}), "do not cover its tokens"},
  };
  const Documents documents = {{1, 2, 3}, {4}};
  EXPECT_TRUE(ReadAll(Forged([](std::string&) {}, documents)).ok());
  for (const Case& c : cases) {
    const auto read = ReadAll(Forged(
        [&](std::string& bytes) { bytes.replace(c.at, c.value.size(), c.value); }, documents));
    EXPECT_THAT(std::string(read.status().message()), HasSubstr(c.message)) << c.at;
  }
}

TEST(TokenShardWriter, LeavesNothingUntilItFinishes) {
  const TemporaryDirectory directory;
  {
    auto writer = TokenShardWriter::Create(directory.path() + "/s", 100, 0);
    ASSERT_TRUE(writer.ok());
    ASSERT_TRUE(writer->Add(std::vector<int32_t>{1, 2}).ok());
    EXPECT_EQ(writer->documents(), 1);
    EXPECT_EQ(writer->tokens(), 2);
    EXPECT_FALSE(std::filesystem::exists(directory.path() + "/s"));
  }
  EXPECT_TRUE(std::filesystem::is_empty(directory.path()));
}

TEST(TokenDataset, NumbersDocumentsThroughItsShards) {
  const TemporaryDirectory directory;
  const Documents documents = CountingDocuments({3, 1, 4, 1, 5, 9, 2});
  for (const int64_t per_shard : {1, 2, 3, 7}) {
    const auto set = MakeDataset(directory, documents, per_shard);
    EXPECT_EQ(set->documents(), 7);
    EXPECT_EQ(set->tokens(), 25);
    for (int64_t i = 0; i < 7; ++i) {
      ASSERT_EQ(set->Length(i), int64_t(documents[size_t(i)].size()));
      std::vector<int32_t> ids(size_t(set->Length(i)));
      ASSERT_TRUE(set->Read(i, 0, set->Length(i), ids.data()).ok());
      EXPECT_EQ(ids, documents[size_t(i)]);
    }
  }
}

TEST(TokenDataset, ItsFingerprintIsThatOfItsContent) {
  const TemporaryDirectory a, b;
  const uint64_t of_a = MakeDataset(a, {{1, 2}, {3}})->fingerprint();
  EXPECT_EQ(MakeDataset(b, {{1, 2}, {3}})->fingerprint(), of_a);
  EXPECT_NE(MakeDataset(b, {{1, 2}, {4}})->fingerprint(), of_a);
  EXPECT_NE(MakeDataset(b, {{1}, {2, 3}})->fingerprint(), of_a);
}

TEST(TokenDataset, SaysWhatIsWrong) {
  const TemporaryDirectory directory;
  const std::string empty = WriteShard(directory, "empty", {});
  const std::string one = WriteShard(directory, "one", {{1}});
  const std::string other = WriteShard(directory, "other", {{1}}, 300);
  const auto message = [](const std::vector<std::string>& paths) {
    return std::string(TokenDataset::Open(paths).status().message());
  };
  EXPECT_THAT(message({}), HasSubstr("the data set has no file"));
  EXPECT_THAT(message({empty}), HasSubstr("empty: the data set is empty"));
  EXPECT_THAT(message({empty, empty}), HasSubstr("and the shards after it: the data set is empty"));
  EXPECT_THAT(message({one, other}), HasSubstr("other: a vocabulary of 300, but"));
  EXPECT_THAT(message({one, directory.path() + "/none"}), HasSubstr("/none: No such file"));
  EXPECT_THAT(message({directory.Write("text", "Call me Ishmael.")}), HasSubstr("/text: no token"));
  EXPECT_EQ(message({empty, one}), "");
}

}  // namespace
}  // namespace toroid
