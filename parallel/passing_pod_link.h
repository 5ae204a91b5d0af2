// A link that passes everything on to another one: what links derive from that do one thing more.
#pragma once

#include <memory>
#include <optional>
#include <utility>

#include "parallel/pod_link.h"

namespace toroid {

class PassingPodLink : public PodLink {
 public:
  const PodIdentity& identity() const override { return inner_.identity(); }
  absl::Status Send(PodRank to, PodMessage message, absl::Time deadline) override {
    return inner_.Send(to, std::move(message), deadline);
  }
  absl::StatusOr<std::optional<PodMessage>> Receive(absl::Time deadline) override {
    return inner_.Receive(deadline);
  }
  absl::Time LastHeard(int64_t pod) const override { return inner_.LastHeard(pod); }
  absl::Status Renew(Communicator& world) override { return inner_.Renew(world); }
  PodLinkCounters counters() const override { return inner_.counters(); }

 protected:
  explicit PassingPodLink(PodLink& inner) : inner_(inner) {}  // which outlives it
  explicit PassingPodLink(std::unique_ptr<PodLink> inner)
      : owned_(std::move(inner)), inner_(*owned_) {}

 private:
  const std::unique_ptr<PodLink> owned_;
  PodLink& inner_;
};

}  // namespace toroid
