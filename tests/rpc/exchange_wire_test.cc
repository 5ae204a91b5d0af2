// Frames between pods as bytes: what protobuf would write and read, without its copies.
#include "rpc/exchange_wire.h"

#include <gtest/gtest.h>

#include <random>

namespace toroid::exchange {
namespace {

std::shared_ptr<const PodMessage> Message(size_t bytes) {
  auto message = std::make_shared<PodMessage>();
  std::string payload;
  for (size_t i = 0; i < bytes; ++i) payload.push_back(static_cast<char>(i * 7 + i / 256));
  message->payload = std::move(payload);
  return message;
}

PodFrame Frame(const std::shared_ptr<const PodMessage>& message) {
  PodFrame frame;
  frame.number = 300;
  frame.message = 17;
  frame.offset = 5;
  frame.size = static_cast<int64_t>(message->payload.size()) + 5;
  frame.words.view = 7;
  frame.words.kind = 2;
  frame.words.step = -3;
  frame.words.fragment = 4;
  frame.words.codec = 1;
  frame.words.weight = 0.25;
  frame.job = "licence-01234567";
  frame.words.from.pod = 3;
  frame.words.epoch = 12;
  frame.data = {message->payload};
  frame.owner = message;
  return frame;
}

std::string TextOf(const grpc::ByteBuffer& bytes) {
  std::vector<grpc::Slice> slices;
  EXPECT_TRUE(bytes.Dump(&slices).ok());
  std::string text;
  for (const grpc::Slice& slice : slices) {
    text.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  return text;
}

// In slices of random sizes, as a network delivers them.
grpc::ByteBuffer Cut(const std::string& text, std::mt19937_64& draw) {
  std::vector<grpc::Slice> slices;
  for (size_t at = 0; at < text.size();) {
    const size_t bytes = std::min<size_t>(text.size() - at, 1 + draw() % 40);
    slices.emplace_back(text.substr(at, bytes));
    at += bytes;
  }
  return grpc::ByteBuffer(slices.data(), slices.size());
}

std::string DataOf(const PodFrame& frame) {
  std::string data;
  for (const absl::string_view piece : frame.data) data.append(piece.data(), piece.size());
  return data;
}

void ExpectEqual(const ReceivedFrame& ours, const wire::StreamFrame& parsed) {
  const PodFrame& frame = ours.frame;
  EXPECT_EQ(ours.hello.has_value(), parsed.has_hello());
  EXPECT_EQ(ours.crc32c, parsed.crc32c());
  EXPECT_EQ(frame.number, parsed.number());
  EXPECT_EQ(frame.message, parsed.message());
  EXPECT_EQ(frame.offset, parsed.offset());
  EXPECT_EQ(frame.size, parsed.size());
  EXPECT_EQ(DataOf(frame), parsed.data());
  EXPECT_EQ(frame.words.view, parsed.view());
  EXPECT_EQ(frame.words.kind, parsed.kind());
  EXPECT_EQ(frame.words.step, parsed.step());
  EXPECT_EQ(frame.words.fragment, parsed.fragment());
  EXPECT_EQ(frame.words.codec, parsed.codec());
  EXPECT_EQ(frame.job, parsed.job());
  EXPECT_EQ(frame.words.from.pod, parsed.pod());
  EXPECT_EQ(frame.words.epoch, parsed.epoch());
  EXPECT_EQ(std::to_string(frame.words.weight), std::to_string(parsed.weight()));
}

TEST(ExchangeWire, AFrameIsAStreamFrame) {
  for (const size_t bytes : {0, 1, 100, 200, 70000}) {
    const auto message = Message(bytes);
    const PodFrame frame = Frame(message);
    wire::StreamFrame parsed;
    ASSERT_TRUE(parsed.ParseFromString(TextOf(ToBytes(frame)))) << bytes;
    EXPECT_EQ(SharedBytes(parsed.data()), message->payload);
    EXPECT_EQ(parsed.step(), -3);
    EXPECT_EQ(parsed.crc32c(), FrameChecksum(frame));
    grpc::ByteBuffer sent = ToBytes(frame);
    const auto received = FromBytes(sent);
    ASSERT_TRUE(received.ok()) << received.status();
    ExpectEqual(*received, parsed);
    EXPECT_EQ(FrameChecksum(received->frame), received->crc32c);
  }
}

TEST(ExchangeWire, DataLeaveFromWhereTheyLie) {
  const auto message = Message(5000);
  {
    const grpc::ByteBuffer bytes = ToBytes(Frame(message));
    EXPECT_EQ(message.use_count(), 2);  // gRPC keeps it
    std::vector<grpc::Slice> slices;
    ASSERT_TRUE(bytes.Dump(&slices).ok());
    EXPECT_EQ(reinterpret_cast<const char*>(slices.back().begin()), message->payload.data());
  }
  EXPECT_EQ(message.use_count(), 1);
}

TEST(ExchangeWire, WhatIsReadOutlivesTheBufferItWasReadTo) {
  std::mt19937_64 draw(1);
  const auto message = Message(3000);
  grpc::ByteBuffer bytes = Cut(TextOf(ToBytes(Frame(message))), draw);
  const auto received = FromBytes(bytes);
  ASSERT_TRUE(received.ok());
  EXPECT_FALSE(bytes.Valid());  // taken
  bytes = Cut(std::string(4000, 'x'), draw);
  const PodFrame kept = received->frame;
  EXPECT_EQ(SharedBytes(DataOf(kept)), message->payload);
}

TEST(ExchangeWire, AnyOrderOfFieldsAndTheLastOfTwo) {
  wire::StreamFrame words, data, other;
  words.set_number(9);
  words.mutable_hello()->set_job("job");
  words.mutable_hello()->add_terms("a: b");
  data.set_data("payload");
  other.set_data("older");
  std::mt19937_64 draw(1);
  grpc::ByteBuffer bytes =
      Cut(other.SerializeAsString() + data.SerializeAsString() + words.SerializeAsString(), draw);
  const auto received = FromBytes(bytes);
  ASSERT_TRUE(received.ok()) << received.status();
  EXPECT_EQ(received->frame.number, 9u);
  EXPECT_EQ(DataOf(received->frame), "payload");
  ASSERT_TRUE(received->hello.has_value());
  EXPECT_EQ(received->hello->terms(0), "a: b");
}

// Bytes that a peer, or a line, has spoilt: never more than protobuf would take, and never other
// than what it would read.
TEST(ExchangeWire, SpoiltBytesAreReadAsProtobufReadsThemOrRefused) {
  std::mt19937_64 draw(7);
  const std::string whole = TextOf(ToBytes(Frame(Message(300))));
  int read = 0, refused = 0;
  for (int i = 0; i < 20000; ++i) {
    std::string text = whole;
    if (draw() % 2 == 0) text.resize(draw() % text.size());
    // Most are of the words: their place is the front.
    for (size_t flips = draw() % 3; flips > 0 && !text.empty(); --flips) {
      text[draw() % std::min<size_t>(text.size(), 80)] ^= static_cast<char>(1 << draw() % 8);
    }
    grpc::ByteBuffer bytes = Cut(text, draw);
    const auto received = FromBytes(bytes);
    if (!received.ok()) {
      EXPECT_EQ(received.status().code(), absl::StatusCode::kDataLoss);
      ++refused;
      continue;
    }
    ++read;
    wire::StreamFrame parsed;
    ASSERT_TRUE(parsed.ParseFromString(text)) << i;
    ExpectEqual(*received, parsed);
  }
  EXPECT_GT(read, 1000);
  EXPECT_GT(refused, 1000);
}

}  // namespace
}  // namespace toroid::exchange
