// Owners of OpenSSL's objects, and its errors. Included by tls*.cc and pki.cc only.
#pragma once

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>

#include <memory>
#include <string>

namespace toroid {

template <auto Free>
struct OpensslFree {
  template <typename T>
  void operator()(T* object) const {
    Free(object);
  }
};
using Certificate = std::unique_ptr<X509, OpensslFree<X509_free>>;
using CertificateStore = std::unique_ptr<X509_STORE, OpensslFree<X509_STORE_free>>;
using PrivateKey = std::unique_ptr<EVP_PKEY, OpensslFree<EVP_PKEY_free>>;
using MemoryBio = std::unique_ptr<BIO, OpensslFree<BIO_free_all>>;

inline MemoryBio ReadingBio(const std::string& text) {
  return MemoryBio(BIO_new_mem_buf(text.data(), static_cast<int>(text.size())));
}

// Null if the text holds none.
inline Certificate ParseCertificate(const std::string& pem) {
  return Certificate(PEM_read_bio_X509(ReadingBio(pem).get(), nullptr, nullptr, nullptr));
}
inline PrivateKey ParseKey(const std::string& pem) {
  // No pass phrase is asked for on the terminal.
  const auto none = [](char*, int, int, void*) { return 0; };
  return PrivateKey(PEM_read_bio_PrivateKey(ReadingBio(pem).get(), nullptr, none, nullptr));
}

// What OpenSSL says of its last failure; its queue of errors is empty afterwards.
inline std::string OpensslError() {
  const char* reason = ERR_reason_error_string(ERR_peek_last_error());
  ERR_clear_error();
  return reason == nullptr ? "no reason given" : reason;
}

}  // namespace toroid
