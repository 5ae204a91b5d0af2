#include "core/model/head_layout.h"

#include <gtest/gtest.h>

#include <set>

namespace toroid {
namespace {

struct Shape {
  int64_t query_heads, kv_heads;
};

TEST(HeadLayout, EveryQueryHeadIsHeldOnceAndReadsItsOwnKvHead) {
  for (const Shape shape : {Shape{9, 3}, Shape{8, 8}, Shape{6, 1}, Shape{32, 4}}) {
    for (int64_t size = 1; size <= shape.query_heads; ++size) {
      int64_t next = 0;
      std::vector<int64_t> owners(shape.kv_heads, 0);
      for (int64_t rank = 0; rank < size; ++rank) {
        const HeadLayout layout(shape.query_heads, shape.kv_heads, rank, size);
        EXPECT_EQ(layout.query_begin(), next);
        EXPECT_GE(layout.query_count(), 1);
        next += layout.query_count();
        ASSERT_EQ(int64_t(layout.kv_index().size()), layout.query_count());
        std::set<int64_t> read;
        for (int64_t i = 0; i < layout.query_count(); ++i) {
          const int64_t kv = layout.kv_begin() + layout.kv_index()[i];
          EXPECT_EQ(kv, (layout.query_begin() + i) * shape.kv_heads / shape.query_heads);
          read.insert(kv);
        }
        EXPECT_EQ(int64_t(read.size()), layout.kv_count()) << "a KV head is held that none reads";
        for (int64_t i = 0; i < layout.kv_count(); ++i) {
          owners[layout.kv_begin() + i] += layout.owns_kv(i);
        }
      }
      EXPECT_EQ(next, shape.query_heads);
      for (const int64_t count : owners) EXPECT_EQ(count, 1) << "size " << size;
    }
  }
}

// Negative control: with these numbers H / G per rank would be wrong, so the test above can fail.
TEST(HeadLayout, UnevenSplitSharesKvHeads) {
  const HeadLayout first(9, 3, 0, 2), second(9, 3, 1, 2);
  EXPECT_EQ(first.query_count(), 4);
  EXPECT_EQ(second.query_count(), 5);
  EXPECT_EQ(first.kv_index(), (std::vector<int32_t>{0, 0, 0, 1}));
  EXPECT_EQ(second.kv_index(), (std::vector<int32_t>{0, 0, 1, 1, 1}));
  EXPECT_TRUE(first.owns_kv(1));
  EXPECT_FALSE(second.owns_kv(0));
  EXPECT_TRUE(second.owns_kv(1));
}

TEST(HeadLayoutDeathTest, MoreRanksThanHeads) {
  EXPECT_DEATH(HeadLayout(4, 2, 0, 5), "size <= query_heads \\(5 vs 4\\)");
}

}  // namespace
}  // namespace toroid
