#include "launcher/client.h"

#include "core/status_macros.h"
#include "launcher/interrupt.h"
#include "launcher/options.h"

namespace toroid {

const OptionTable kClientOptions = {"controller",
                                    {
                                        {"--controller", ValueKind::kText, "HOST:PORT",
                                         "127.0.0.1:7070", "also TOROID_CONTROLLER", true},
                                        kTlsDir,
                                        {"--timeout", ValueKind::kSeconds, "T", "0",
                                         "end after this time (exit 124); 0: never", true},
                                    }};

absl::StatusOr<std::unique_ptr<Client>> ConnectClient(const Arguments& arguments) {
  Interrupt::Install(arguments.Real("--timeout"));
  ClientOptions options;
  options.controller = arguments.Text("--controller");
  TOROID_ASSIGN_OR_RETURN(options.tls, ReadTls(arguments.Text("--tls-dir")));
  options.interrupt = Interrupt::Flag();
  return NewClient(options);
}

}  // namespace toroid
