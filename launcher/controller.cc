// toroid controller: jobs, scheduling and requests of all pods, in one process.
#include "absl/strings/str_cat.h"
#include "core/status_macros.h"
#include "launcher/exit_code.h"
#include "launcher/interrupt.h"
#include "launcher/services.h"
#include "launcher/terminal.h"
#include "launcher/verbs.h"
#include "rpc/server.h"

namespace toroid {
namespace {

absl::Status RunController(const Arguments& arguments) {
  EndWithParent(arguments);
  ControllerOptions options;
  options.listen = arguments.Text("--listen");
  TOROID_ASSIGN_OR_RETURN(options.state_dir, StateDir(arguments));
  options.lease = absl::Seconds(arguments.Real("--lease"));
  if (options.lease < absl::Seconds(2)) {
    return UsageError("bad value of --lease: agents are heard once a second: give at least 2s");
  }
  TOROID_ASSIGN_OR_RETURN(options.tls, ReadTls(arguments.Text("--tls-dir")));
  options.reflection = !arguments.Flag("--no-reflection");
  Interrupt::Install(/*timeout=*/0);
  TOROID_ASSIGN_OR_RETURN(const auto server, StartController(options));
  WriteStdout(absl::StrCat("READY ", server->address(), "\n"));
  WaitForStop();
  server->Shutdown(absl::Seconds(2));
  server->Wait();
  return absl::OkStatus();
}

}  // namespace

const Verb kControllerVerb = {
    .name = "controller",
    .summary = "the service that holds jobs and gives them to pods",
    .positionals = {},
    .tables = {&kControllerOptionsTable, &kTlsOptions, &kServiceOptions},
    .examples =
        "toroid controller --state /var/lib/toroid\n"
        "toroid controller --listen 127.0.0.1:0 --state /tmp/toroid\n"
        "toroid controller --listen 0.0.0.0:7070 --state /var/lib/toroid --tls-dir pki/head",
    .run = RunController,
    .details =
        "Prints READY and the address once it listens. Without --tls-dir it "
        "speaks plaintext, hence on\nloopback only; with it whoever dials shows a certificate.",
};

}  // namespace toroid
