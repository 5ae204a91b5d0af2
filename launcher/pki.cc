// toroid pki init|issue: a private CA and a certificate per host, for --tls-dir.
#include "rpc/pki.h"

#include "absl/strings/str_cat.h"
#include "core/status_macros.h"
#include "launcher/exit_code.h"
#include "launcher/terminal.h"
#include "launcher/verbs.h"

namespace toroid {
namespace {

absl::Status RunPkiInit(const Arguments& arguments) {
  const std::string dir = arguments.Text("DIR");
  TOROID_RETURN_IF_ERROR(InitPki(dir));
  Talk(absl::StrCat("CA in ", dir, ": keep ca-key.pem to yourself; now: toroid pki issue ", dir,
                    " HOST..."));
  return absl::OkStatus();
}

absl::Status RunPkiIssue(const Arguments& arguments) {
  if (arguments.rest().empty()) {
    return UsageError("no host: toroid pki issue DIR HOST...: name one, or several");
  }
  const int64_t days = arguments.Count("--days");
  if (days < 1 || days > kMostCertificateDays) {
    return UsageError(absl::StrCat("bad value of --days: give 1 to ", kMostCertificateDays));
  }
  for (const std::string& host : arguments.rest()) {
    if (!host.empty() && host[0] == '-') {
      return UsageError(absl::StrCat("flag behind DIR: ", host, ": flags come before it"));
    }
  }
  for (const std::string& host : arguments.rest()) {
    TOROID_ASSIGN_OR_RETURN(const std::string folder,
                            IssueCertificate(arguments.Text("DIR"), host, static_cast<int>(days)));
    WriteStdout(folder + "\n");
  }
  return absl::OkStatus();
}

const OptionTable kIssueOptions = {
    "certificates",
    {
        {"--days", ValueKind::kCount, "N", "90", "how long they are good for, at most 825"},
    }};
const Positional kDirectory = {"DIR", true, "the CA's directory"};

}  // namespace

const Verb kPkiInitVerb = {
    .name = "pki init",
    .summary = "make a private CA for --tls-dir",
    .positionals = {kDirectory},
    .tables = {},
    .examples = "toroid pki init pki",
    .run = RunPkiInit,
    .details =
        "Writes DIR/ca.pem and DIR/ca-key.pem (mode 0600), good for ten years. Whoever has the "
        "key can\nmake certificates: it need not lie on any host that runs toroid.",
};

const Verb kPkiIssueVerb = {
    .name = "pki issue",
    .summary = "make a certificate per host, signed by that CA",
    .positionals = {kDirectory},
    .tables = {&kIssueOptions},
    .examples =
        "toroid pki issue pki head node1 node2\n"
        "toroid pki issue --days 30 pki node1,node1.lan,10.0.0.5\n"
        "scp -r pki/node1 node1:/etc/toroid && ssh node1 toroid agent --pod a --controller "
        "head:7070 --tls-dir /etc/toroid/node1",
    .run = RunPkiIssue,
    .takes_rest = true,
    .rest = "HOST ...",
    .details =
        "After DIR one word per host: the names and addresses it is dialled by, commas between; "
        "localhost\nis always one. Writes DIR/HOST/{ca.pem,cert.pem,key.pem}, which is that "
        "host's --tls-dir, and prints\nthe folder. Again: a new certificate in place of the old.",
};

}  // namespace toroid
