#include "rpc/pki.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <openssl/rand.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <sstream>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "core/status_macros.h"
#include "rpc/tls_openssl.h"

namespace toroid {
namespace {

constexpr int kCaDays = 3653;
// Clocks of hosts differ: a certificate is good from a little before it was made.
constexpr long kBackdateSeconds = 300;
constexpr long kDaySeconds = 24 * 3600;

absl::Status MakePrivateDirectory(const std::string& path) {
  if (mkdir(path.c_str(), 0700) == 0 || errno == EEXIST) return absl::OkStatus();
  return absl::PermissionDeniedError(
      absl::StrCat("directory cannot be made: ", path, ": ", strerror(errno)));
}

// Whole or not at all, under another name first; nobody else can read it at any moment.
absl::Status WriteFile(const std::string& path, const std::string& text, mode_t mode) {
  const std::string partial = absl::StrCat(path, ".partial");
  (void)unlink(partial.c_str());
  const int fd = open(partial.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, mode);
  bool written = fd >= 0;
  for (size_t done = 0; written && done < text.size();) {
    const ssize_t n = write(fd, text.data() + done, text.size() - done);
    written = n > 0 || (n < 0 && errno == EINTR);
    done += n > 0 ? static_cast<size_t>(n) : 0;
  }
  written = written && fsync(fd) == 0 && rename(partial.c_str(), path.c_str()) == 0;
  const int error = errno;
  if (fd >= 0) close(fd);
  if (written) return absl::OkStatus();
  (void)unlink(partial.c_str());
  return absl::PermissionDeniedError(absl::StrCat("cannot write ", path, ": ", strerror(error)));
}

std::string ReadWhole(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::stringstream text;
  text << in.rdbuf();
  return text.str();
}

template <typename Write>
std::string Pem(const Write& write) {
  const MemoryBio bio(BIO_new(BIO_s_mem()));
  write(bio.get());
  char* data = nullptr;
  const long size = BIO_get_mem_data(bio.get(), &data);
  return std::string(data, static_cast<size_t>(size));
}
std::string PemOf(X509* certificate) {
  return Pem([&](BIO* bio) { PEM_write_bio_X509(bio, certificate); });
}
std::string PemOf(EVP_PKEY* key) {
  return Pem(
      [&](BIO* bio) { PEM_write_bio_PrivateKey(bio, key, nullptr, nullptr, 0, nullptr, nullptr); });
}

struct Extension {
  int nid;
  std::string value;
};

// `ca` null: it signs itself.
absl::StatusOr<Certificate> Sign(EVP_PKEY* key, const std::string& name, int days, X509* ca,
                                 EVP_PKEY* ca_key, const std::vector<Extension>& extensions) {
  Certificate out(X509_new());
  X509_set_version(out.get(), 2);  // X.509 v3
  unsigned char serial[16];
  bool good = RAND_bytes(serial, sizeof(serial)) == 1;
  serial[0] &= 0x7f;  // positive
  const std::unique_ptr<BIGNUM, OpensslFree<BN_free>> number(
      BN_bin2bn(serial, sizeof(serial), nullptr));
  good = good && BN_to_ASN1_INTEGER(number.get(), X509_get_serialNumber(out.get())) != nullptr;
  X509_gmtime_adj(X509_getm_notBefore(out.get()), -kBackdateSeconds);
  X509_gmtime_adj(X509_getm_notAfter(out.get()), days * kDaySeconds);
  X509_NAME* subject = X509_get_subject_name(out.get());
  good = good && X509_NAME_add_entry_by_txt(subject, "CN", MBSTRING_UTF8,
                                            reinterpret_cast<const unsigned char*>(name.data()),
                                            static_cast<int>(name.size()), -1, 0) == 1;
  X509_set_issuer_name(out.get(), ca == nullptr ? subject : X509_get_subject_name(ca));
  X509_set_pubkey(out.get(), key);
  X509V3_CTX context;
  X509V3_set_ctx(&context, ca == nullptr ? out.get() : ca, out.get(), nullptr, nullptr, 0);
  for (const Extension& extension : extensions) {
    X509_EXTENSION* made =
        X509V3_EXT_conf_nid(nullptr, &context, extension.nid, extension.value.c_str());
    good = good && made != nullptr && X509_add_ext(out.get(), made, -1) == 1;
    X509_EXTENSION_free(made);
  }
  if (!good || X509_sign(out.get(), ca_key, EVP_sha256()) == 0) {
    return absl::InternalError(absl::StrCat("certificate cannot be made: ", OpensslError()));
  }
  return out;
}

bool IsIp(const std::string& name) {
  unsigned char bytes[16];
  return inet_pton(AF_INET, name.c_str(), bytes) == 1 ||
         inet_pton(AF_INET6, name.c_str(), bytes) == 1;
}

bool IsHostName(const std::string& name) {
  static constexpr char kLetters[] =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.";
  return !name.empty() && name.size() <= 253 && name[0] != '-' && name[0] != '.' &&
         name.find_first_not_of(kLetters) == std::string::npos;
}

// "DNS:node1, IP:10.0.0.5, .."
absl::StatusOr<std::string> AlternativeNames(const std::vector<std::string>& names) {
  std::vector<std::string> out;
  for (const std::string& name : names) {
    const bool ip = IsIp(name);
    if (!ip && !IsHostName(name)) {
      return absl::InvalidArgumentError(absl::StrCat(
          "not a host: '", name, "': write a name or an address, without a port: node1,10.0.0.5"));
    }
    out.push_back(absl::StrCat(ip ? "IP:" : "DNS:", name));
  }
  for (const char* local : {"DNS:localhost", "IP:127.0.0.1", "IP:::1"}) {
    bool there = false;
    for (const std::string& name : out) there |= name == local;
    if (!there) out.push_back(local);
  }
  return absl::StrJoin(out, ",");
}

}  // namespace

absl::Status InitPki(const std::string& dir) {
  TOROID_RETURN_IF_ERROR(MakePrivateDirectory(dir));
  if (access((dir + "/ca-key.pem").c_str(), F_OK) == 0) {
    return absl::AlreadyExistsError(absl::StrCat("there is a CA: ", dir,
                                                 ": another would refuse every certificate of this "
                                                 "one: give a new directory"));
  }
  const PrivateKey key(EVP_EC_gen("P-256"));
  if (key == nullptr) return absl::InternalError("key cannot be made: " + OpensslError());
  TOROID_ASSIGN_OR_RETURN(const Certificate ca,
                          Sign(key.get(), "toroid CA", kCaDays, nullptr, key.get(),
                               {{NID_basic_constraints, "critical,CA:TRUE,pathlen:0"},
                                {NID_key_usage, "critical,keyCertSign,cRLSign"},
                                {NID_subject_key_identifier, "hash"}}));
  TOROID_RETURN_IF_ERROR(WriteFile(dir + "/ca.pem", PemOf(ca.get()), 0644));
  return WriteFile(dir + "/ca-key.pem", PemOf(key.get()), 0600);
}

absl::StatusOr<std::string> IssueCertificate(const std::string& dir, const std::string& names,
                                             int days) {
  if (days < 1 || days > kMostCertificateDays) {
    return absl::InvalidArgumentError(
        absl::StrCat("bad number of days: ", days, ": give 1 to ", kMostCertificateDays));
  }
  const std::vector<std::string> hosts = absl::StrSplit(names, ',');
  TOROID_ASSIGN_OR_RETURN(const std::string alternatives, AlternativeNames(hosts));
  const std::string ca_pem = ReadWhole(dir + "/ca.pem");
  const Certificate ca = ParseCertificate(ca_pem);
  const PrivateKey ca_key = ParseKey(ReadWhole(dir + "/ca-key.pem"));
  ERR_clear_error();
  if (ca == nullptr || ca_key == nullptr) {
    return absl::NotFoundError(
        absl::StrCat("no CA: ", dir, ": ca.pem or ca-key.pem cannot be read: toroid pki init ", dir,
                     " makes one"));
  }
  const PrivateKey key(EVP_EC_gen("P-256"));
  if (key == nullptr) return absl::InternalError("key cannot be made: " + OpensslError());
  // A common name ends at 64 letters; whom it is for stands in the alternative names.
  TOROID_ASSIGN_OR_RETURN(const Certificate certificate,
                          Sign(key.get(), hosts[0].substr(0, 64), days, ca.get(), ca_key.get(),
                               {{NID_basic_constraints, "critical,CA:FALSE"},
                                {NID_key_usage, "critical,digitalSignature"},
                                {NID_ext_key_usage, "serverAuth,clientAuth"},
                                {NID_subject_key_identifier, "hash"},
                                {NID_authority_key_identifier, "keyid"},
                                {NID_subject_alt_name, alternatives}}));
  const std::string folder = absl::StrCat(dir, "/", hosts[0]);
  TOROID_RETURN_IF_ERROR(MakePrivateDirectory(folder));
  TOROID_RETURN_IF_ERROR(WriteFile(folder + "/ca.pem", ca_pem, 0644));
  TOROID_RETURN_IF_ERROR(WriteFile(folder + "/key.pem", PemOf(key.get()), 0600));
  TOROID_RETURN_IF_ERROR(WriteFile(folder + "/cert.pem", PemOf(certificate.get()), 0644));
  return folder;
}

}  // namespace toroid
