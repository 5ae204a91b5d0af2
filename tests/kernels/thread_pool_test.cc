#include "kernels/thread_pool.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <thread>
#include <vector>

#include "kernels/isa.h"

namespace toroid {
namespace {

TEST(ThreadPool, EveryChunkOnceWithBoundariesOfCountAndGrainAlone) {
  for (int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    for (int64_t count : {0, 1, 7, 64, 257}) {
      for (int64_t grain : {1, 13, 1000}) {
        std::vector<std::atomic<int>> seen(count);
        pool.ParallelFor(count, grain, [&](int64_t begin, int64_t end, int worker) {
          EXPECT_EQ(begin % grain, 0);
          EXPECT_EQ(end, std::min(count, begin + grain));
          EXPECT_TRUE(worker >= 0 && worker < threads);
          for (int64_t i = begin; i < end; ++i) ++seen[i];
        });
        for (auto& times : seen) EXPECT_EQ(times, 1);
      }
    }
  }
}

// Back-to-back calls: a worker that comes late must find the next job or a shut gate, never half of
// each.
TEST(ThreadPool, ManyShortCallsLoseNothing) {
  ThreadPool pool(4);
  std::vector<int64_t> values(64);
  for (int64_t round = 1; round <= 3000; ++round) {
    pool.ParallelFor(64, 4, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) values[i] += round;
    });
  }
  for (int64_t value : values) EXPECT_EQ(value, 3000 * 3001 / 2);
}

TEST(ThreadPool, OtherThreadsHelp) {
  ThreadPool pool(2);
  // Two chunks that wait for each other finish only if two threads run them.
  std::atomic<int> inside{0};
  std::atomic<bool> both{false};
  for (int attempt = 0; attempt < 3 && !both; ++attempt) {
    inside = 0;
    pool.ParallelFor(2, 1, [&](int64_t, int64_t, int) {
      ++inside;
      const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(5);
      while (inside < 2 && std::chrono::steady_clock::now() < until) std::this_thread::yield();
      if (inside == 2) both = true;
    });
  }
  EXPECT_TRUE(both);
}

TEST(ThreadPool, PoolsCoexistAndScratchIsTheirOwn) {
  std::vector<std::thread> ranks;
  std::atomic<int> wrong{0};
  for (int rank = 0; rank < 4; ++rank) {
    ranks.emplace_back([&, rank] {
      ThreadPool pool(2);
      for (int round = 0; round < 200; ++round) {
        pool.ParallelFor(4, 1, [&](int64_t begin, int64_t, int worker) {
          char* scratch = static_cast<char*>(pool.scratch(worker));
          const char mark = char(rank * 16 + begin);
          std::memset(scratch, mark, 4096);
          scratch[ThreadPool::kScratchBytes - 1] = mark;
          for (int i = 0; i < 4096; ++i) wrong += scratch[i] != mark;
        });
      }
    });
  }
  for (std::thread& rank : ranks) rank.join();
  EXPECT_EQ(wrong, 0);
}

TEST(Isa, ForcingOneWorksOrSaysWhatIsPossible) {
  const Isa before = CurrentIsa();
  EXPECT_EQ(SelectIsa("scalar"), "");
  EXPECT_EQ(CurrentIsa(), Isa::kScalar);
  EXPECT_EQ(SelectIsa("auto"), "");
  EXPECT_EQ(CurrentIsa(), BestIsa());
  const std::string error = SelectIsa("neon");
  EXPECT_NE(error.find("neon"), std::string::npos);
  EXPECT_NE(error.find("scalar"), std::string::npos);
  EXPECT_EQ(CurrentIsa(), BestIsa());  // unchanged
  for (Isa isa : {Isa::kAvx2, Isa::kAvx512}) {
    EXPECT_EQ(SelectIsa(IsaName(isa)).empty(), IsaSupported(isa));
  }
  SelectIsa(IsaName(before));
}

}  // namespace
}  // namespace toroid
