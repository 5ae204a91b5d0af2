// A private certificate authority for TLS between our processes (tls.h): P-256 keys, one
// certificate per host, good for both sides of a connection. Not thread-safe.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace toroid {

constexpr int kDefaultCertificateDays = 90;
constexpr int kMostCertificateDays = 825;

// Writes dir/ca.pem and dir/ca-key.pem (mode 0600), good for ten years. AlreadyExists: there is
// one; PermissionDenied: cannot be written.
absl::Status InitPki(const std::string& dir);

// A certificate for one host. names: "node1" or "node1,node1.lan,10.0.0.5": what it is dialled by,
// DNS names and addresses; localhost and its addresses are added. Written to dir/node1/{ca.pem,
// cert.pem, key.pem} (the folder 0700, the key 0600), in place of an earlier one. The folder's
// path. NotFound: no CA in dir; InvalidArgument: a name that is none, days out of 1 to 825.
absl::StatusOr<std::string> IssueCertificate(const std::string& dir, const std::string& names,
                                             int days);

}  // namespace toroid
