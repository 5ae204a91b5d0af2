// One connection, tried by hand, to say why gRPC's do not come about.
#include <arpa/inet.h>
#include <netdb.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "rpc/error_info.h"
#include "rpc/tls.h"
#include "rpc/tls_openssl.h"

namespace toroid {
namespace {

using Context = std::unique_ptr<SSL_CTX, OpensslFree<SSL_CTX_free>>;
using Session = std::unique_ptr<SSL, OpensslFree<SSL_free>>;

// A write to a connection that was closed is an error here, not the end of the process.
class NoPipeSignal {
 public:
  NoPipeSignal() {
    sigemptyset(&pipe_);
    sigaddset(&pipe_, SIGPIPE);
    pthread_sigmask(SIG_BLOCK, &pipe_, &before_);
  }
  ~NoPipeSignal() {
    const timespec now{};
    if (sigismember(&before_, SIGPIPE) == 0) (void)sigtimedwait(&pipe_, nullptr, &now);
    pthread_sigmask(SIG_SETMASK, &before_, nullptr);
  }

 private:
  sigset_t pipe_, before_;
};

class Socket {
 public:
  explicit Socket(absl::Time deadline) : deadline_(deadline) {}
  ~Socket() {
    if (fd_ >= 0) close(fd_);
  }
  Socket(const Socket&) = delete;

  bool Connect(const std::string& host, const std::string& port) {
    addrinfo hints{}, *found = nullptr;
    hints.ai_socktype = SOCK_STREAM;
    if (getaddrinfo(host.c_str(), port.c_str(), &hints, &found) != 0) return false;
    bool connected = false;
    for (const addrinfo* at = found; at != nullptr && !connected; at = at->ai_next) {
      if (fd_ >= 0) close(fd_);
      fd_ = socket(at->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
      connected = fd_ >= 0 && Dial(at);
    }
    freeaddrinfo(found);
    return connected;
  }
  // False at the deadline.
  bool Await(short events) const {
    const int64_t left = absl::ToInt64Milliseconds(deadline_ - absl::Now());
    pollfd wait{fd_, events, 0};
    return left > 0 && poll(&wait, 1, static_cast<int>(left)) == 1;
  }
  int fd() const { return fd_; }

 private:
  bool Dial(const addrinfo* at) const {
    if (connect(fd_, at->ai_addr, at->ai_addrlen) == 0) return true;
    if (errno != EINPROGRESS || !Await(POLLOUT)) return false;
    int error = 0;
    socklen_t length = sizeof(error);
    return getsockopt(fd_, SOL_SOCKET, SO_ERROR, &error, &length) == 0 && error == 0;
  }

  const absl::Time deadline_;
  int fd_ = -1;
};

bool IsIp(const std::string& host) {
  unsigned char bytes[16];
  return inet_pton(AF_INET, host.c_str(), bytes) == 1 ||
         inet_pton(AF_INET6, host.c_str(), bytes) == 1;
}

absl::Status Refused(absl::string_view what, absl::string_view address, absl::string_view why) {
  return MakeError(absl::StatusCode::kUnauthenticated, absl::StrCat(what, ": ", address, ": ", why),
                   {"TLS_REFUSED", {{"address", std::string(address)}}, {}});
}

// The hosts that a certificate names.
std::string Names(X509* certificate) {
  std::vector<std::string> names;
  auto* all = static_cast<GENERAL_NAMES*>(
      X509_get_ext_d2i(certificate, NID_subject_alt_name, nullptr, nullptr));
  for (int i = 0; i < sk_GENERAL_NAME_num(all); ++i) {
    const GENERAL_NAME* name = sk_GENERAL_NAME_value(all, i);
    const ASN1_STRING* value = name->type == GEN_DNS     ? name->d.dNSName
                               : name->type == GEN_IPADD ? name->d.iPAddress
                                                         : nullptr;
    if (value == nullptr) continue;
    const unsigned char* bytes = ASN1_STRING_get0_data(value);
    const int size = ASN1_STRING_length(value);
    char text[INET6_ADDRSTRLEN] = "";
    if (name->type == GEN_DNS) {
      names.emplace_back(reinterpret_cast<const char*>(bytes), size);
    } else if (inet_ntop(size == 4 ? AF_INET : AF_INET6, bytes, text, sizeof(text)) != nullptr) {
      names.emplace_back(text);
    }
  }
  GENERAL_NAMES_free(all);
  return names.empty() ? "no host" : absl::StrJoin(names, ", ");
}

absl::Status WhyNotVerified(long error, const std::string& names, absl::string_view address,
                            const std::string& host, const Tls& tls) {
  constexpr char kFailed[] = "TLS refused";
  if (error == X509_V_ERR_HOSTNAME_MISMATCH || error == X509_V_ERR_IP_ADDRESS_MISMATCH) {
    return Refused(kFailed, address,
                   absl::StrCat("the certificate there names ", names, ", not ", host,
                                ": dial a name that it has, or issue it again with this one: "
                                "toroid pki issue DIR HOST,",
                                host));
  }
  if (error == X509_V_ERR_CERT_HAS_EXPIRED || error == X509_V_ERR_CERT_NOT_YET_VALID) {
    return Refused(kFailed, address,
                   absl::StrCat("the certificate there: ", X509_verify_cert_error_string(error),
                                ": issue it again (toroid pki issue) and restart that side"));
  }
  return Refused(
      kFailed, address,
      absl::StrCat("the certificate there is not of the CA in ", tls.dir,
                   "/ca.pem: give both sides certificates of one CA (toroid pki issue)"));
}

// A session does not keep a certificate that it refused: its names go to the application's data.
int KeepNames(int good, X509_STORE_CTX* context) {
  auto* session =
      static_cast<SSL*>(X509_STORE_CTX_get_ex_data(context, SSL_get_ex_data_X509_STORE_CTX_idx()));
  auto* names = static_cast<std::string*>(SSL_get_app_data(session));
  if (good == 0) *names = Names(X509_STORE_CTX_get0_cert(context));
  return good;
}

// Whether the last error is a connection that just ended, which says nothing of who was there: a
// process that is ending does so too.
bool Ended(int error) {
  return error == SSL_ERROR_SYSCALL ||
         (error == SSL_ERROR_SSL &&
          ERR_GET_REASON(ERR_peek_error()) == SSL_R_UNEXPECTED_EOF_WHILE_READING);
}

// Runs `step` until it is done, or the deadline. The last SSL error; SSL_ERROR_NONE: done.
template <typename Step>
int Drive(SSL* session, const Socket& socket, const Step& step) {
  while (true) {
    ERR_clear_error();
    const int result = step();
    const int error = SSL_get_error(session, result);
    if (error != SSL_ERROR_WANT_READ && error != SSL_ERROR_WANT_WRITE) return error;
    if (!socket.Await(error == SSL_ERROR_WANT_READ ? POLLIN : POLLOUT)) return error;
  }
}

Context NewContext(const Tls& tls) {
  Context context(SSL_CTX_new(TLS_client_method()));
  const Certificate ca = ParseCertificate(tls.ca), own = ParseCertificate(tls.certificate);
  const PrivateKey key = ParseKey(tls.key);
  X509_STORE_add_cert(SSL_CTX_get_cert_store(context.get()), ca.get());
  SSL_CTX_use_certificate(context.get(), own.get());
  SSL_CTX_use_PrivateKey(context.get(), key.get());
  static constexpr unsigned char kHttp2[] = {2, 'h', '2'};
  SSL_CTX_set_alpn_protos(context.get(), kHttp2, sizeof(kHttp2));
  return context;
}

absl::Status ProbeTls(const Socket& socket, absl::string_view address, const std::string& host,
                      const Tls& tls) {
  const Context context = NewContext(tls);
  const Session session(SSL_new(context.get()));
  std::string names;
  SSL_set_app_data(session.get(), &names);
  SSL_set_verify(session.get(), SSL_VERIFY_PEER, KeepNames);
  SSL_set_fd(session.get(), socket.fd());
  if (IsIp(host)) {
    X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(session.get()), host.c_str());
  } else {
    SSL_set1_host(session.get(), host.c_str());
    SSL_set_tlsext_host_name(session.get(), host.c_str());
  }
  int error = Drive(session.get(), socket, [&] { return SSL_connect(session.get()); });
  if (error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE) return absl::OkStatus();
  if (error != SSL_ERROR_NONE) {
    const long verified = SSL_get_verify_result(session.get());
    if (verified != X509_V_OK) {
      return WhyNotVerified(verified, names, address, host, tls);
    }
    if (Ended(error)) return absl::OkStatus();
    return Refused("no TLS there", address,
                   "the other side speaks plaintext: start it with --tls-dir, or drop --tls-dir "
                   "(TOROID_TLS_DIR) here");
  }
  // The other side looks at our certificate last: it speaks, or refuses us.
  char byte;
  error = Drive(session.get(), socket, [&] { return SSL_read(session.get(), &byte, 1); });
  if (error == SSL_ERROR_SSL || error == SSL_ERROR_SYSCALL) {
    return Refused("TLS refused", address,
                   absl::StrCat("the other side does not take our certificate, ", tls.dir,
                                "/cert.pem: give both sides certificates of one CA (toroid pki "
                                "issue)"));
  }
  return absl::OkStatus();
}

absl::Status ProbePlaintext(const Socket& socket, absl::string_view address) {
  // HTTP/2 begins with this, an empty SETTINGS frame last; a server answers with its own frame.
  static constexpr char kPreface[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0";
  (void)!send(socket.fd(), kPreface, sizeof(kPreface) - 1, MSG_NOSIGNAL);
  if (!socket.Await(POLLIN)) return absl::OkStatus();
  char answer = 0;
  const ssize_t n = recv(socket.fd(), &answer, 1, 0);
  constexpr char kAlert = 21;
  if (n == 1 && answer != kAlert) return absl::OkStatus();
  return Refused("TLS is asked for", address,
                 "the other side takes no plaintext: give --tls-dir DIR (TOROID_TLS_DIR) with a "
                 "certificate of its CA");
}

}  // namespace

absl::Status WhyNoConnection(absl::string_view address, const Tls& tls, absl::Duration limit) {
  const size_t colon = address.rfind(':');
  if (colon == absl::string_view::npos) return absl::OkStatus();
  std::string host(address.substr(0, colon));
  if (host.size() > 2 && host[0] == '[') host = host.substr(1, host.size() - 2);
  const NoPipeSignal guard;
  Socket socket(absl::Now() + limit);
  if (!socket.Connect(host, std::string(address.substr(colon + 1)))) return absl::OkStatus();
  return tls.on() ? ProbeTls(socket, address, host, tls) : ProbePlaintext(socket, address);
}

}  // namespace toroid
