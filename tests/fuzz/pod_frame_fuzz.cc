// Any bytes as frames from another pod, in pieces as a network delivers them, taken as if their
// checksums were right: what is read is written again as the same frame, and messages come out
// whole, as large as they were said to be, no more of them than frames.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "parallel/pod_frame.h"
#include "parallel/pod_stream.h"

namespace {

using toroid::PodFrame;

// A peer may say a message is 1 GiB large; the fuzzer may not take that much.
constexpr int64_t kMostPayload = 96 << 10;

// Pieces with memory of their own, `step` bytes each.
struct Bytes {
  std::vector<std::unique_ptr<char[]>> memory;
  std::vector<absl::string_view> views;
};
std::shared_ptr<Bytes> Cut(absl::string_view text, size_t step) {
  const auto bytes = std::make_shared<Bytes>();
  for (size_t at = 0; at < text.size(); at += step) {
    const size_t count = std::min(step, text.size() - at);
    bytes->memory.push_back(std::make_unique<char[]>(count));
    std::memcpy(bytes->memory.back().get(), text.data() + at, count);
    bytes->views.emplace_back(bytes->memory.back().get(), count);
  }
  return bytes;
}

std::string DataOf(const PodFrame& frame) {
  std::string data;
  for (const absl::string_view piece : frame.data) data.append(piece.data(), piece.size());
  return data;
}

void WriteAgain(const PodFrame& frame) {
  const std::string bytes = toroid::FrameHead(frame) + DataOf(frame);
  const auto again = toroid::ParseFrame({absl::string_view(bytes)});
  if (!again.ok() || again->checksum != toroid::FrameChecksum(frame) ||
      again->checksum != toroid::FrameChecksum(again->frame) || again->frame.job != frame.job ||
      DataOf(again->frame) != DataOf(frame) || again->has_hello || again->alive) {
    __builtin_trap();
  }
}

}  // namespace

// The first byte: how large pieces are. Then frames, each behind two bytes with its size.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace toroid;
  if (size < 1) return 0;
  const size_t step = size_t{data[0]} + 1;
  absl::string_view rest(reinterpret_cast<const char*>(data) + 1, size - 1);
  PodReceiveQueue queue(kMostPayload);
  uint64_t frames = 0, messages = 0;
  while (rest.size() >= 2 && frames < 256) {
    const size_t said = static_cast<uint8_t>(rest[0]) | static_cast<uint8_t>(rest[1]) << 8;
    const absl::string_view text = rest.substr(2, said);
    rest.remove_prefix(2 + text.size());
    const std::shared_ptr<Bytes> bytes = Cut(text, step);
    auto parsed = ParseFrame(bytes->views);
    if (!parsed.ok()) continue;
    if (parsed->frame.bytes() > static_cast<int64_t>(text.size())) __builtin_trap();
    WriteAgain(parsed->frame);
    if (parsed->frame.size > kMostPayload) continue;
    parsed->frame.owner = bytes;
    ++frames;
    const uint64_t before = queue.received();
    const auto fresh = queue.Take(parsed->frame);
    if (queue.received() < before || (!fresh.ok() && queue.received() != before)) __builtin_trap();
    const PodFrame& frame = parsed->frame;
    if (fresh.ok() && *fresh &&
        (frame.offset < 0 || frame.offset > frame.size - frame.bytes() || frame.number == 0)) {
      __builtin_trap();
    }
    while (const auto message = queue.PopWhole()) {
      ++messages;
      if (static_cast<int64_t>(message->payload.size()) > kMostPayload) __builtin_trap();
      volatile char last = 0;  // every byte of it is there
      for (const char byte : absl::string_view(message->payload)) last = byte;
      (void)last;
      queue.TookOne();
    }
  }
  if (queue.received() > frames || messages > frames || queue.taken() != messages) {
    __builtin_trap();
  }
  return 0;
}
