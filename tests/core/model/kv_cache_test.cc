// The pool of pages: what sequences share, what they copy, and that nothing is lost or held twice.
#include "core/model/kv_cache.h"

#include <gtest/gtest.h>

#include <numeric>
#include <set>

namespace toroid {
namespace {

class KvCacheTest : public ::testing::Test {
 protected:
  static constexpr int64_t kPage = 4;
  std::unique_ptr<Backend> ops_ = NewCpuBackend(DType::kF32, 1);
  Stream s_ = ops_->NewStream(false);
  KvCache cache_{*ops_, KvCacheShape{2, 1, 2, kPage, DType::kF32}};

  static std::vector<int32_t> Positions(int64_t count, int32_t first = 0) {
    std::vector<int32_t> positions(count);
    std::iota(positions.begin(), positions.end(), first);
    return positions;
  }
  // The next `count` tokens, whose keys are `first`, `first` + 1, .. and values minus that, times
  // the layer + 1.
  void Write(int64_t sequence, int64_t count, float first) {
    const std::vector<int64_t> rows = cache_.Append(sequence, count);
    for (int64_t layer = 0; layer < 2; ++layer) {
      for (int64_t i = 0; i < count; ++i) {
        const double value = double(layer + 1) * (first + double(i));
        ops_->Fill(s_, cache_.keys(layer).Rows(rows[i], 1), value);
        ops_->Fill(s_, cache_.values(layer).Rows(rows[i], 1), -value);
      }
    }
  }
  // The keys of layer 1 that row 0 sees, halved, after a look at the values.
  std::vector<float> Read(int64_t sequence) {
    cache_.Bind(s_, 0, sequence);
    ops_->Synchronize(s_);
    const int64_t length = cache_.length(sequence);
    const KvView view = cache_.View(1, 0, length);
    std::vector<float> keys;
    for (int64_t i = 0; i < length; ++i) {
      const int64_t row = view.page_table.as<int32_t>()[i / kPage] * kPage + i % kPage;
      keys.push_back(view.k.as<float>()[row * 2] / 2);
      EXPECT_EQ(view.v.as<float>()[row * 2 + 1], -2 * keys.back());
    }
    return keys;
  }
};

TEST_F(KvCacheTest, AForkSharesFullPagesAndCopiesTheLast) {
  for (const uint64_t shuffle : {0, 7}) {
    // 10 tokens: two full pages shared, the third of 10 .. 12 and a fourth for each.
    ASSERT_TRUE(cache_.Reserve({2 + 3 * 2, 2, 4}, shuffle).ok());
    const int64_t a = cache_.Begin(Positions(16));
    Write(a, 10, 0);
    const int64_t b = cache_.Fork(s_, a), c = cache_.Fork(s_, a);
    EXPECT_EQ(cache_.peak_bytes_in_use(), 8 * cache_.page_bytes());
    Write(b, 6, 100);
    Write(a, 6, 200);
    Write(c, 1, 300);
    EXPECT_EQ(Read(a),
              (std::vector<float>{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 200, 201, 202, 203, 204, 205}));
    EXPECT_EQ(Read(b),
              (std::vector<float>{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 100, 101, 102, 103, 104, 105}));
    EXPECT_EQ(Read(c), (std::vector<float>{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 300}));
    // The shared pages stay until the last has ended; what one had for itself is free at once.
    cache_.End(a);
    const int64_t d = cache_.Begin(Positions(8, 50));
    Write(d, 8, 400);
    EXPECT_EQ(Read(b)[9], 9);
    EXPECT_EQ(Read(c).back(), 300);
    cache_.End(b);
    cache_.End(d);
    EXPECT_EQ(Read(c), (std::vector<float>{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 300}));
    cache_.End(c);
    const int64_t all = cache_.Begin(Positions(16)), rest = cache_.Begin(Positions(16));
    EXPECT_NE(all, rest);
    EXPECT_EQ(cache_.peak_bytes_in_use(), 8 * cache_.page_bytes());
    cache_.EndAll();
    EXPECT_EQ(cache_.peak_bytes_in_use(), 0);
  }
}

TEST_F(KvCacheTest, AForkAtTheEndOfAPageCopiesNothing) {
  ASSERT_TRUE(cache_.Reserve({2 + 2, 1, 3}).ok());
  const int64_t a = cache_.Begin(Positions(9));
  Write(a, 8, 0);
  const int64_t b = cache_.Fork(s_, a);
  EXPECT_EQ(cache_.peak_bytes_in_use(), 4 * cache_.page_bytes());
  Write(b, 1, 100);
  Write(a, 1, 200);
  EXPECT_EQ(Read(a).back(), 200);
  EXPECT_EQ(Read(b).back(), 100);
  cache_.EndAll();
}

TEST_F(KvCacheTest, ARowReadsTheSequenceThatItIsBoundTo) {
  ASSERT_TRUE(cache_.Reserve({4, 2, 2}).ok());
  const int64_t a = cache_.Begin(Positions(8)), b = cache_.Begin(Positions(5, 90));
  Write(a, 8, 0);
  Write(b, 5, 50);
  EXPECT_EQ(Read(a)[7], 7);
  EXPECT_EQ(Read(b)[4], 54);
  EXPECT_EQ(cache_.View(0, 0, 5).positions.as<int32_t>()[4], 94);
  EXPECT_EQ(Read(a)[7], 7);
  EXPECT_EQ(cache_.View(0, 0, 8).positions.as<int32_t>()[7], 7);
  cache_.EndAll();
}

TEST_F(KvCacheTest, MemoryIsThePagesAndTheTablesOfAllRows) {
  const auto bytes = [&](int64_t pages, int64_t rows, int64_t row_pages) {
    return pages * cache_.page_bytes() + rows * row_pages * (kPage + 1) * 4;
  };
  ASSERT_TRUE(cache_.Reserve({5, 3, 2}).ok());
  EXPECT_EQ(cache_.page_bytes(), 2 * 2 * kPage * 2 * 4);
  EXPECT_EQ(cache_.bytes_reserved(), bytes(5, 3, 2));
  const void* where = cache_.keys(0).data;
  ASSERT_TRUE(cache_.Reserve({4, 1, 2}).ok());  // enough of everything: it stays, and its tables
  EXPECT_EQ(cache_.keys(0).data, where);
  EXPECT_EQ(cache_.bytes_reserved(), bytes(5, 3, 2));
  ASSERT_TRUE(cache_.Reserve({2, 1, 4}).ok());
  EXPECT_EQ(cache_.bytes_reserved(), bytes(5, 3, 4));
  cache_.Release();
  EXPECT_EQ(cache_.bytes_reserved(), 0);
  ASSERT_TRUE(cache_.Reserve({1, 1, 1}).ok());
  EXPECT_EQ(cache_.bytes_reserved(), bytes(1, 1, 1));
}

TEST_F(KvCacheTest, PagesAreDealtOnceInAnyOrder) {
  std::set<std::vector<int64_t>> orders;
  for (const uint64_t shuffle : {0, 1, 2}) {
    ASSERT_TRUE(cache_.Reserve({8, 1, 8}, shuffle).ok());
    const std::vector<int64_t> rows = cache_.Append(cache_.Begin(Positions(32)), 32);
    EXPECT_EQ(std::set<int64_t>(rows.begin(), rows.end()).size(), 32u);
    if (shuffle == 0) {
      EXPECT_TRUE(std::is_sorted(rows.begin(), rows.end()));
    }
    orders.insert(rows);
    cache_.EndAll();
  }
  EXPECT_EQ(orders.size(), 3u);
}

}  // namespace
}  // namespace toroid
