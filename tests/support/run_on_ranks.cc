#include "tests/support/run_on_ranks.h"

#include <gtest/gtest.h>

#include <condition_variable>
#include <cstdio>
#include <mutex>
#include <sstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "parallel/thread_communicator.h"

namespace toroid {

void RunOnRanks(int size, const std::function<void(std::unique_ptr<Communicator> world)>& body,
                std::chrono::milliseconds deadline) {
  std::mutex mutex;
  std::condition_variable returned;
  std::vector<bool> done(size, false);
  int remaining = size;

  std::shared_ptr<ThreadWorldMonitor> monitor;
  std::vector<std::unique_ptr<Communicator>> world = NewThreadWorld(size, &monitor);
  std::vector<std::thread> threads;
  for (int r = 0; r < size; ++r) {
    threads.emplace_back([&, r, mine = std::move(world[r])]() mutable {
      body(std::move(mine));
      mine.reset();
      std::lock_guard<std::mutex> lock(mutex);
      done[r] = true;
      --remaining;
      returned.notify_all();
    });
  }
  {
    std::unique_lock<std::mutex> lock(mutex);
    const auto all_returned = [&] { return remaining == 0; };
    if (!returned.wait_for(lock, deadline, all_returned)) {
      std::ostringstream hung;
      for (int r = 0; r < size; ++r) {
        if (done[r]) continue;
        const std::string verb = monitor->VerbOf(r);
        hung << " rank " << r << (verb.empty() ? " in no verb;" : " waits in " + verb + ";");
      }
      ADD_FAILURE() << "not returned after " << deadline.count() << " ms:" << hung.str();
      monitor->Abandon("the test's deadline passed");
      if (!returned.wait_for(lock, std::chrono::seconds(10), all_returned)) {
        std::fprintf(stderr, "RunOnRanks: ranks hang outside of verbs:%s\n", hung.str().c_str());
        std::abort();  // a thread cannot be ended
      }
    }
  }
  for (std::thread& thread : threads) thread.join();
}

void RunOnMesh(MeshShape shape, const std::function<void(Mesh& mesh)>& body,
               std::chrono::milliseconds deadline) {
  RunOnRanks(
      static_cast<int>(shape.size()),
      [&](std::unique_ptr<Communicator> world) {
        Mesh mesh(std::move(world), shape);
        body(mesh);
      },
      deadline);
}

}  // namespace toroid
