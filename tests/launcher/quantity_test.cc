#include "launcher/quantity.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace toroid {
namespace {

TEST(Quantity, CountsReadSuffixesAsModelCardsDo) {
  EXPECT_EQ(ParseCount("0").value(), 0);
  EXPECT_EQ(ParseCount("4096").value(), 4096);
  EXPECT_EQ(ParseCount("32k").value(), 32768);
  EXPECT_EQ(ParseCount("32Ki").value(), 32768);
  EXPECT_EQ(ParseCount("1M").value(), 1048576);
  EXPECT_EQ(ParseCount("25.6k").value(), 25600);
}

TEST(Quantity, CountsThatAreNoneNameTheText) {
  for (const char* text : {"", "k", "-1", "1.5", "1kk", "0x10", "1e3", "9999999999999999999", " 1",
                           "1.2.3k", "nan", "32kB"}) {
    const auto count = ParseCount(text);
    ASSERT_FALSE(count.ok()) << text;
    EXPECT_EQ(count.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(count.status().message()), testing::HasSubstr(text));
  }
}

TEST(Quantity, BytesKnowBothKindsOfUnits) {
  EXPECT_EQ(ParseBytes("512").value(), 512);
  EXPECT_EQ(ParseBytes("512B").value(), 512);
  EXPECT_EQ(ParseBytes("64k").value(), 65536);
  EXPECT_EQ(ParseBytes("8GiB").value(), int64_t{8} << 30);
  EXPECT_EQ(ParseBytes("1.5GiB").value(), int64_t{3} << 29);
  EXPECT_EQ(ParseBytes("2GB").value(), 2000000000);
  EXPECT_FALSE(ParseBytes("8GiBs").ok());
  EXPECT_FALSE(ParseBytes("GiB").ok());
}

TEST(Quantity, TimesAddTheirParts) {
  EXPECT_DOUBLE_EQ(ParseSeconds("500ms").value(), 0.5);
  EXPECT_DOUBLE_EQ(ParseSeconds("60").value(), 60);
  EXPECT_DOUBLE_EQ(ParseSeconds("2.5m").value(), 150);
  EXPECT_DOUBLE_EQ(ParseSeconds("1h30m").value(), 5400);
  EXPECT_DOUBLE_EQ(ParseSeconds("0").value(), 0);
  for (const char* text : {"", "s", "-1s", "5 s", "1h30q", "1e9x"}) {
    EXPECT_FALSE(ParseSeconds(text).ok()) << text;
  }
}

TEST(Quantity, RealsSeedsAndIntegersAreWholeWords) {
  EXPECT_DOUBLE_EQ(ParseReal("-1e-4").value(), -1e-4);
  EXPECT_FALSE(ParseReal("inf").ok());
  EXPECT_FALSE(ParseReal("1x").ok());
  EXPECT_EQ(ParseSeed("18446744073709551615").value(), UINT64_MAX);
  EXPECT_FALSE(ParseSeed("-1").ok());
  EXPECT_EQ(ParseInteger("-7").value(), -7);
  EXPECT_FALSE(ParseInteger("7k").ok());
}

TEST(Quantity, PeopleReadShortTexts) {
  EXPECT_EQ(FormatBytes(640), "640 B");
  EXPECT_EQ(FormatBytes(1.5 * (1 << 30)), "1.5 GiB");
  EXPECT_EQ(FormatCount(871), "871");
  EXPECT_EQ(FormatCount(12345), "12.3 k");
  EXPECT_EQ(FormatSeconds(0.42), "0.4s");
  EXPECT_EQ(FormatSeconds(200), "3m20s");
  EXPECT_EQ(FormatSeconds(3720), "1h02m");
}

}  // namespace
}  // namespace toroid
