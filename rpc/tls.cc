#include "rpc/tls.h"

#include <sys/stat.h>

#include <fstream>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "core/status_macros.h"
#include "rpc/tls_openssl.h"

namespace toroid {
namespace {

constexpr char kIssue[] = "toroid pki issue makes one";

absl::StatusOr<std::string> ReadPem(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::stringstream text;
  if (!in || !(text << in.rdbuf())) {
    return absl::NotFoundError(absl::StrCat("TLS file not readable: ", path, ": ", kIssue));
  }
  return text.str();
}

// The certificate against its own CA, as the other side will see it.
absl::Status CheckChain(X509* certificate, X509* ca, const std::string& dir) {
  const CertificateStore store(X509_STORE_new());
  const std::unique_ptr<X509_STORE_CTX, OpensslFree<X509_STORE_CTX_free>> context(
      X509_STORE_CTX_new());
  X509_STORE_add_cert(store.get(), ca);
  X509_STORE_CTX_init(context.get(), store.get(), certificate, nullptr);
  if (X509_verify_cert(context.get()) == 1) return absl::OkStatus();
  const int error = X509_STORE_CTX_get_error(context.get());
  const bool time = error == X509_V_ERR_CERT_HAS_EXPIRED || error == X509_V_ERR_CERT_NOT_YET_VALID;
  return absl::InvalidArgumentError(absl::StrCat(
      "certificate is not valid: ", dir,
      "/cert.pem: ", time ? X509_verify_cert_error_string(error) : "it is not of the CA in ca.pem",
      ": issue another (toroid pki issue)"));
}

}  // namespace

absl::StatusOr<Tls> ReadTls(const std::string& dir) {
  Tls tls;
  if (dir.empty()) return tls;
  tls.dir = dir;
  TOROID_ASSIGN_OR_RETURN(tls.ca, ReadPem(dir + "/ca.pem"));
  TOROID_ASSIGN_OR_RETURN(tls.certificate, ReadPem(dir + "/cert.pem"));
  TOROID_ASSIGN_OR_RETURN(tls.key, ReadPem(dir + "/key.pem"));
  struct stat info;
  if (stat((dir + "/key.pem").c_str(), &info) != 0 || (info.st_mode & 077) != 0) {
    return absl::PermissionDeniedError(
        absl::StrCat("key is open to others: ", dir, "/key.pem: its mode must be 0600"));
  }
  const Certificate ca = ParseCertificate(tls.ca), certificate = ParseCertificate(tls.certificate);
  const PrivateKey key = ParseKey(tls.key);
  for (const auto& [file, missing] :
       {std::pair("ca.pem", ca == nullptr), std::pair("cert.pem", certificate == nullptr),
        std::pair("key.pem", key == nullptr)}) {
    if (!missing) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("unreadable TLS file: ", dir, "/", file, ": ", OpensslError(), ": ", kIssue));
  }
  if (X509_check_private_key(certificate.get(), key.get()) != 1) {
    ERR_clear_error();
    return absl::InvalidArgumentError(
        absl::StrCat("key is another's: ", dir, "/key.pem does not belong to cert.pem: ", kIssue));
  }
  TOROID_RETURN_IF_ERROR(CheckChain(certificate.get(), ca.get(), dir));
  return tls;
}

}  // namespace toroid
