#include "parallel/shared_bytes.h"

#include <gtest/gtest.h>

#include <cstring>
#include <optional>
#include <thread>
#include <vector>

namespace toroid {
namespace {

constexpr size_t kLarge = 3 << 20;

SharedBytes Filled(const BytePool& pool, size_t size, char letter) {
  SharedBytes bytes = pool.Take(size);
  std::memset(bytes.mutable_data(), letter, size);
  return bytes;
}

TEST(SharedBytes, ShareAndOutliveWhoMadeThem) {
  SharedBytes text("abcdef"), part;
  {
    const SharedBytes copy = text;
    EXPECT_EQ(copy.data(), text.data());
    part = copy.Part(2, 100);
  }
  text = SharedBytes();
  EXPECT_EQ(part, SharedBytes("cdef"));
  EXPECT_NE(part, SharedBytes("cdeg"));
  EXPECT_EQ(part.Part(1, 2), SharedBytes("de"));
  EXPECT_TRUE(part.Part(4, 1).empty());
  EXPECT_TRUE(text.empty());
}

TEST(SharedBytesDeathTest, WhatIsSharedIsNotWritten) {
  SharedBytes bytes("abc");
  bytes.mutable_data()[0] = 'x';
  EXPECT_EQ(bytes, SharedBytes("xbc"));
  const SharedBytes other = bytes;
  EXPECT_DEATH(bytes.mutable_data(), "use_count");
}

TEST(BytePool, StepsThatAreAlikeAskTheSystemOnce) {
  const BytePool pool;
  for (int step = 0; step < 5; ++step) {
    std::vector<SharedBytes> messages;
    for (size_t i = 0; i < 6; ++i) {
      messages.push_back(Filled(pool, kLarge + i % 2 * (20 << 20), char('a' + i)));
    }
    for (size_t i = 0; i < 6; ++i) EXPECT_EQ(messages[i].data()[kLarge - 1], char('a' + i));
    EXPECT_EQ(pool.allocations(), 6) << step;
  }
  // Control: what is held on to is not used again.
  const SharedBytes held = Filled(pool, kLarge, 'h');
  std::vector<SharedBytes> messages;
  for (int i = 0; i < 3; ++i) messages.push_back(Filled(pool, kLarge, 'n'));
  EXPECT_EQ(pool.allocations(), 7);
  EXPECT_EQ(held.data()[0], 'h');
}

TEST(BytePool, HoldsNoMoreThanWasInUseAtOnce) {
  const BytePool pool;
  size_t most = 0;
  for (size_t step = 1; step <= 40; ++step) {  // other sizes each time
    std::vector<SharedBytes> messages;
    for (size_t i = 0; i < 3; ++i)
      messages.push_back(Filled(pool, step * kLarge / 8 + (64 << 10), 'x'));
    most = std::max(most, pool.held_bytes());
    EXPECT_LE(pool.held_bytes(), 3 * (step * kLarge / 8 + (64 << 10) + (2 << 20)));
  }
  EXPECT_LE(pool.held_bytes(), most);
  EXPECT_GT(pool.held_bytes(), 0u);
}

TEST(BytePool, GivesUpWhatNobodyTakes) {
  const BytePool pool;
  { const SharedBytes once = Filled(pool, 8 * kLarge, 'x'); }
  EXPECT_GE(pool.held_bytes(), 8 * kLarge);
  for (int i = 0; i < 1100; ++i) (void)pool.Take(70 << 10);
  EXPECT_LT(pool.held_bytes(), kLarge);
}

TEST(BytePool, WhatItGaveMayOutliveItAndComeBackFromAnyThread) {
  std::optional<BytePool> pool(std::in_place);
  SharedBytes bytes = Filled(*pool, kLarge, 'y');
  std::thread([&] {
    for (int i = 0; i < 50; ++i) (void)Filled(*pool, kLarge, 'z');
  }).join();
  std::thread other([&, mine = *pool] {
    for (int i = 0; i < 50; ++i) (void)Filled(mine, kLarge, 'z');
  });
  pool.reset();
  other.join();
  EXPECT_EQ(bytes.data()[kLarge - 1], 'y');
}

}  // namespace
}  // namespace toroid
