// A frame: a piece of a message between pods (pod_stream.h cuts messages into them), and its bytes.
//
// The bytes are a StreamFrame of proto/toroid/internal/v1/exchange.proto. Its data are most of what
// a rank sends: they leave from where they lie in the message and are copied once, into the message
// at the other end. So frames are written and read here, and not by protobuf, which would copy them
// twice more. What is read is untrusted: bytes from a network.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "parallel/pod_link.h"

namespace toroid {

// Of what a frame's bytes mean: its fields, their order in the checksum, what messages are cut
// into. Pods whose links have different ones do not meet. A change of these is a new format.
constexpr int kPodFrameFormat = 1;
constexpr int64_t kPodFrameBytes = int64_t{1} << 20;  // the most data of one frame

// Numbers count from 1, of frames and of messages, without a gap.
struct PodFrame {
  uint64_t number = 0;
  uint64_t message = 0;
  int64_t offset = 0, size = 0;  // of the data in the payload; of the whole payload
  // The message's words without its payload, the same in all of its frames. words.from.pod and
  // words.epoch are of the launch that sends it, and so is `job`: the link's to fill in.
  PodMessage words;
  std::string job;
  std::vector<absl::string_view> data;  // in pieces, as it lies in memory
  std::shared_ptr<const void> owner;    // keeps `data` alive

  int64_t bytes() const;  // of data
};

// CRC-32C of all of it but `owner` and words.from.rank.
uint32_t FrameChecksum(const PodFrame& frame);

// The bytes of a frame but for its data, which go behind them.
std::string FrameHead(const PodFrame& frame);

// Bytes that are a StreamFrame.
struct ParsedFrame {
  PodFrame frame;  // its data are views of the bytes; it has no owner
  uint32_t checksum = 0;
  bool alive = false;      // nothing but a sign of life
  bool has_hello = false;  // who speaks
  std::string hello;       // the bytes of an ExchangeIdentity
};
// Of bytes in pieces, as a network delivers them. Fields may come in any order, one that comes
// twice is what it was last, unknown ones are passed over. DataLoss: they are no StreamFrame.
absl::StatusOr<ParsedFrame> ParseFrame(absl::Span<const absl::string_view> pieces);

}  // namespace toroid
