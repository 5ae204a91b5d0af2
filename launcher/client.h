// Client mode: the controller that job, pod and models talk to.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "launcher/command_line.h"
#include "rpc/client.h"

namespace toroid {

extern const OptionTable kClientOptions;  // --controller, --tls-dir, --timeout

// --controller or TOROID_CONTROLLER, else 127.0.0.1:7070. Installs Ctrl-C.
absl::StatusOr<std::unique_ptr<Client>> ConnectClient(const Arguments& arguments);

}  // namespace toroid
