#include "parallel/pod_stream.h"

#include <algorithm>
#include <cstring>
#include <tuple>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "core/check.h"
#include "core/status_macros.h"

namespace toroid {
namespace {

// Frames that may be here before an earlier one: what the flows of a peer can be apart.
constexpr size_t kMostBeyond = size_t{1} << 16;

absl::Status Broken(const PodFrame& frame, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("broken stream: frame ", frame.number,
                                                 " of message ", frame.message, ": ", what));
}

bool SameWords(const PodMessage& a, const PodMessage& b) {
  return std::tie(a.from.pod, a.epoch, a.view, a.kind, a.step, a.fragment, a.codec, a.weight) ==
         std::tie(b.from.pod, b.epoch, b.view, b.kind, b.step, b.fragment, b.codec, b.weight);
}

}  // namespace

void PodSendQueue::Add(PodMessage message) {
  const int64_t bytes = static_cast<int64_t>(message.payload.size());
  // A message of no bytes weighs one, so that a queue of them is bounded too.
  messages_.push_back({std::make_shared<const PodMessage>(std::move(message)), bytes + 1});
  waiting_ += bytes + 1;
}

PodFrame PodSendQueue::Next(int flow) {
  TOROID_CHECK(HasFrame());
  if (!again_.empty()) {
    Kept& kept = kept_.at(*again_.begin());
    again_.erase(again_.begin());
    kept.flow = flow;
    return kept.frame;
  }
  const std::shared_ptr<const PodMessage>& message = messages_[sent_message_].content;
  const int64_t size = static_cast<int64_t>(message->payload.size());
  PodFrame frame;
  frame.number = ++last_frame_;
  frame.message = taken_ + sent_message_ + 1;
  frame.offset = sent_offset_;
  frame.size = size;
  frame.words.view = message->view;
  frame.words.kind = message->kind;
  frame.words.step = message->step;
  frame.words.fragment = message->fragment;
  frame.words.codec = message->codec;
  frame.words.weight = message->weight;
  const int64_t bytes = std::min(frame_bytes_, size - sent_offset_);
  if (bytes > 0) frame.data = {absl::string_view(message->payload.data() + sent_offset_, bytes)};
  frame.owner = message;
  sent_offset_ += bytes;
  if (sent_offset_ == size) {
    ++sent_message_;
    sent_offset_ = 0;
  }
  kept_[frame.number] = {frame, flow};
  return frame;
}

bool PodSendQueue::Acknowledged(uint64_t received, uint64_t taken) {
  if (received > last_frame_ || taken > taken_ + sent_message_) return false;
  while (!kept_.empty() && kept_.begin()->first <= received) {
    again_.erase(kept_.begin()->first);
    kept_.erase(kept_.begin());
  }
  while (taken_ < taken) {
    waiting_ -= messages_.front().bytes;
    messages_.pop_front();
    --sent_message_;
    ++taken_;
  }
  return true;
}

void PodSendQueue::FlowCut(int flow) {
  for (auto& [number, kept] : kept_) {
    if (kept.flow != flow) continue;
    kept.flow = -1;
    again_.insert(number);
  }
}

void PodSendQueue::Restart() {
  while (!messages_.empty() && (!line_lost_ || taken_ < for_next_)) {
    waiting_ -= messages_.front().bytes;
    messages_.pop_front();
    ++taken_;
  }
  kept_.clear();
  again_.clear();
  taken_ = last_frame_ = for_next_ = 0;
  sent_message_ = 0;
  sent_offset_ = 0;
  line_lost_ = false;
}

// The frame's data, whose place is next, and what waited for it. None ends behind its message.
absl::Status PodReceiveQueue::Append(const PodFrame& frame, Message& message) {
  const auto append = [&message](const PodFrame& next) {
    char* const payload = message.content.payload.mutable_data();
    for (const absl::string_view piece : next.data) {
      std::memcpy(payload + message.filled, piece.data(), piece.size());
      message.filled += static_cast<int64_t>(piece.size());
    }
  };
  append(frame);
  while (!message.ahead.empty()) {
    const auto first = message.ahead.begin();
    if (first->first > message.filled) break;
    if (first->first < message.filled) return Broken(frame, "it overlaps");
    append(first->second);
    message.ahead.erase(first);
  }
  return absl::OkStatus();
}

absl::StatusOr<bool> PodReceiveQueue::Take(const PodFrame& frame) {
  if (frame.number == 0 || frame.message == 0) return Broken(frame, "no number");
  if (frame.number <= received_ || beyond_.count(frame.number) > 0) return false;
  const int64_t bytes = frame.bytes();
  if (frame.size < 0 || frame.size > kMostPodPayload || frame.offset < 0 || bytes > frame.size ||
      bytes > kPodFrameBytes || frame.offset > frame.size - bytes ||
      (bytes == 0 && frame.size > 0)) {
    return Broken(frame, absl::StrCat(bytes, " bytes at ", frame.offset, " of ", frame.size));
  }
  if (frame.message <= popped_) return Broken(frame, "its message was whole without it");
  if (beyond_.size() >= kMostBeyond) return Broken(frame, "too far ahead");
  Message& message = messages_[frame.message];
  if (message.size < 0) {
    if (held_ > 0 && held_ + frame.size > limit_ + kMostPodPayload) {
      messages_.erase(frame.message);
      return Broken(frame, absl::StrCat("more than ", limit_, " bytes wait to be taken"));
    }
    message.size = frame.size;
    message.content = frame.words;
    message.content.payload = memory_.Take(static_cast<size_t>(frame.size));
    held_ += frame.size;
  }
  const int64_t filled = message.filled;
  if (message.size != frame.size || !SameWords(message.content, frame.words) ||
      frame.offset < filled || message.ahead.count(frame.offset) > 0) {
    return Broken(frame, "it is not of one piece with those before");
  }
  if (frame.offset > filled) {
    message.ahead.emplace(frame.offset, frame);
  } else {
    TOROID_RETURN_IF_ERROR(Append(frame, message));
  }
  beyond_.insert(frame.number);
  while (!beyond_.empty() && *beyond_.begin() == received_ + 1) {
    beyond_.erase(beyond_.begin());
    ++received_;
  }
  return true;
}

std::optional<PodMessage> PodReceiveQueue::PopWhole() {
  const auto next = messages_.find(popped_ + 1);
  if (next == messages_.end()) return std::nullopt;
  Message& message = next->second;
  if (message.filled != message.size) return std::nullopt;
  PodMessage whole = std::move(message.content);
  held_ -= message.size;
  messages_.erase(next);
  ++popped_;
  return whole;
}

}  // namespace toroid
