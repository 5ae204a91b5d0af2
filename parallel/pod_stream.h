// Both ends of what one rank sends one rank of another pod, without the network: messages are cut
// into numbered frames that travel over several flows, each of which may be cut at any time.
//
// A frame is kept until the receiver has it. When a flow is cut, the frames that went over it and
// are not acknowledged go again over any other; the receiver knows a frame by its number and drops
// what it has. So messages come whole, in order, exactly once. What the sender holds is bounded by
// what its messages weigh until the receiving rank has *taken* them. Not thread-safe.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "parallel/pod_frame.h"
#include "parallel/pod_link.h"

namespace toroid {

class PodSendQueue {
 public:
  // limit: bytes that may wait to be taken. A larger message goes when nothing else waits.
  PodSendQueue(int64_t limit, int64_t frame_bytes = kPodFrameBytes)
      : limit_(limit), frame_bytes_(frame_bytes) {}

  bool HasRoom(int64_t bytes) const { return waiting_ == 0 || waiting_ + bytes <= limit_; }
  void Add(PodMessage message);
  // The next frame for that flow, which it is now on; what was cut off goes first.
  bool HasFrame() const { return !again_.empty() || sent_message_ < messages_.size(); }
  PodFrame Next(int flow);
  // The receiver has all frames up to `received`, and its rank has taken so many messages. False:
  // more than was ever sent, which only a broken peer says.
  bool Acknowledged(uint64_t received, uint64_t taken);
  void FlowCut(int flow);
  // No flow is left: what is added from now on may be for the peer's next launch.
  void LineLost() {
    if (line_lost_) return;
    line_lost_ = true;
    for_next_ = taken_ + messages_.size();
  }
  // The same launch is there again.
  void LineFound() { line_lost_ = false; }
  // The peer was launched again: what its earlier launch did not take is nobody's any more. Numbers
  // begin anew. What was added since LineLost goes to the new launch.
  void Restart();
  // The receiver has all that was added.
  bool received_all() const { return kept_.empty() && sent_message_ == messages_.size(); }

  int64_t waiting_bytes() const { return waiting_; }
  uint64_t frames() const { return last_frame_; }  // numbered so far

 private:
  struct Kept {
    PodFrame frame;
    int flow = -1;  // -1: waits to go again
  };
  struct Message {
    std::shared_ptr<const PodMessage> content;
    int64_t bytes = 0;
  };
  const int64_t limit_, frame_bytes_;
  std::deque<Message> messages_;  // added and not taken, the first is number taken_ + 1
  uint64_t taken_ = 0, last_frame_ = 0;
  bool line_lost_ = false;
  uint64_t for_next_ = 0;          // messages up to this one were added before LineLost
  size_t sent_message_ = 0;        // index in messages_ of the one that is being cut into frames
  int64_t sent_offset_ = 0;        // in it
  std::map<uint64_t, Kept> kept_;  // frames sent and not acknowledged
  std::set<uint64_t> again_;       // of those, on no flow
  int64_t waiting_ = 0;
};

class PodReceiveQueue {
 public:
  // limit: bytes of messages not taken yet beyond which a peer breaks its word; a single message
  // may be larger.
  explicit PodReceiveQueue(int64_t limit) : limit_(limit) {}

  // True: new; false: it was here before. DataLoss, InvalidArgument: what no sender of ours makes.
  // The frame's checksum has been verified. One that comes before its place is kept, with its
  // owner.
  absl::StatusOr<bool> Take(const PodFrame& frame);
  // The next message in order, if it is whole. It counts as taken once TookOne is called.
  std::optional<PodMessage> PopWhole();
  void TookOne() { ++taken_; }

  uint64_t received() const { return received_; }  // all frames up to this one are here
  uint64_t taken() const { return taken_; }

 private:
  struct Message {
    PodMessage content;
    int64_t size = -1, filled = 0;      // the payload is filled up to its size, in order
    std::map<int64_t, PodFrame> ahead;  // what came before its place, by offset
  };
  static absl::Status Append(const PodFrame& frame, Message& message);

  BytePool memory_;  // of payloads
  int64_t limit_;
  uint64_t received_ = 0, popped_ = 0, taken_ = 0;
  std::set<uint64_t> beyond_;  // frames that came before an earlier one
  std::map<uint64_t, Message> messages_;
  int64_t held_ = 0;  // bytes of messages_
};

}  // namespace toroid
