// TLS between our processes: who may speak to whom. Both sides show a certificate and verify the
// other's against one private CA (pki.h makes them); the dialling side verifies the host's name
// too.
//
// A directory holds ca.pem, cert.pem and key.pem. It is read once, when a process starts or, in
// agents, dials: a new certificate is taken up by what starts after it was issued.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace toroid {

// Empty: plaintext, for addresses of this machine alone.
struct Tls {
  std::string dir;
  std::string ca, certificate, key;  // PEM
  bool on() const { return !dir.empty(); }
};

// What `dir` holds, or plaintext if it is empty. NotFound: a file is missing; PermissionDenied: the
// key can be read by others; InvalidArgument: unreadable, the key is another's, the certificate is
// not of this CA or has ended. Each names the file and the remedy.
absl::StatusOr<Tls> ReadTls(const std::string& dir);

// Why a connection to host:port does not come about, by trying once: gRPC does not tell. At most
// `limit`. Unauthenticated (reason TLS_REFUSED), naming address and remedy: another CA, another
// host's certificate, our certificate is refused, or one side speaks plaintext and the other TLS.
// OK: it comes about, or nobody listens, which gRPC does tell.
absl::Status WhyNoConnection(absl::string_view address, const Tls& tls,
                             absl::Duration limit = absl::Seconds(2));

}  // namespace toroid
