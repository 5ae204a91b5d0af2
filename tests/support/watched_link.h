// A link at whose messages a test looks, before they are sent and when they have come.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <utility>

#include "parallel/passing_pod_link.h"

namespace toroid {

class WatchedLink : public PassingPodLink {
 public:
  using Look = std::function<void(PodMessage&)>;  // may be null
  WatchedLink(PodLink& link, Look sends, Look has)
      : PassingPodLink(link), sends_(std::move(sends)), has_(std::move(has)) {}
  WatchedLink(std::unique_ptr<PodLink> link, Look sends, Look has)
      : PassingPodLink(std::move(link)), sends_(std::move(sends)), has_(std::move(has)) {}
  absl::Status Send(PodRank to, PodMessage message, absl::Time deadline) override {
    if (sends_) sends_(message);
    return PassingPodLink::Send(to, std::move(message), deadline);
  }
  absl::StatusOr<std::optional<PodMessage>> Receive(absl::Time deadline) override {
    auto message = PassingPodLink::Receive(deadline);
    if (has_ && message.ok() && message->has_value()) has_(**message);
    return message;
  }

 private:
  const Look sends_, has_;
};

}  // namespace toroid
