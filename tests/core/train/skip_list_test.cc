#include "core/train/skip_list.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace toroid {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using Window = SkipList::Window;

TEST(SkipList, RunsJumpOverItsWindows) {
  const SkipList list = *SkipList::Parse("10-20,25-30");
  EXPECT_EQ(SkipList().At(7), 7);
  EXPECT_EQ(list.At(9), 9);
  EXPECT_EQ(list.At(10), 20);
  EXPECT_EQ(list.At(14), 24);
  EXPECT_EQ(list.At(15), 30);
  EXPECT_EQ(list.At(100), 115);
}

TEST(SkipList, KeepsWindowsApartInOrderAndMerged) {
  SkipList list;
  list.Skip(20, 30);
  list.Skip(0, 10);
  list.Skip(5, 5);
  EXPECT_THAT(list.windows(), ElementsAre(Window{0, 10}, Window{20, 30}));
  list.Skip(10, 12);
  EXPECT_THAT(list.windows(), ElementsAre(Window{0, 12}, Window{20, 30}));
  list.Skip(11, 25);
  EXPECT_THAT(list.windows(), ElementsAre(Window{0, 30}));
}

TEST(SkipList, LeavesOutWhatTheRunWouldHaveSeen) {
  // Against the definition: the run's tokens written out, and some of them struck.
  for (int64_t begin = 0; begin < 20; ++begin) {
    for (int64_t end = begin; end < 20; ++end) {
      SkipList list = *SkipList::Parse("3-5,9-10");
      std::vector<int64_t> expected;
      for (int64_t v = 0; v < 40; ++v) {
        if (v < begin || v >= end) expected.push_back(list.At(v));
      }
      list.SkipOfRun(begin, end);
      for (size_t v = 0; v < expected.size(); ++v) ASSERT_EQ(list.At(int64_t(v)), expected[v]);
    }
  }
}

TEST(SkipList, IsWrittenAsItIsRead) {
  for (const char* text : {"", "0-1", "4096-8192,65536-131072"}) {
    const auto list = SkipList::Parse(text);
    ASSERT_TRUE(list.ok()) << list.status();
    EXPECT_EQ(list->ToString(), text);
  }
  EXPECT_EQ(SkipList::Parse("5-9,0-5")->ToString(), "0-9");
  for (const char* text : {"5", "5-", "-5", "5-5", "6-5", "1-2-3", "1-2,", "a-b",
                           "1-9999999999999999999", "1-9000000000000000000"}) {
    EXPECT_THAT(std::string(SkipList::Parse(text).status().message()),
                HasSubstr("is no window of tokens to skip"))
        << text;
  }
}

}  // namespace
}  // namespace toroid
