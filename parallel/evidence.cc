#include "parallel/evidence.h"

#include <execinfo.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <thread>

namespace toroid {
namespace {

constexpr std::array<int, 6> kSignals = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTERM};
constexpr int kFrames = 64;

// What a handler reads. The paths are written while `armed` is false.
const ProgressBoard* board = nullptr;
int rank = 0;
pthread_t rank_thread;
char directory[4096], path[4096];
std::atomic<bool> armed{false};
std::atomic<const char*> stall{nullptr};  // why the rank's thread is asked for evidence
std::array<struct sigaction, kSignals.size()> before;

// Text into a file by write(2) alone.
class Out {
 public:
  explicit Out(int file) : file_(file) {}
  ~Out() { Flush(); }
  Out& operator<<(const char* text) {
    for (; *text != '\0'; ++text) Put(*text);
    return *this;
  }
  Out& operator<<(int64_t number) {
    char digits[24];
    int n = 0;
    uint64_t left = number < 0 ? 0 - uint64_t(number) : uint64_t(number);
    do {
      digits[n++] = char('0' + left % 10);
      left /= 10;
    } while (left > 0);
    if (number < 0) Put('-');
    while (n > 0) Put(digits[--n]);
    return *this;
  }
  void Flush() {
    for (size_t done = 0; done < used_;) {
      const ssize_t written = ::write(file_, buffer_ + done, used_ - done);
      if (written <= 0) break;
      done += size_t(written);
    }
    used_ = 0;
  }

 private:
  void Put(char c) {
    buffer_[used_++] = c;
    if (used_ == sizeof buffer_) Flush();
  }
  const int file_;
  char buffer_[1024];
  size_t used_ = 0;
};

void WriteOperations(Out& out) {
  std::array<ProgressBoard::Place, ProgressBoard::kPlaces> places;
  const int64_t count = board->LastPlaces(places.data());
  const int64_t now = ProgressBoard::Clock();
  out << "\nlast operations, the newest first (ms ago: place)\n";
  for (int64_t i = 0; i < count; ++i) {
    const ProgressBoard::Place& place = places[size_t(i)];
    out << "  " << (now - place.nanoseconds) / 1000000 << ": " << place.sequence << " " << place.op;
    if (place.layer >= 0) out << " layer " << place.layer;
    if (place.round >= 0) out << " round " << place.round;
    out << "\n";
  }
}

// Async-signal-safe; `why` ends a sentence that begins with the rank.
void WriteFile(const char* why, int64_t signal) {
  if (!armed) return;
  ::mkdir(directory, 0777);
  const int file = ::open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (file < 0) return;
  {
    Out out(file);
    out << "rank " << rank << ", process " << int64_t{getpid()} << ", at "
        << int64_t{::time(nullptr)} << " seconds since 1970: " << why;
    if (signal > 0) out << signal;
    out << "\n";
    WriteOperations(out);
    out << "\nstack\n";
  }
  void* frames[kFrames];
  backtrace_symbols_fd(frames, backtrace(frames, kFrames), file);
  ::close(file);
}

void OnSignal(int signal, siginfo_t* info, void* context) {
  WriteFile("ended by signal ", signal);
  const size_t i = size_t(std::find(kSignals.begin(), kSignals.end(), signal) - kSignals.begin());
  const struct sigaction& old = before[i];
  if ((old.sa_flags & SA_SIGINFO) != 0) {
    old.sa_sigaction(signal, info, context);
  } else if (old.sa_handler != SIG_DFL && old.sa_handler != SIG_IGN) {
    old.sa_handler(signal);
  } else if (old.sa_handler == SIG_DFL) {
    ::signal(signal, SIG_DFL);
    ::raise(signal);
  }
}

// What it interrupts goes on, with the errno that it had.
void OnStall(int) {
  const char* why = stall.load();
  if (why == nullptr) return;
  const int errno_before = errno;
  WriteFile(why, 0);
  errno = errno_before;
  stall = nullptr;
}

}  // namespace

void CatchFailures(const ProgressBoard* of, int number) {
  board = of;
  rank = number;
  rank_thread = pthread_self();
  void* frame[1];
  (void)backtrace(frame, 1);  // loads its library, which a handler must not
  struct sigaction action {};
  action.sa_sigaction = OnSignal;
  action.sa_flags = SA_SIGINFO;
  for (size_t i = 0; i < kSignals.size(); ++i) sigaction(kSignals[i], &action, &before[i]);
  struct sigaction asked {};
  asked.sa_handler = OnStall;
  asked.sa_flags = SA_RESTART;
  sigaction(SIGRTMIN, &asked, nullptr);
}

KeepEvidence::KeepEvidence(const ProgressBoard* of, const std::string& where)
    : kept_(of != nullptr && of == board && !where.empty() && where.size() < sizeof path - 32) {
  if (!kept_) return;
  std::snprintf(directory, sizeof directory, "%s", where.c_str());
  std::snprintf(path, sizeof path, "%s/rank-%04d.txt", where.c_str(), rank);
  armed = true;
}

KeepEvidence::~KeepEvidence() {
  if (kept_) armed = false;
}

void KeepEvidence::Write(absl::string_view why) const {
  if (kept_) WriteFile(std::string(why).c_str(), 0);
}

void WriteStallEvidence(absl::string_view why) {
  if (!armed) return;
  static std::string& text = *new std::string;  // a world stops but once
  text = std::string(why);
  stall = text.c_str();
  if (pthread_kill(rank_thread, SIGRTMIN) != 0) return;
  for (int i = 0; i < 1000 && stall != nullptr; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  stall = nullptr;  // a handler that comes now finds nothing to say
}

}  // namespace toroid
