// A world that works until one rank stops, for the test of the stall watch:
//   mpirun -n 4 stall_rank --timeout-ms=2000 --stop=2     rank 2 stops itself (SIGSTOP)
//   mpirun -n 4 stall_rank --timeout-ms=1000 --slow=2     rank 2 is slow but gives life signs
#include <csignal>
#include <cstdio>
#include <string>

#include "absl/strings/numbers.h"
#include "absl/strings/strip.h"
#include "parallel/mpi_communicator.h"
#include "parallel/stall_watch.h"

namespace toroid {
namespace {

// One op of that length, in blocks that give life signs.
void WorkSlowly(ProgressBoard& board, int64_t milliseconds) {
  const auto start = std::chrono::steady_clock::now();
  int64_t block = 0;
  while (std::chrono::steady_clock::now() - start < std::chrono::milliseconds(milliseconds)) {
    if (++block % 1000 == 0) board.Tick();
  }
}

int Main(int argc, char** argv) {
  int64_t timeout_ms = 1000, stop = -1, slow = -1;
  for (int i = 1; i < argc; ++i) {
    absl::string_view argument = argv[i];
    bool read = false;
    if (absl::ConsumePrefix(&argument, "--timeout-ms=")) {
      read = absl::SimpleAtoi(argument, &timeout_ms);
    } else if (absl::ConsumePrefix(&argument, "--stop=")) {
      read = absl::SimpleAtoi(argument, &stop);
    } else if (absl::ConsumePrefix(&argument, "--slow=")) {
      read = absl::SimpleAtoi(argument, &slow);
    }
    if (!read) return 2;
  }
  absl::StatusOr<std::unique_ptr<Communicator>> world = NewMpiWorld(&argc, &argv);
  if (!world.ok()) return 1;
  const int rank = (*world)->rank();
  ProgressBoard board;
  StallWatch watch(&board, NewStallChannel(**world), std::chrono::milliseconds(timeout_ms));
  CpuStream queue(/*inline_work=*/true);
  int64_t sum = 0;
  for (int layer = 0; layer < 40; ++layer) {
    board.At("attention", layer, 0);
    if (layer == 30 && rank == slow) WorkSlowly(board, timeout_ms * 5 / 2);
    if (layer == 30 && rank == stop) {
      WorkSlowly(board, timeout_ms / 2);  // several beats, so that the others know the place
      std::printf("rank %d stops\n", rank);
      std::fflush(stdout);
      raise(SIGSTOP);
    }
    board.At("all_reduce", layer, 1);
    sum = rank;
    (*world)->AllReduce(Stream{&queue}, Partial(Tensor(DType::kI64, {1}, &sum)));
  }
  board.Idle();
  if (rank == 0) std::printf("finished with sum %d\n", static_cast<int>(sum));
  return 0;
}

}  // namespace
}  // namespace toroid

int main(int argc, char** argv) { return toroid::Main(argc, argv); }
