// The agent's stream to the controller: orders come into a queue, reports go out. Thread-safe.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "rpc/agent.h"
#include "rpc/control.h"
#include "rpc/tls.h"

namespace toroid {

struct LeaseOrder {
  absl::Duration lease;  // zero: as before
  bool registered = false;
};
struct StopOrder {
  WorldId world;
};
struct StreamClosed {
  absl::Status why;
};
using AgentOrder = std::variant<LeaseOrder, LaunchOrder, StopOrder, StreamClosed>;

class AgentClient {
 public:
  virtual ~AgentClient() = default;
  virtual void Report(const AgentReport& report) = 0;
  virtual void Heartbeat() = 0;
  // Orders that have come since the last call.
  virtual std::vector<AgentOrder> Take() = 0;
};

// Dials `controller` and registers. `wake` is called (on any thread) when there is an order to
// take; StreamClosed is the last.
std::unique_ptr<AgentClient> DialController(const std::string& controller, const Tls& tls,
                                            const PodRegistration& registration,
                                            std::function<void()> wake);

}  // namespace toroid
