// Rank 0's stream against a controller that comes and goes.
#include "rpc/worker_link.h"

#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>
#include <gtest/gtest.h>

#include <vector>

#include "absl/strings/str_cat.h"

namespace toroid {
namespace {

using internal::v1::WorkerMessage;
using internal::v1::WorldMessage;

constexpr std::chrono::seconds kLimit(20);

// Keeps what it was told, also of the one before it.
class Notebook {
 public:
  void Add(const WorkerMessage& message) {
    const std::lock_guard<std::mutex> lock(mutex_);
    messages_.push_back(message);
    for (const WorkerMessage& next : message.more()) messages_.push_back(next);
    changed_.notify_all();
  }
  std::vector<WorkerMessage> Await(size_t count) {
    std::unique_lock<std::mutex> lock(mutex_);
    EXPECT_TRUE(changed_.wait_for(lock, kLimit, [&] { return messages_.size() >= count; }))
        << messages_.size() << " of " << count;
    return messages_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<WorkerMessage> messages_;
};

class FakeController final : public internal::v1::Workers::Service {
 public:
  FakeController(Notebook* notebook, int port, bool refuses = false)
      : notebook_(notebook), refuses_(refuses) {
    grpc::ServerBuilder builder;
    builder.AddListeningPort(absl::StrCat("127.0.0.1:", port), grpc::InsecureServerCredentials(),
                             &port_);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
  }
  ~FakeController() override { server_->Shutdown(std::chrono::system_clock::now()); }
  int port() const { return port_; }

  grpc::Status Attach(grpc::ServerContext*,
                      grpc::ServerReaderWriter<WorldMessage, WorkerMessage>* stream) override {
    if (refuses_) return {grpc::StatusCode::PERMISSION_DENIED, "not you"};
    WorkerMessage message;
    while (stream->Read(&message)) {
      if (message.has_attach()) {
        WorldMessage attached;
        *attached.mutable_world() = message.world();
        attached.mutable_attached();
        stream->Write(attached);
      }
      notebook_->Add(message);
    }
    return grpc::Status::OK;
  }

 private:
  Notebook* const notebook_;
  const bool refuses_;
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
};

class WorkerLinkTest : public ::testing::Test {
 protected:
  std::unique_ptr<WorkerLink> Dial() {
    WorkerOptions options;
    options.controller = absl::StrCat("127.0.0.1:", controller_->port());
    options.job = "book";
    options.epoch = 3;
    auto link = std::make_unique<WorkerLink>(
        options, Tls(), [](const WorldMessage&) {},
        [this] {
          const std::lock_guard<std::mutex> lock(mutex_);
          ++gone_;
          changed_.notify_all();
        });
    EXPECT_TRUE(link->Attach().ok());
    return link;
  }
  bool AwaitGone() {
    std::unique_lock<std::mutex> lock(mutex_);
    return changed_.wait_for(lock, kLimit, [this] { return gone_ > 0; });
  }
  WorkerMessage Checkpoint(int64_t step) {
    WorkerMessage message;
    message.mutable_world()->set_job("book");
    message.mutable_checkpoint()->set_step(step);
    return message;
  }
  void Replace(bool refuses = false) {
    const int port = controller_->port();
    controller_.reset();
    controller_ = std::make_unique<FakeController>(&notebook_, port, refuses);
  }

  Notebook notebook_;
  std::unique_ptr<FakeController> controller_ = std::make_unique<FakeController>(&notebook_, 0);
  std::mutex mutex_;
  std::condition_variable changed_;
  int gone_ = 0;
};

TEST_F(WorkerLinkTest, WhatIsDurableIsToldToTheNextControllerToo) {
  const auto link = Dial();
  link->Hold(7);
  link->PushDurably(Checkpoint(1));
  WorkerMessage progress;
  progress.mutable_progress()->set_done(5);
  link->Push(progress);
  auto heard = notebook_.Await(3);
  EXPECT_EQ(heard[0].attach().program(), 0u);  // it had none yet
  EXPECT_EQ(heard[0].world().epoch(), 3u);
  EXPECT_TRUE(heard[2].has_progress());
  const int port = controller_->port();
  controller_.reset();
  link->PushDurably(Checkpoint(2));  // nobody is there
  link->Push(progress);
  WorkerMessage trained;
  trained.mutable_trained();
  link->PushDurably(trained);
  controller_ = std::make_unique<FakeController>(&notebook_, port);
  heard = notebook_.Await(6);
  EXPECT_EQ(heard[3].attach().program(), 7u);
  EXPECT_EQ(heard[4].checkpoint().step(), 2);
  EXPECT_TRUE(heard[5].has_trained());
  EXPECT_FALSE(link->gone());
  link->Release();  // taken: the next one hears no more of it
  link->Hold(8);
  Replace();
  EXPECT_EQ(notebook_.Await(7)[6].attach().program(), 8u);
  link->PushDurably(Checkpoint(3));
  EXPECT_EQ(notebook_.Await(8)[7].checkpoint().step(), 3);
  EXPECT_EQ(gone_, 0);
  link->Finish(absl::Seconds(2));
}

TEST_F(WorkerLinkTest, WithoutAProgramAStreamThatBreaksIsGone) {
  const auto link = Dial();
  Replace();
  EXPECT_TRUE(AwaitGone());
  EXPECT_TRUE(link->gone());
  EXPECT_EQ(notebook_.Await(1).size(), 1u);
}

TEST_F(WorkerLinkTest, AControllerThatRefusesIsTheEnd) {
  const auto link = Dial();
  link->Hold(7);
  Replace(/*refuses=*/true);
  EXPECT_TRUE(AwaitGone());
  EXPECT_EQ(gone_, 1);
}

TEST_F(WorkerLinkTest, MayEndWhileItDials) {
  auto link = Dial();
  link->Hold(7);
  controller_.reset();
  link.reset();
  EXPECT_LE(gone_, 1);
}

}  // namespace
}  // namespace toroid
