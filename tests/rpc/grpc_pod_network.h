// Networks of gRPC links between the threads of a test, and certificates for them.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "parallel/passing_pod_link.h"
#include "rpc/exchange_link.h"
#include "rpc/pki.h"
#include "tests/support/pod_link_conformance.h"

namespace toroid {

// Certificates of one CA, of which nothing stays on disk.
class Ca {
 public:
  explicit Ca(const std::string& name)
      : dir_(absl::StrCat(::testing::TempDir(), "/link-", name, "-", getpid())) {
    EXPECT_TRUE(InitPki(dir_).ok());
  }
  ~Ca() { std::filesystem::remove_all(dir_); }
  Tls Issue(const std::string& names) const {
    auto tls = ReadTls(*IssueCertificate(dir_, names, 1));
    EXPECT_TRUE(tls.ok()) << tls.status();
    return *std::move(tls);
  }

 private:
  const std::string dir_;
};
// A certificate for this machine, of a CA of its own.
inline Tls TestTls(const std::string& name) { return Ca(name).Issue("here"); }

// Links of one process that know each other's ports.
class GrpcPodNetwork : public PodLinkNetwork {
 public:
  explicit GrpcPodNetwork(GrpcPodLinkOptions options) : options_(std::move(options)) {}

  std::unique_ptr<PodLink> Attach(const PodIdentity& identity) override {
    auto link = NewGrpcPodLink(identity, options_);
    EXPECT_TRUE(link.ok()) << link.status();
    const PodRank self = identity.self;
    for (const auto& [rank, other] : here_) {
      if (rank.pod == self.pod) continue;
      (*link)->AddPeer(rank, Address(*other));
      if (!*alive_[rank]) continue;
      other->AddPeer(self, Address(**link));
    }
    here_[self] = link->get();
    alive_[self] = std::make_shared<bool>(true);
    return std::make_unique<Guarded>(*std::move(link), alive_[self]);
  }
  void Cut(PodRank a, PodRank b) override {
    here_[a]->Cut(b);
    here_[b]->Cut(a);
  }
  void Heal(PodRank, PodRank) override {}

 private:
  // Tells the network that it is gone.
  class Guarded : public PassingPodLink {
   public:
    Guarded(std::unique_ptr<GrpcPodLink> link, std::shared_ptr<bool> alive)
        : PassingPodLink(std::move(link)), alive_(std::move(alive)) {}
    ~Guarded() override { *alive_ = false; }

   private:
    const std::shared_ptr<bool> alive_;
  };
  static std::string Address(const GrpcPodLink& link) {
    return absl::StrCat("127.0.0.1:", link.port());
  }

  const GrpcPodLinkOptions options_;
  std::map<PodRank, GrpcPodLink*> here_;
  std::map<PodRank, std::shared_ptr<bool>> alive_;
};

}  // namespace toroid
