#include "core/io/crc32c.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace toroid {
namespace {

uint32_t Of(const std::string& text, uint32_t before = 0) {
  return Crc32c({reinterpret_cast<const uint8_t*>(text.data()), text.size()}, before);
}

// The examples of RFC 3720, section B.4, and the check value of the CRC catalogue.
TEST(Crc32c, KnownAnswers) {
  EXPECT_EQ(Of(""), 0u);
  EXPECT_EQ(Of("123456789"), 0xe3069283u);
  EXPECT_EQ(Of(std::string(32, '\0')), 0x8a9136aau);
  EXPECT_EQ(Of(std::string(32, '\xff')), 0x62a8ab43u);
  std::string ascending;
  for (char c = 0; c < 32; ++c) ascending += c;
  EXPECT_EQ(Of(ascending), 0x46dd794eu);
}

TEST(Crc32c, GoesOnFromAnyPlace) {
  std::string text;
  for (int i = 0; i < 100; ++i) text += char(i * 37);
  for (size_t cut = 0; cut <= text.size(); ++cut) {
    EXPECT_EQ(Of(text.substr(cut), Of(text.substr(0, cut))), Of(text)) << cut;
  }
}

TEST(Crc32c, TablesAndInstructionAgree) {
  if (!__builtin_cpu_supports("sse4.2")) GTEST_SKIP() << "no SSE 4.2";
  std::vector<uint8_t> bytes;
  for (int i = 0; i < 300; ++i) {
    const uint32_t by_tables = Crc32cByTables(bytes, 77);
    EXPECT_EQ(by_tables, Crc32cByInstruction(bytes, 77)) << i;
    bytes.push_back(uint8_t(i * 151 + (i >> 3)));
    EXPECT_NE(Crc32cByInstruction(bytes, 77), by_tables) << i;
  }
}

// Long texts are read in three lanes of 1 KiB.
TEST(Crc32c, TablesAndInstructionAgreeOfLongTexts) {
  if (!__builtin_cpu_supports("sse4.2")) GTEST_SKIP() << "no SSE 4.2";
  std::vector<uint8_t> bytes(20000);
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = uint8_t(i * 151 + (i >> 7));
  for (size_t size = 3060; size < bytes.size(); size = size * 9 / 8 + size % 7) {
    for (size_t begin : {0, 1, 5}) {
      absl::Span<uint8_t> text(bytes.data() + begin, size - begin);
      const uint32_t whole = Crc32cByInstruction(text, 77);
      EXPECT_EQ(Crc32cByTables(text, 77), whole) << size << " from " << begin;
      for (size_t i = size % 11; i < text.size(); i += 997) {  // negative control: of every lane
        text[i] ^= 4;
        EXPECT_NE(Crc32cByInstruction(text, 77), whole) << i << " of " << size;
        text[i] ^= 4;
      }
    }
  }
}

TEST(Crc32c, SeesEveryBit) {
  std::string text(40, 'x');
  const uint32_t whole = Of(text);
  for (size_t bit = 0; bit < 8 * text.size(); ++bit) {
    std::string flipped = text;
    flipped[bit / 8] = char(flipped[bit / 8] ^ (1 << bit % 8));
    EXPECT_NE(Of(flipped), whole) << bit;
  }
}

}  // namespace
}  // namespace toroid
