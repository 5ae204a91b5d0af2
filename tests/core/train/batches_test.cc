#include "core/train/batches.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <thread>

#include "core/check.h"
#include "core/io/fingerprint.h"
#include "core/train/permutation.h"
#include "tests/support/token_sets.h"

namespace toroid {
namespace {

using testing::Each;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr int32_t kEndOfText = 60'000;

// 1 to 40 tokens each.
std::vector<int64_t> SomeLengths(int64_t documents) {
  std::vector<int64_t> lengths;
  for (int64_t i = 0; i < documents; ++i) lengths.push_back(1 + i * i * 7 % 40);
  return lengths;
}

BatchOptions Options(int64_t sequence_length, int64_t packs) {
  BatchOptions options;
  options.list.seed = 11;
  options.sequence_length = sequence_length;
  options.batch_tokens = {{{0, sequence_length * packs}}};
  return options;
}

std::unique_ptr<const Batches> Make(std::shared_ptr<const TokenDataset> set, BatchOptions options) {
  auto batches = Batches::Create(std::move(set), std::move(options));
  TOROID_CHECK_MSG(batches.ok(), batches.status().ToString());
  return *std::move(batches);
}

std::vector<Pack> ReadBatch(const Batches& batches, int64_t step) {
  const auto batch = batches.At(step);
  TOROID_CHECK_MSG(batch.ok(), batch.status().ToString());
  std::vector<Pack> packs;
  for (int64_t i = 0; i < batch->packs; ++i) {
    auto pack = batches.Read(batch->first_pack + i);
    TOROID_CHECK_MSG(pack.ok(), pack.status().ToString());
    EXPECT_EQ(batches.DocumentLengths(batch->first_pack + i), pack->document_lengths);
    packs.push_back(*std::move(pack));
  }
  int64_t labels = 0;
  for (const Pack& pack : packs) {
    labels +=
        std::count_if(pack.labels.begin(), pack.labels.end(), [](int32_t id) { return id >= 0; });
  }
  EXPECT_EQ(batches.Labels(*batch), labels);
  return packs;
}

uint64_t HashOf(const std::vector<Pack>& packs) {
  FingerprintHash hash;
  const auto numbers = [&](const auto& values) {
    hash.Number(int64_t(values.size()));
    for (const auto value : values) hash.Number(value);
  };
  for (const Pack& pack : packs) {
    numbers(pack.ids);
    numbers(pack.labels);
    numbers(pack.document_lengths);
  }
  return hash.value();
}

bool operator==(const Pack& a, const Pack& b) {
  return a.ids == b.ids && a.labels == b.labels && a.document_lengths == b.document_lengths;
}

// The definition, written out: a long enough piece of the list, the skipped parts struck from it,
// cut into packs.
std::vector<Pack> WrittenOut(const Documents& documents, const BatchOptions& options,
                             int64_t packs) {
  struct Token {
    int32_t id;
    bool last;
  };
  std::vector<Token> list;
  const int64_t length = options.sequence_length;
  for (int64_t epoch = 0; options.list.epochs == 0 || epoch < options.list.epochs; ++epoch) {
    if (int64_t(list.size()) > (packs + 20) * length) break;
    const KeyedPermutation order(int64_t(documents.size()), options.list.seed, uint64_t(epoch));
    for (int64_t i = 0; i < int64_t(documents.size()); ++i) {
      auto document = documents[size_t(options.list.shuffle ? order.At(i) : i)];
      if (options.list.end_of_text >= 0) document.push_back(options.list.end_of_text);
      for (const int32_t id : document) list.push_back({id, false});
      list.back().last = true;
    }
  }
  std::vector<Pack> result;
  for (int64_t p = 0; p < packs; ++p) {
    const size_t begin = size_t(options.skipped.At(p * length));
    if (begin >= list.size()) break;
    Pack pack;
    const size_t end = std::min(list.size(), begin + size_t(length));
    int64_t run = 0;
    for (size_t i = begin; i < end; ++i) {
      pack.ids.push_back(list[i].id);
      const bool predicts = i + 1 < list.size() && (options.join_documents || !list[i].last);
      pack.labels.push_back(predicts ? list[i + 1].id : -1);
      ++run;
      if (i + 1 == end || (list[i].last && !options.join_documents)) {
        pack.document_lengths.push_back(run);
        run = 0;
      }
    }
    result.push_back(std::move(pack));
  }
  return result;
}

TEST(Batches, AreTheDefinitionWrittenOut) {
  const TemporaryDirectory directory;
  const Documents documents = CountingDocuments(SomeLengths(50));
  const auto set = MakeDataset(directory, documents, 7);
  for (const int64_t length : {1, 2, 7, 64, 5000}) {
    for (const int32_t end_of_text : {-1, kEndOfText}) {
      for (const int64_t epochs : {0, 1, 3}) {
        for (const int variant : {0, 1, 2, 3}) {
          BatchOptions options = Options(length, 1);
          options.list.end_of_text = end_of_text;
          options.list.epochs = epochs;
          options.list.shuffle = variant != 1;
          options.join_documents = variant == 2;
          if (variant == 3 && length < 5000) {
            options.skipped.Skip(0, length);
            options.skipped.Skip(5 * length, 9 * length);
          }
          const auto expected = WrittenOut(documents, options, 60);
          const auto batches = Make(set, options);
          if (epochs > 0 && expected.size() < 60) {
            EXPECT_EQ(batches->steps(), int64_t(expected.size()));
          }
          for (size_t p = 0; p < expected.size(); ++p) {
            const std::vector<Pack> packs = ReadBatch(*batches, int64_t(p));  // of one pack each
            ASSERT_TRUE(packs[0] == expected[p])
                << "length " << length << " end " << end_of_text << " epochs " << epochs
                << " variant " << variant << " pack " << p;
          }
        }
      }
    }
  }
}

TEST(Batches, EveryTokenOfAnEpochIsThereOnce) {
  const TemporaryDirectory directory;
  const Documents documents = CountingDocuments(SomeLengths(3000));  // several sums
  const auto set = MakeDataset(directory, documents, 700);
  BatchOptions options = Options(64, 5);
  options.list.epochs = 2;
  const auto batches = Make(set, options);
  std::vector<int32_t> ids, labels;
  for (int64_t step = 0; step < *batches->steps(); ++step) {
    for (const Pack& pack : ReadBatch(*batches, step)) {
      ids.insert(ids.end(), pack.ids.begin(), pack.ids.end());
      labels.insert(labels.end(), pack.labels.begin(), pack.labels.end());
    }
  }
  const int64_t tokens = set->tokens();
  ASSERT_EQ(int64_t(ids.size()), 2 * tokens);
  std::vector<int64_t> count(size_t(tokens), 0);
  for (int64_t i = 0; i < tokens; ++i) ++count[size_t(ids[size_t(i)])];
  EXPECT_THAT(count, Each(1));
  EXPECT_NE(std::vector<int32_t>(ids.begin(), ids.begin() + tokens),
            std::vector<int32_t>(ids.begin() + tokens, ids.end()))
      << "the second epoch has an order of its own";
  // A token predicts the one behind it; of each document only the last predicts none.
  int64_t none = 0;
  for (size_t i = 0; i < ids.size(); ++i) {
    if (labels[i] < 0) {
      ++none;
    } else {
      ASSERT_EQ(labels[i], ids[i] + 1);
    }
  }
  EXPECT_EQ(none, 2 * 3000);
}

TEST(Batches, DoNotDependOnWhoReadsAndInWhatOrder) {
  const TemporaryDirectory directory;
  const auto set = MakeDataset(directory, CountingDocuments(SomeLengths(2000)), 300);
  const BatchOptions options = Options(32, 12);
  const auto alone = Make(set, options);
  std::vector<uint64_t> expected;
  for (int64_t step = 0; step < 40; ++step) expected.push_back(HashOf(ReadBatch(*alone, step)));
  // Readers of one object, each its own packs, from the last step to the first.
  for (const int64_t readers : {2, 3, 8}) {
    const auto shared = Make(set, options);
    std::vector<std::vector<Pack>> steps(40, std::vector<Pack>(12));
    std::vector<std::thread> threads;
    for (int64_t reader = 0; reader < readers; ++reader) {
      threads.emplace_back([&, reader] {
        for (int64_t step = 39; step >= 0; --step) {
          for (int64_t i = reader; i < 12; i += readers) {
            steps[size_t(step)][size_t(i)] = *shared->Read(shared->At(step)->first_pack + i);
          }
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    for (size_t step = 0; step < 40; ++step) EXPECT_EQ(HashOf(steps[step]), expected[step]);
  }
  // A run that starts at any step.
  for (int64_t step = 0; step < 40; ++step) {
    EXPECT_EQ(HashOf(ReadBatch(*Make(set, options), step)), expected[size_t(step)]) << step;
  }
  // Control: the hash sees another seed.
  BatchOptions other = options;
  other.list.seed = 12;
  EXPECT_NE(HashOf(ReadBatch(*Make(set, other), 0)), expected[0]);
}

// What a seed means must not change: a checkpoint of today goes on tomorrow.
TEST(Batches, ArePinned) {
  const TemporaryDirectory directory;
  const auto set = MakeDataset(directory, CountingDocuments(SomeLengths(500)), 77);
  BatchOptions options = Options(48, 4);
  options.list.end_of_text = kEndOfText;
  const auto batches = Make(set, options);
  EXPECT_EQ(HashOf(ReadBatch(*batches, 0)), 16086474497359848412u);
  EXPECT_EQ(HashOf(ReadBatch(*batches, 1000)), 16576295457091797526u);
}

TEST(Batches, FollowTheRampAndTheSkipList) {
  const TemporaryDirectory directory;
  const auto set = MakeDataset(directory, CountingDocuments(SomeLengths(100)));
  BatchOptions options = Options(10, 2);
  options.batch_tokens.stages.push_back({5, 40});
  options.skipped.Skip(60, 100);
  const auto batches = Make(set, options);
  EXPECT_EQ(batches->At(2)->position, 40);
  EXPECT_EQ(batches->At(3)->position, 100);
  EXPECT_EQ(batches->At(4)->packs, 2);
  EXPECT_EQ(batches->At(5)->packs, 4);
  EXPECT_EQ(batches->At(6)->first_pack, 14);
  EXPECT_EQ(batches->At(6)->position, 180);
  EXPECT_FALSE(batches->steps().has_value());
  EXPECT_EQ(Make(set, Options(99, 1))->list_fingerprint(), batches->list_fingerprint());
  BatchOptions other_seed = options;
  other_seed.list.seed = 12;
  EXPECT_NE(Make(set, other_seed)->list_fingerprint(), batches->list_fingerprint());
  EXPECT_TRUE(batches->CheckPosition(6, 180).ok());
  const absl::Status other = batches->CheckPosition(6, 140);
  EXPECT_EQ(other.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(other.message()), HasSubstr("checkpoint stands at 140"));
}

TEST(Batches, TheLastOneIsRagged) {
  const TemporaryDirectory directory;
  const auto set = MakeDataset(directory, CountingDocuments({30, 3}));
  BatchOptions options = Options(8, 2);
  options.list.epochs = 1;
  options.list.shuffle = false;
  const auto batches = Make(set, options);
  EXPECT_EQ(batches->steps(), 3);
  EXPECT_EQ(batches->At(1)->tokens, 16);
  EXPECT_EQ(batches->At(2)->tokens, 1);
  EXPECT_EQ(batches->At(2)->packs, 1);
  const auto last = ReadBatch(*batches, 2);
  EXPECT_THAT(last[0].ids, ElementsAre(32));
  EXPECT_THAT(last[0].labels, ElementsAre(-1));
  EXPECT_THAT(last[0].document_lengths, ElementsAre(1));
  const auto pack = ReadBatch(*batches, 1)[1];
  EXPECT_THAT(pack.ids, ElementsAre(24, 25, 26, 27, 28, 29, 30, 31));
  EXPECT_THAT(pack.labels, ElementsAre(25, 26, 27, 28, 29, -1, 31, 32)) << "32 is in the next pack";
  EXPECT_THAT(pack.document_lengths, ElementsAre(6, 2));
  const auto beyond = batches->At(3);
  EXPECT_EQ(beyond.status().code(), absl::StatusCode::kOutOfRange);
  EXPECT_THAT(std::string(beyond.status().message()), HasSubstr("the data ends with step 3"));
}

TEST(Batches, DocumentsOfOneToken) {
  const TemporaryDirectory directory;
  const auto set = MakeDataset(directory, CountingDocuments(std::vector<int64_t>(20, 1)));
  BatchOptions options = Options(5, 1);
  const Pack pack = ReadBatch(*Make(set, options), 2)[0];
  EXPECT_THAT(pack.labels, Each(-1));
  EXPECT_THAT(pack.document_lengths, ElementsAre(1, 1, 1, 1, 1));
  options.list.end_of_text = kEndOfText;
  const Pack ended = ReadBatch(*Make(set, options), 2)[0];
  EXPECT_THAT(ended.labels, ElementsAre(kEndOfText, -1, kEndOfText, -1, kEndOfText));
  options.join_documents = true;
  const Pack joined = ReadBatch(*Make(set, options), 2)[0];
  EXPECT_EQ(joined.labels[1], joined.ids[2]);
  EXPECT_THAT(joined.document_lengths, ElementsAre(5));
}

TEST(Batches, OneTokenIsADataSet) {
  const TemporaryDirectory directory;
  const auto set = MakeDataset(directory, {{7}});
  const auto batches = Make(set, Options(3, 1));
  EXPECT_THAT(ReadBatch(*batches, 5)[0].ids, ElementsAre(7, 7, 7));
  BatchOptions once = Options(3, 1);
  once.list.epochs = 1;
  EXPECT_THAT(ReadBatch(*Make(set, once), 0)[0].ids, ElementsAre(7));
}

TEST(Batches, WhatDoesNotFitIsNamed) {
  const TemporaryDirectory directory;
  const auto set = MakeDataset(directory, CountingDocuments({30, 3}), 3, 100);
  const auto message = [&](auto change) {
    BatchOptions options = Options(8, 2);
    change(options);
    return std::string(Batches::Create(set, options).status().message());
  };
  EXPECT_THAT(message([](auto& o) { o.batch_tokens.stages[0].tokens = 20; }), HasSubstr("whole"));
  EXPECT_THAT(message([](auto& o) { o.list.end_of_text = 100; }),
              HasSubstr("end of text: token 100 in a vocabulary of 100"));
  EXPECT_THAT(message([](auto& o) { o.list.epochs = -1; }), HasSubstr("epochs: -1"));
  EXPECT_THAT(message([](auto& o) { o.skipped.Skip(8, 20); }),
              HasSubstr("8-20 are no whole sequences of 8"));
  EXPECT_THAT(message([](auto& o) {
                o.list.epochs = 1;
                o.skipped.Skip(0, 40);
              }),
              HasSubstr("the whole of the data"));
}

TEST(Batches, ADamagedShardIsOneError) {
  const TemporaryDirectory directory;
  const std::string path = WriteShard(directory, "s", CountingDocuments({30, 3}));
  std::string bytes = *ReadTextFile(path, 1000);
  bytes[70] = char(bytes[70] ^ 1);
  directory.Write("s", bytes);
  auto set = TokenDataset::Open({path});
  ASSERT_TRUE(set.ok());
  const auto batches = Make(std::make_shared<const TokenDataset>(*std::move(set)), Options(8, 2));
  const auto pack = batches->Read(0);
  EXPECT_EQ(pack.status().code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(pack.status().message()), HasSubstr("/s: the tokens are damaged"));
}

TEST(MicroBatches, CoverABatchOnEveryMesh) {
  for (const int64_t packs : {1, 2, 5, 12, 13}) {
    for (const int64_t data : {1, 2, 3, 8}) {
      for (const int64_t per_rank : {1, 2, 5}) {
        int64_t next = 0;
        const int64_t count = MicroBatches(packs, data, per_rank);
        for (int64_t m = 0; m < count; ++m) {
          const Range range = MicroBatch(packs, data, per_rank, m);
          EXPECT_EQ(range.begin, next);
          EXPECT_EQ(range.begin % data, 0) << "pack i of the batch is rank i mod data's";
          EXPECT_GT(range.size(), 0);
          EXPECT_LE(range.size(), data * per_rank);
          next = range.end;
        }
        EXPECT_EQ(next, packs);
      }
    }
  }
}

}  // namespace
}  // namespace toroid
