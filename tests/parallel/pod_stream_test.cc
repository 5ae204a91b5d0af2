// Messages cut into frames over flows that break: whole, in order, once.
#include "parallel/pod_stream.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <deque>
#include <functional>
#include <random>

namespace toroid {
namespace {

using ::testing::HasSubstr;

PodMessage Message(int64_t step, int64_t bytes) {
  PodMessage message;
  message.view = 7;
  message.kind = 2;
  message.step = step;
  message.fragment = 3;
  message.codec = 1;
  message.weight = 0.5 * static_cast<double>(step);
  std::string payload;
  for (int64_t i = 0; i < bytes; ++i) {
    payload.push_back(static_cast<char>((step * 31 + i * 7) & 0xff));
  }
  message.payload = std::move(payload);
  return message;
}

void ExpectEqual(const PodMessage& a, const PodMessage& b) {
  EXPECT_EQ(a.step, b.step);
  EXPECT_EQ(a.payload, b.payload) << a.step;
  EXPECT_EQ(std::tie(a.view, a.kind, a.fragment, a.codec, a.weight),
            std::tie(b.view, b.kind, b.fragment, b.codec, b.weight));
}

// Frames of both go over flows that hold back, mix and lose them; acknowledgements lag. With
// `resend` false what a cut lost is not sent again.
std::vector<PodMessage> Transmit(uint64_t seed, int messages, bool resend, int64_t* duplicates) {
  std::mt19937_64 draw(seed);
  PodSendQueue out(/*limit=*/500, /*frame_bytes=*/64);
  PodReceiveQueue in(500);
  std::vector<PodMessage> got;
  std::vector<std::deque<PodFrame>> flows(3);
  int added = 0;
  for (int tick = 0; tick < 20000 && static_cast<int>(got.size()) < messages; ++tick) {
    const int64_t bytes = added * 37 % 300;
    if (added < messages && out.HasRoom(bytes)) out.Add(Message(added++, bytes));
    const int flow = static_cast<int>(draw() % flows.size());
    if (draw() % 2 == 0 && out.HasFrame()) flows[flow].push_back(out.Next(flow));
    if (draw() % 2 == 0 && !flows[flow].empty()) {
      const auto fresh = in.Take(flows[flow].front());
      EXPECT_TRUE(fresh.ok()) << fresh.status();
      *duplicates += fresh.ok() && !*fresh;
      flows[flow].pop_front();
    }
    if (draw() % 8 == 0) {
      while (auto message = in.PopWhole()) {
        got.push_back(*std::move(message));
        in.TookOne();
      }
    }
    if (draw() % 16 == 0) {
      EXPECT_TRUE(out.Acknowledged(in.received(), in.taken()));
    }
    if (draw() % 64 == 0) {  // a cut: what is on the flow is lost, or arrived without our knowing
      if (draw() % 2 == 0 && !flows[flow].empty()) (void)in.Take(flows[flow].front());
      flows[flow].clear();
      if (resend) out.FlowCut(flow);
    }
  }
  EXPECT_LE(out.waiting_bytes(), 500 + 64);
  return got;
}

TEST(PodStream, WholeInOrderOnceHoweverTheFlowsBreak) {
  int64_t duplicates = 0;
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    const std::vector<PodMessage> got = Transmit(seed, 60, /*resend=*/true, &duplicates);
    ASSERT_EQ(got.size(), 60u) << seed;
    for (int i = 0; i < 60; ++i) ExpectEqual(got[i], Message(i, i * 37 % 300));
  }
  EXPECT_GT(duplicates, 0);  // some came twice, and were taken once
  // Negative control: without sending again a cut loses messages.
  EXPECT_LT(Transmit(1, 60, /*resend=*/false, &duplicates).size(), 60u);
}

TEST(PodStream, WhatWaitsIsBounded) {
  PodSendQueue out(100, 64);
  EXPECT_TRUE(out.HasRoom(1000));  // a single one may be larger
  out.Add(Message(1, 60));
  EXPECT_FALSE(out.HasRoom(60));
  EXPECT_TRUE(out.HasRoom(39));
  PodReceiveQueue in(100);
  EXPECT_TRUE(in.Take(out.Next(0)).ok());
  ASSERT_TRUE(in.PopWhole().has_value());
  EXPECT_TRUE(out.Acknowledged(in.received(), in.taken()));
  EXPECT_TRUE(out.received_all());
  EXPECT_FALSE(out.HasRoom(60));  // received, but not taken
  in.TookOne();
  EXPECT_TRUE(out.Acknowledged(in.received(), in.taken()));
  EXPECT_TRUE(out.HasRoom(60));
  EXPECT_FALSE(out.Acknowledged(2, 1));  // never sent
  EXPECT_FALSE(out.Acknowledged(1, 2));
}

TEST(PodStream, ANewLaunchGetsWhatWasAddedWhileNobodyWasThere) {
  PodSendQueue out(1000, 64);
  out.Add(Message(1, 200));
  (void)out.Next(0);
  out.FlowCut(0);
  out.LineLost();
  out.Add(Message(2, 10));
  out.Restart();
  PodReceiveQueue in(1000);
  ASSERT_TRUE(out.HasFrame());
  const PodFrame frame = out.Next(0);
  EXPECT_EQ(frame.number, 1u);
  ASSERT_TRUE(in.Take(frame).ok());
  ExpectEqual(*in.PopWhole(), Message(2, 10));
  EXPECT_FALSE(out.HasFrame());
  EXPECT_EQ(out.waiting_bytes(), 11);
  // A line that was found again kept its launch: what a later one gets was added for nobody else.
  out.LineLost();
  out.LineFound();
  out.Add(Message(3, 10));
  out.Restart();
  EXPECT_FALSE(out.HasFrame());
}

TEST(PodStream, BrokenFramesAreRefused) {
  const auto refused = [](const std::function<void(PodFrame&)>& change) {
    PodSendQueue out(1000, 64);
    out.Add(Message(1, 200));
    PodFrame frame = out.Next(0);
    const uint32_t before = FrameChecksum(frame);
    change(frame);
    EXPECT_NE(FrameChecksum(frame), before);
    return PodReceiveQueue(1000).Take(frame).status().ToString();
  };
  EXPECT_THAT(refused([](PodFrame& f) { f.number = 0; }), HasSubstr("no number"));
  EXPECT_THAT(refused([](PodFrame& f) { f.offset = 150; }), HasSubstr("64 bytes at 150 of 200"));
  EXPECT_THAT(refused([](PodFrame& f) { f.offset = -1; }), HasSubstr("at -1"));
  EXPECT_THAT(refused([](PodFrame& f) { f.size = -5; }), HasSubstr("of -5"));
  EXPECT_THAT(refused([](PodFrame& f) { f.size = kMostPodPayload + 1; }),
              HasSubstr("of 1073741825"));
  EXPECT_THAT(refused([](PodFrame& f) { f.data.clear(); }), HasSubstr("0 bytes"));
  EXPECT_EQ(refused([](PodFrame& f) { f.words.weight = 2; }), "OK");  // the checksum's to notice
  EXPECT_EQ(refused([](PodFrame& f) { f.job = "other"; }), "OK");     // the link's
  EXPECT_EQ(refused([](PodFrame& f) { f.words.from.pod = 7; }), "OK");
  EXPECT_EQ(refused([](PodFrame& f) { f.words.epoch = 7; }), "OK");
}

// Each frame says of what message it is, the later ones too.
TEST(PodStream, APieceOfAnotherMessageIsRefused) {
  const auto taken = [](const std::function<void(PodMessage&)>& change) {
    PodSendQueue out(1000, 64);
    out.Add(Message(1, 200));
    PodReceiveQueue in(1000);
    EXPECT_TRUE(in.Take(out.Next(0)).ok());
    PodFrame second = out.Next(0);
    EXPECT_EQ(second.offset, 64);
    change(second.words);
    return in.Take(second).status().ToString();
  };
  EXPECT_EQ(taken([](PodMessage&) {}), "OK");  // control
  const auto refused = HasSubstr("it is not of one piece with those before");
  EXPECT_THAT(taken([](PodMessage& words) { words.view = 8; }), refused);
  EXPECT_THAT(taken([](PodMessage& words) { words.step = 2; }), refused);
  EXPECT_THAT(taken([](PodMessage& words) { words.fragment = 4; }), refused);
  EXPECT_THAT(taken([](PodMessage& words) { words.codec = 2; }), refused);
  EXPECT_THAT(taken([](PodMessage& words) { words.kind = 3; }), refused);
  EXPECT_THAT(taken([](PodMessage& words) { words.weight = 3; }), refused);
}

}  // namespace
}  // namespace toroid
