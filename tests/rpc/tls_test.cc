// Who may speak to whom: certificates as they are made, read, and refused between processes.
#include "rpc/tls.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "rpc/client.h"
#include "rpc/error_info.h"
#include "rpc/pki.h"
#include "rpc/server.h"

namespace toroid {
namespace {

using ::testing::HasSubstr;
namespace fs = std::filesystem;

class TlsTest : public ::testing::Test {
 protected:
  TlsTest()
      : dir_(absl::StrCat(::testing::TempDir(), "/tls-",
                          ::testing::UnitTest::GetInstance()->current_test_info()->name(), "-",
                          getpid())) {
    fs::create_directories(dir_);
  }
  ~TlsTest() override { fs::remove_all(dir_); }

  // A certificate for `names` of the CA called `ca`, which is made when it is first asked for.
  Tls Issue(const std::string& ca, const std::string& names) {
    const std::string dir = absl::StrCat(dir_, "/", ca);
    if (!fs::exists(dir)) {
      EXPECT_TRUE(InitPki(dir).ok());
    }
    const auto folder = IssueCertificate(dir, names, 30);
    EXPECT_TRUE(folder.ok()) << folder.status();
    auto tls = ReadTls(folder.value_or("nowhere"));
    EXPECT_TRUE(tls.ok()) << tls.status();
    return tls.value_or(Tls());
  }
  std::unique_ptr<ControllerServer> Serve(const Tls& tls, const std::string& listen) {
    ControllerOptions options;
    options.listen = listen;
    options.state_dir = dir_ + "/state";
    options.tls = tls;
    auto server = StartController(options);
    EXPECT_TRUE(server.ok()) << server.status();
    return server.ok() ? *std::move(server) : nullptr;
  }
  static absl::Status Dial(const std::string& address, const Tls& tls) {
    ClientOptions options;
    options.controller = address;
    options.tls = tls;
    return NewClient(options)->ListPods().status();
  }
  static void ExpectRefused(const absl::Status& status, const std::string& address,
                            const std::vector<std::string>& words) {
    EXPECT_EQ(status.code(), absl::StatusCode::kUnauthenticated) << status;
    EXPECT_EQ(GetErrorInfo(status).reason, "TLS_REFUSED");
    EXPECT_THAT(status.ToString(), HasSubstr(address));
    for (const std::string& word : words) EXPECT_THAT(status.ToString(), HasSubstr(word));
  }

  const std::string dir_;
};

TEST_F(TlsTest, FilesArePrivateAndCheckedWhenRead) {
  EXPECT_FALSE(ReadTls("")->on());
  const Tls a = Issue("ca", "node1,10.0.0.5"), b = Issue("ca", "node2");
  EXPECT_TRUE(a.on());
  EXPECT_EQ(a.dir, dir_ + "/ca/node1");
  struct stat info;
  for (const std::string& key : {dir_ + "/ca/ca-key.pem", a.dir + "/key.pem"}) {
    ASSERT_EQ(stat(key.c_str(), &info), 0);
    EXPECT_EQ(info.st_mode & 0777, 0600u);
  }
  chmod((a.dir + "/key.pem").c_str(), 0640);
  EXPECT_EQ(ReadTls(a.dir).status().code(), absl::StatusCode::kPermissionDenied);
  chmod((a.dir + "/key.pem").c_str(), 0600);
  EXPECT_TRUE(ReadTls(a.dir).ok());

  const auto broken = [&](const std::string& file, const std::string& from) {
    const auto options = fs::copy_options::overwrite_existing;
    fs::copy_file(a.dir + "/" + file, dir_ + "/kept", options);
    fs::copy_file(from, a.dir + "/" + file, options);
    const absl::Status status = ReadTls(a.dir).status();
    fs::copy_file(dir_ + "/kept", a.dir + "/" + file, options);
    return status.ToString();
  };
  Issue("other", "node1");
  EXPECT_THAT(broken("key.pem", b.dir + "/key.pem"), HasSubstr("key is another's"));
  EXPECT_THAT(broken("ca.pem", dir_ + "/other/ca.pem"), HasSubstr("not of the CA"));
  EXPECT_THAT(broken("cert.pem", "/etc/hostname"), HasSubstr("unreadable TLS file"));
  fs::remove(a.dir + "/cert.pem");
  EXPECT_EQ(ReadTls(a.dir).status().code(), absl::StatusCode::kNotFound);
  EXPECT_TRUE(ReadTls(Issue("ca", "node1,10.0.0.5").dir).ok());  // issued again in its place
}

TEST_F(TlsTest, WhatIsNoHostOrNoCaIsRefused) {
  const std::string ca = dir_ + "/ca";
  EXPECT_EQ(IssueCertificate(ca, "node1", 30).status().code(), absl::StatusCode::kNotFound);
  ASSERT_TRUE(InitPki(ca).ok());
  EXPECT_EQ(InitPki(ca).code(), absl::StatusCode::kAlreadyExists);
  for (const char* names : {"", "node1,", "node1:7070", "../up", ".hidden", "a b", "a/b",
                            "node1,DNS:evil", "*.lan", "-x"}) {
    EXPECT_EQ(IssueCertificate(ca, names, 30).status().code(), absl::StatusCode::kInvalidArgument)
        << names;
  }
  for (int days : {0, -1, 826}) {
    EXPECT_FALSE(IssueCertificate(ca, "node1", days).ok()) << days;
  }
  EXPECT_TRUE(IssueCertificate(ca, "node_1,node1.lan,::1,fd00::2", 825).ok());
}

TEST_F(TlsTest, TheRightCertificatesSpeakOnAnyAddress) {
  const auto server = Serve(Issue("ca", "head"), "0.0.0.0:0");
  ASSERT_NE(server, nullptr);
  const std::string port = absl::StrCat(":", server->port());
  const Tls client = Issue("ca", "laptop");
  for (const std::string host : {"127.0.0.1", "localhost"}) {
    const absl::Status status = Dial(host + port, client);
    EXPECT_TRUE(status.ok()) << status;
    EXPECT_TRUE(WhyNoConnection(host + port, client).ok());
  }
}

TEST_F(TlsTest, WhoIsNotOfTheCaOrNotTheHostIsRefused) {
  const Tls head = Issue("ca", "head,head.lan"), client = Issue("ca", "laptop");
  const auto server = Serve(head, "0.0.0.0:0");
  ASSERT_NE(server, nullptr);
  const std::string address = absl::StrCat("127.0.0.1:", server->port());
  const Tls stranger = Issue("other", "laptop");
  ExpectRefused(Dial(address, stranger), address, {"not of the CA in", stranger.dir, "pki issue"});
  Tls half = stranger;  // believes the server, but is not believed
  half.ca = client.ca;
  ExpectRefused(Dial(address, half), address, {"does not take our certificate", half.dir});
  ExpectRefused(Dial(address, Tls()), address, {"takes no plaintext", "--tls-dir"});
  const std::string unnamed = absl::StrCat("127.0.0.2:", server->port());
  ExpectRefused(Dial(unnamed, client), unnamed, {"head, head.lan, localhost", "not 127.0.0.2"});
  EXPECT_TRUE(Dial(address, client).ok());  // and the right one still is not
}

TEST_F(TlsTest, TlsAgainstPlaintextSaysSo) {
  const auto server = Serve(Tls(), "127.0.0.1:0");
  ASSERT_NE(server, nullptr);
  ExpectRefused(Dial(server->address(), Issue("ca", "laptop")), server->address(),
                {"speaks plaintext", "--tls-dir"});
  EXPECT_TRUE(Dial(server->address(), Tls()).ok());
}

TEST_F(TlsTest, NobodyThereIsNoMatterOfTls) {
  EXPECT_EQ(Dial("127.0.0.1:1", Issue("ca", "laptop")).code(), absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace toroid
