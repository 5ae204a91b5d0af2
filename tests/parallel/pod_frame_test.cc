// Frames between pods as bytes: written and read again, from a network that cuts and spoils them.
#include "parallel/pod_frame.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <random>
#include <tuple>

#include "core/io/crc32c.h"

namespace toroid {
namespace {

constexpr char kPayload[] = "what one pod has to say to another, in a few words and a number: \x07";

PodFrame Frame() {
  PodFrame frame;
  frame.number = 300;
  frame.message = 17;
  frame.offset = 5;
  frame.size = static_cast<int64_t>(sizeof(kPayload)) + 5;
  frame.words.view = 7;
  frame.words.kind = 2;
  frame.words.step = -3;
  frame.words.fragment = 4;
  frame.words.codec = 1;
  frame.words.weight = 0.25;
  frame.job = "licence-01234567";
  frame.words.from.pod = 3;
  frame.words.epoch = 12;
  frame.data = {absl::string_view(kPayload, sizeof(kPayload))};
  return frame;
}

std::string BytesOf(const PodFrame& frame) {
  std::string bytes = FrameHead(frame);
  for (const absl::string_view piece : frame.data) bytes.append(piece.data(), piece.size());
  return bytes;
}

// In pieces of random sizes, some of them empty, each with memory of its own, so that a sanitizer
// sees who reads beyond one.
class Pieces {
 public:
  Pieces(absl::string_view bytes, std::mt19937_64& draw) {
    for (size_t at = 0; at < bytes.size();) {
      const size_t count = std::min<size_t>(bytes.size() - at, draw() % 40);
      memory_.push_back(std::make_unique<char[]>(count));
      std::copy_n(bytes.data() + at, count, memory_.back().get());
      views_.emplace_back(memory_.back().get(), count);
      at += count;
    }
  }
  absl::StatusOr<ParsedFrame> Parse() const { return ParseFrame(views_); }

 private:
  std::vector<std::unique_ptr<char[]>> memory_;
  std::vector<absl::string_view> views_;
};

// "" for the same.
std::string Differs(const PodFrame& a, const PodFrame& b) {
  const auto of = [](const PodFrame& frame, auto... fields) {
    return std::tuple(frame.number, frame.message, frame.offset, frame.size, frame.job, fields...);
  };
  const PodMessage &x = a.words, &y = b.words;
  if (of(a) != of(b)) return "place or job";
  if (std::tie(x.view, x.kind, x.step, x.fragment, x.codec, x.weight, x.from.pod, x.epoch) !=
      std::tie(y.view, y.kind, y.step, y.fragment, y.codec, y.weight, y.from.pod, y.epoch)) {
    return "words";
  }
  std::string data[2];
  for (const absl::string_view piece : a.data) data[0].append(piece.data(), piece.size());
  for (const absl::string_view piece : b.data) data[1].append(piece.data(), piece.size());
  return data[0] == data[1] ? "" : "data";
}

TEST(PodFrame, IsReadAsItWasWritten) {
  std::mt19937_64 draw(3);
  for (int i = 0; i < 200; ++i) {
    const PodFrame frame = Frame();
    const std::string bytes = BytesOf(frame);
    const Pieces pieces(bytes, draw);
    const auto read = pieces.Parse();
    ASSERT_TRUE(read.ok()) << read.status();
    EXPECT_EQ(Differs(read->frame, frame), "");
    EXPECT_EQ(read->checksum, FrameChecksum(frame));
    EXPECT_FALSE(read->has_hello || read->alive);
  }
  // One of zeros alone, and of no data.
  const PodFrame none;
  const std::string bytes = BytesOf(none);
  const auto read = ParseFrame({absl::string_view(bytes)});
  ASSERT_TRUE(read.ok());
  EXPECT_EQ(Differs(read->frame, none), "");
  EXPECT_NE(Differs(read->frame, Frame()), "");  // negative control
}

TEST(PodFrame, EveryByteIsUnderTheChecksum) {
  const std::string whole = BytesOf(Frame());
  for (size_t at = 0; at < whole.size(); ++at) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string bytes = whole;
      bytes[at] ^= static_cast<char>(1 << bit);
      const auto read = ParseFrame({absl::string_view(bytes)});
      if (!read.ok()) {
        EXPECT_TRUE(absl::IsDataLoss(read.status()));
      } else {
        EXPECT_FALSE(read->has_hello || read->alive) << "byte " << at << " bit " << bit;
        EXPECT_NE(FrameChecksum(read->frame), read->checksum) << "byte " << at << " bit " << bit;
      }
    }
  }
}

TEST(PodFrame, SpoiltBytesAreReadOrRefused) {
  std::mt19937_64 draw(7);
  const std::string whole = BytesOf(Frame());
  int read = 0, refused = 0;
  for (int i = 0; i < 20000; ++i) {
    std::string bytes = whole;
    if (draw() % 2 == 0) bytes.resize(draw() % bytes.size());
    for (size_t flips = draw() % 4; flips > 0 && !bytes.empty(); --flips) {
      bytes[draw() % bytes.size()] ^= static_cast<char>(1 << draw() % 8);
    }
    const Pieces pieces(bytes, draw);
    const auto parsed = pieces.Parse();
    if (parsed.ok()) {
      EXPECT_LE(parsed->frame.bytes(), static_cast<int64_t>(bytes.size()));
      ++read;
    } else {
      ++refused;
    }
  }
  EXPECT_GT(read, 1000);
  EXPECT_GT(refused, 1000);
}

TEST(PodFrame, WhatIsNoFieldOfAFrameIsRefused) {
  const auto refused = [](absl::string_view bytes) {
    return absl::IsDataLoss(ParseFrame({bytes}).status());
  };
  using Bytes = absl::string_view;
  EXPECT_FALSE(refused(""));
  EXPECT_FALSE(refused(Bytes("\x10\x05", 2)));
  EXPECT_FALSE(refused(Bytes("\xf8\x07\x05", 3)));  // field 127, which a later format may have
  EXPECT_TRUE(refused(Bytes("\x10", 1)));           // it ends in a number
  EXPECT_TRUE(refused(Bytes("\x00\x05", 2)));       // field 0
  EXPECT_TRUE(refused("\x13"));                     // a group
  EXPECT_TRUE(refused("\x32\x05xx"));               // more data than there are bytes
  EXPECT_TRUE(refused("\x32\xff\xff\xff\xff\x0fxx"));
  EXPECT_TRUE(refused("\x10\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02"));  // more than 64 bits
  EXPECT_TRUE(refused("\x3d\x01\x02\x03"));                              // it ends in a checksum
  EXPECT_TRUE(refused("\x90\x80\x80\x80\x80\x01\x05"));                  // a tag of six bytes
}

// Who changes what a frame's bytes are gives kPodFrameFormat another number, and these another sum:
// builds that differ in it must not meet.
TEST(PodFrame, TheFormatHasANumber) {
  const std::string bytes = BytesOf(Frame());
  const uint32_t sum = Crc32c({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()});
  EXPECT_EQ(kPodFrameFormat, 1);
  EXPECT_EQ(sum, 0x8ffae390u);
}

}  // namespace
}  // namespace toroid
