#include "tests/support/pod_link_conformance.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <map>
#include <string>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace toroid {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kAmple = 64 << 20;
constexpr PodRank kA = {0, 0}, kB = {1, 0}, kC = {2, 1};

absl::Time Soon() { return absl::Now() + absl::Milliseconds(20); }
absl::Time Late() { return absl::Now() + absl::Seconds(30); }

PodIdentity Identity(PodRank self, uint64_t epoch = 1) {
  return {"job-7", self, epoch, {"version: 1", "model: small", "codec: int8"}};
}

// Message i from one rank to another: all of it is a function of the three.
PodMessage MessageAt(PodRank from, PodRank to, int64_t i, int64_t size) {
  PodMessage message;
  message.view = uint64_t(i) + 3;
  message.kind = int32_t(i % 5);
  message.step = i << 33;
  message.fragment = int32_t(i % 7);
  message.codec = int32_t(i % 3);
  message.weight = double(i) + 0.25;
  std::string payload(size_t(size), '\0');
  for (int64_t k = 0; k < size; ++k) {
    payload[size_t(k)] = char(k * 131 + i * 31 + from.pod * 7 + to.pod * 3 + (k >> 8));
  }
  message.payload = std::move(payload);
  return message;
}

void ExpectIs(const PodMessage& message, const PodMessage& expected, PodRank from) {
  EXPECT_EQ(message.from, from);
  EXPECT_EQ(message.epoch, 1u);
  EXPECT_EQ(message.view, expected.view);
  EXPECT_EQ(message.kind, expected.kind);
  EXPECT_EQ(message.step, expected.step);
  EXPECT_EQ(message.fragment, expected.fragment);
  EXPECT_EQ(message.codec, expected.codec);
  EXPECT_EQ(message.weight, expected.weight);
  EXPECT_TRUE(message.payload == expected.payload);
}

int64_t SizeOf(int64_t i) { return i * i * 37 % 5000; }

// Takes `count` messages of each sender, which must come in order. Goes on where they do not, so
// that nobody waits for room.
void ExpectAll(PodLink& link, const std::vector<PodRank>& senders, int64_t count) {
  std::map<PodRank, int64_t> next;
  for (int64_t left = count * int64_t(senders.size()); left > 0;) {
    const auto message = link.Receive(Late());
    ASSERT_TRUE(message.ok()) << message.status();
    ASSERT_TRUE(message->has_value()) << left << " messages are missing";
    const PodRank from = (*message)->from;
    const int64_t i = (*message)->step >> 33;
    EXPECT_EQ(i, next[from]) << "out of order, lost or doubled";
    ExpectIs(**message, MessageAt(from, link.identity().self, i, SizeOf(i)), from);
    if (i < next[from]) continue;
    left -= i + 1 - next[from];
    next[from] = i + 1;
  }
  const auto more = link.Receive(Soon());
  ASSERT_TRUE(more.ok());
  EXPECT_FALSE(more->has_value()) << "more than was sent";
}

void SendAll(PodLink& link, PodRank to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const absl::Status sent =
        link.Send(to, MessageAt(link.identity().self, to, i, SizeOf(i)), Late());
    ASSERT_TRUE(sent.ok()) << sent;
  }
}

void InOrderAndExactlyOnce(const NewPodLinkNetwork& create) {
  constexpr int64_t kCount = 100;
  const auto network = create(8192);  // so that senders wait for receivers
  const std::vector<PodRank> ranks = {kA, kB, kC};
  std::vector<std::unique_ptr<PodLink>> links;
  for (PodRank rank : ranks) links.push_back(network->Attach(Identity(rank)));
  std::vector<std::thread> threads;
  int64_t bytes = 0;
  for (int64_t i = 0; i < kCount; ++i) bytes += SizeOf(i);
  for (size_t i = 0; i < ranks.size(); ++i) {
    std::vector<PodRank> others = ranks;
    others.erase(others.begin() + int64_t(i));
    for (PodRank to : others) {
      threads.emplace_back([&links, i, to] { SendAll(*links[i], to, kCount); });
    }
    threads.emplace_back([&links, i, others] { ExpectAll(*links[i], others, kCount); });
  }
  for (std::thread& thread : threads) thread.join();
  for (const auto& link : links) {
    const PodLinkCounters counters = link->counters();
    EXPECT_EQ(counters.payload_sent, 2 * bytes);
    EXPECT_EQ(counters.payload_received, 2 * bytes);
    EXPECT_GE(counters.wire_sent, 2 * bytes);
    EXPECT_EQ(counters.stale_dropped, 0);
  }
}

void LargePayloads(const NewPodLinkNetwork& create) {
  const auto network = create(kAmple);
  const auto a = network->Attach(Identity(kA)), b = network->Attach(Identity(kB));
  const int64_t sizes[] = {0, 1, 1 << 20, (3 << 20) + 1};
  for (int64_t size : sizes) ASSERT_TRUE(a->Send(kB, MessageAt(kA, kB, 1, size), Late()).ok());
  for (int64_t size : sizes) {
    const auto message = b->Receive(Late());
    ASSERT_TRUE(message.ok() && message->has_value());
    ExpectIs(**message, MessageAt(kA, kB, 1, size), kA);
  }
}

void NothingComesByTheDeadline(const NewPodLinkNetwork& create) {
  const auto network = create(kAmple);
  const auto a = network->Attach(Identity(kA)), b = network->Attach(Identity(kB));
  for (absl::Time deadline : {absl::InfinitePast(), absl::Now(), Soon()}) {
    const auto message = a->Receive(deadline);
    ASSERT_TRUE(message.ok()) << message.status();
    EXPECT_FALSE(message->has_value());
  }
}

void SendWaitsForRoom(const NewPodLinkNetwork& create) {
  const auto network = create(1000);
  const auto a = network->Attach(Identity(kA)), b = network->Attach(Identity(kB)),
             c = network->Attach(Identity(kC));
  ASSERT_TRUE(a->Send(kB, MessageAt(kA, kB, 0, 600), Late()).ok());
  const absl::Status full = a->Send(kB, MessageAt(kA, kB, 9, 600), Soon());
  EXPECT_EQ(full.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(std::string(full.message()), HasSubstr(ToString(kB)));
  // Another peer has room of its own; and what was not taken never arrives.
  EXPECT_TRUE(a->Send(kC, MessageAt(kA, kC, 0, 600), Late()).ok());
  std::atomic<bool> sent = false;
  std::thread sender([&] {
    EXPECT_TRUE(a->Send(kB, MessageAt(kA, kB, 1, 5000), Late()).ok());  // alone it may be larger
    sent = true;
  });
  EXPECT_FALSE(sent);
  for (int64_t i = 0; i < 2; ++i) {
    const auto message = b->Receive(Late());
    ASSERT_TRUE(message.ok() && message->has_value());
    ExpectIs(**message, MessageAt(kA, kB, i, i == 0 ? 600 : 5000), kA);
  }
  sender.join();
  EXPECT_FALSE(b->Receive(Soon())->has_value());
  // Negative control: where there is room nobody waits.
  const auto ample = create(kAmple);
  const auto d = ample->Attach(Identity(kA)), e = ample->Attach(Identity(kB));
  for (int i = 0; i < 2; ++i) EXPECT_TRUE(d->Send(kB, MessageAt(kA, kB, i, 600), Soon()).ok());
}

void UnknownPeersAreNotFound(const NewPodLinkNetwork& create) {
  const auto network = create(kAmple);
  const auto a = network->Attach(Identity(kA)), b = network->Attach(Identity(kB));
  EXPECT_EQ(a->Send({9, 0}, {}, Late()).code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(a->Send({1, 77}, {}, Late()).code(), absl::StatusCode::kNotFound);
  EXPECT_TRUE(a->Send(kB, {}, Late()).ok());
}

// The next message, by its number.
int64_t NextOf(PodLink& link) {
  const auto message = link.Receive(Late());
  if (!message.ok() || !message->has_value()) {
    ADD_FAILURE() << "no message: " << message.status();
    return -1;
  }
  return (*message)->step >> 33;
}

void MessagesOfAnEarlierLaunchAreDropped(const NewPodLinkNetwork& create) {
  const auto network = create(kAmple);
  const auto b = network->Attach(Identity(kB));
  auto old = network->Attach(Identity(kA, 5));
  // What arrived of the earlier launch was right then; what had not been taken when the later one
  // came is dropped and counted.
  ASSERT_TRUE(old->Send(kB, MessageAt(kA, kB, 1, 10), Late()).ok());
  const auto young = network->Attach(Identity(kA, 6));
  ASSERT_TRUE(young->Send(kB, MessageAt(kA, kB, 2, 10), Late()).ok());
  int64_t taken = 0;
  for (int64_t i = NextOf(*b); i != 2; i = NextOf(*b)) {
    ASSERT_EQ(i, 1);
    ++taken;
  }
  EXPECT_LE(taken + b->counters().stale_dropped, 1);
  // Now the later one has been heard.
  (void)old->Send(kB, MessageAt(kA, kB, 3, 10), Soon());  // it may be told or not
  ASSERT_TRUE(young->Send(kB, MessageAt(kA, kB, 4, 10), Late()).ok());
  EXPECT_EQ(NextOf(*b), 4);
  EXPECT_FALSE(b->Receive(Soon())->has_value());
  old.reset();  // its end is not the later one's
  ASSERT_TRUE(young->Send(kB, MessageAt(kA, kB, 5, 10), Late()).ok());
  EXPECT_EQ(NextOf(*b), 5);
  ASSERT_TRUE(b->Send(kA, MessageAt(kB, kA, 6, 10), Late()).ok());
  EXPECT_EQ(NextOf(*young), 6);
}

// Calls until the answer is no longer OK: a link may learn of its peer some time after.
template <typename Call>
absl::Status UntilRefused(Call call) {
  absl::Status status;
  for (const absl::Time end = Late(); status.ok() && absl::Now() < end;) status = call();
  return status;
}

void OtherTermsAreRefused(const NewPodLinkNetwork& create) {
  for (const std::string differing :
       {"version: 2", "model: large", "codec: of a later version", "missing", "job"}) {
    const auto network = create(kAmple);
    const auto a = network->Attach(Identity(kA));
    PodIdentity other = Identity(kB);
    std::string theirs = differing, ours;
    if (differing == "job") {
      other.job = theirs = "job-8";
      ours = "job-7";
    } else if (differing == "missing") {
      other.terms.pop_back();
      theirs = "nothing";
      ours = "codec: int8";
    } else {
      for (std::string& term : other.terms) {  // the one of that name
        if (differing.compare(0, term.find(':'), term, 0, term.find(':')) != 0) continue;
        ours = term;
        term = differing;
      }
      ASSERT_NE(ours, "");
    }
    const auto b = network->Attach(other);
    const auto expect = [&](const absl::Status& status) {
      EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
      EXPECT_THAT(std::string(status.message()), HasSubstr(theirs));
      EXPECT_THAT(std::string(status.message()), HasSubstr(ours));
    };
    for (int twice = 0; twice < 2; ++twice) {  // it stays so
      expect(UntilRefused([&] { return a->Send(kB, {}, Soon()); }));
      expect(UntilRefused([&] { return b->Send(kA, {}, Soon()); }));
      expect(UntilRefused([&] { return a->Receive(Soon()).status(); }));
      expect(UntilRefused([&] { return b->Receive(Soon()).status(); }));
    }
  }
}

void ACutLosesAndDoublesNothing(const NewPodLinkNetwork& create) {
  constexpr int64_t kCount = 300;
  const auto network = create(20000);
  const auto a = network->Attach(Identity(kA)), b = network->Attach(Identity(kB));
  std::atomic<bool> done = false;
  std::thread there([&] { SendAll(*a, kB, kCount); });
  std::thread back([&] { SendAll(*b, kA, kCount); });
  std::thread at_a([&] { ExpectAll(*a, {kB}, kCount); });
  std::thread knife([&] {  // cut again once messages have passed since
    int64_t before = -1;
    for (int cuts = 0; cuts < 20 && !done;) {
      const int64_t now = a->counters().payload_sent + b->counters().payload_sent;
      if (now == before) {
        std::this_thread::yield();
        continue;
      }
      before = now;
      network->Cut(kA, kB);
      network->Heal(kA, kB);
      ++cuts;
    }
  });
  ExpectAll(*b, {kA}, kCount);
  there.join();
  back.join();
  at_a.join();
  done = true;
  knife.join();
  EXPECT_GT(a->counters().reconnects + b->counters().reconnects, 0);
}

void LastHeardTellsWhoIsThere(const NewPodLinkNetwork& create) {
  const auto network = create(kAmple);
  const auto a = network->Attach(Identity(kA));
  auto b = network->Attach(Identity(kB));
  EXPECT_EQ(a->LastHeard(kC.pod), absl::InfinitePast());
  const absl::Time before = absl::Now();
  ASSERT_TRUE(b->Send(kA, {}, Late()).ok());
  ASSERT_TRUE(a->Send(kB, {}, Late()).ok());
  ASSERT_TRUE(a->Receive(Late())->has_value());
  const absl::Time heard = a->LastHeard(kB.pod);
  EXPECT_GE(heard, before);
  EXPECT_LE(heard, absl::Now());
  b.reset();
  const absl::Time end = Late();
  while (absl::Now() - a->LastHeard(kB.pod) < absl::Milliseconds(100) && absl::Now() < end) {
    EXPECT_FALSE(a->Receive(Soon())->has_value());
  }
  EXPECT_LT(absl::Now(), end) << "a peer that has left is still taken to be there";
}

// Of a pod those ranks count that anything travels from or to: others of it have nothing to say.
void LastHeardIsOfThoseThatSpeak(const NewPodLinkNetwork& create) {
  const auto network = create(kAmple);
  const auto a = network->Attach(Identity(kA)), b = network->Attach(Identity(kB));
  auto second = network->Attach(Identity({kB.pod, 1}));
  const absl::Time before = absl::Now();
  ASSERT_TRUE(b->Send(kA, {}, Late()).ok());
  ASSERT_TRUE(a->Send(kB, {}, Late()).ok());
  ASSERT_TRUE(a->Receive(Late())->has_value());
  const absl::Time heard = a->LastHeard(kB.pod);
  EXPECT_GE(heard, before);
  EXPECT_LE(heard, absl::Now());
  // Control: once it has spoken it is missed, though the first one is there.
  ASSERT_TRUE(second->Send(kA, {}, Late()).ok());
  ASSERT_TRUE(a->Receive(Late())->has_value());
  second.reset();
  const absl::Time end = Late();
  while (absl::Now() - a->LastHeard(kB.pod) < absl::Milliseconds(700) && absl::Now() < end) {
    EXPECT_FALSE(a->Receive(Soon())->has_value());
  }
  EXPECT_LT(absl::Now(), end) << "the first rank speaks for one that has left";
}

}  // namespace

const std::vector<PodLinkCase>& PodLinkCases() {
  static const auto* const cases = new std::vector<PodLinkCase>{
      {"InOrderAndExactlyOnce", InOrderAndExactlyOnce},
      {"LargePayloads", LargePayloads},
      {"NothingComesByTheDeadline", NothingComesByTheDeadline},
      {"SendWaitsForRoom", SendWaitsForRoom},
      {"UnknownPeersAreNotFound", UnknownPeersAreNotFound},
      {"MessagesOfAnEarlierLaunchAreDropped", MessagesOfAnEarlierLaunchAreDropped},
      {"OtherTermsAreRefused", OtherTermsAreRefused},
      {"ACutLosesAndDoublesNothing", ACutLosesAndDoublesNothing},
      {"LastHeardTellsWhoIsThere", LastHeardTellsWhoIsThere},
      {"LastHeardIsOfThoseThatSpeak", LastHeardIsOfThoseThatSpeak},
  };
  return *cases;
}

}  // namespace toroid
