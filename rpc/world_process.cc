#include "rpc/world_process.h"

#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "rpc/start_process.h"
#include "rpc/world_exit.h"

extern char** environ;

namespace toroid {
namespace {

constexpr size_t kMaxLine = 16 << 10;

absl::Status CannotStart(absl::string_view why) {
  return absl::UnavailableError(absl::StrCat("cannot start a world: ", why));
}

// Process ids whose parent is this process.
std::vector<int> Children() {
  std::vector<int> out;
  DIR* proc = opendir("/proc");
  if (proc == nullptr) return out;
  while (const dirent* entry = readdir(proc)) {
    int pid = 0;
    if (!absl::SimpleAtoi(entry->d_name, &pid)) continue;
    std::ifstream file(absl::StrCat("/proc/", pid, "/stat"));
    std::string stat;
    std::getline(file, stat);
    const size_t name_end = stat.rfind(')');  // the name may hold anything
    int parent = 0;
    if (name_end == std::string::npos || name_end + 4 >= stat.size()) continue;
    if (std::sscanf(stat.c_str() + name_end + 4, "%d", &parent) == 1 && parent == getpid()) {
      out.push_back(pid);
    }
  }
  closedir(proc);
  return out;
}

}  // namespace

void SweepChildren(int group) {
  if (group > 1) (void)kill(-group, SIGKILL);
  // The children of a killed child come to us in turn, hence again until none is left.
  while (true) {
    const std::vector<int> children = Children();
    if (children.empty()) return;
    for (int pid : children) (void)kill(pid, SIGKILL);
    for (int pid : children) {
      while (waitpid(pid, nullptr, 0) < 0 && errno == EINTR) {
      }
    }
  }
}

std::vector<std::string> AllowedEnvironment() {
  static constexpr std::array kPrefixes = {"PATH=",
                                           "HOME=",
                                           "USER=",
                                           "LOGNAME=",
                                           "SHELL=",
                                           "LANG=",
                                           "LC_",
                                           "TZ=",
                                           "TMPDIR=",
                                           "TERM=",
                                           "LD_LIBRARY_PATH=",
                                           "OMPI_MCA_",
                                           "OMPI_ALLOW_RUN_AS_ROOT",
                                           "PMIX_MCA_",
                                           "PRTE_MCA_",
                                           "SLURM_",
                                           "SSH_AUTH_SOCK=",
                                           "TOROID_",
                                           "OMP_",
                                           "OPENBLAS_"};
  std::vector<std::string> out;
  for (char** variable = environ; *variable != nullptr; ++variable) {
    const absl::string_view text = *variable;
    if (absl::StartsWith(text, "TOROID_CONTROLLER=")) continue;
    for (const char* prefix : kPrefixes) {
      if (!absl::StartsWith(text, prefix)) continue;
      out.emplace_back(text);
      break;
    }
  }
  return out;
}

absl::StatusOr<WorldProcess> WorldProcess::Start(const std::vector<std::string>& argv,
                                                 const std::vector<std::string>& environment) {
  (void)prctl(PR_SET_CHILD_SUBREAPER, 1);
  ProcessSpec spec;
  spec.argv = argv;
  spec.environment = &environment;
  spec.read_output = spec.read_error = true;
  spec.detached = true;
  const absl::StatusOr<StartedProcess> started = StartProcess(spec);
  if (!started.ok()) return CannotStart(started.status().message());
  WorldProcess process;
  process.pid_ = started->pid;
  process.output_[0].fd = started->output;
  process.output_[1].fd = started->error;
  for (const Pipe& pipe : process.output_) {
    (void)fcntl(pipe.fd, F_SETFL, fcntl(pipe.fd, F_GETFL) | O_NONBLOCK);
  }
  process.exit_fd_ = static_cast<int>(syscall(SYS_pidfd_open, process.pid_, 0u));
  if (process.exit_fd_ < 0) return CannotStart(strerror(errno));
  return process;
}

WorldProcess::WorldProcess(WorldProcess&& other) noexcept { *this = std::move(other); }

WorldProcess& WorldProcess::operator=(WorldProcess&& other) noexcept {
  std::swap(pid_, other.pid_);
  std::swap(exit_fd_, other.exit_fd_);
  std::swap(output_, other.output_);
  return *this;
}

WorldProcess::~WorldProcess() {
  if (pid_ > 0) SweepChildren(pid_);
  for (int fd : {exit_fd_, output_[0].fd, output_[1].fd}) {
    if (fd >= 0) close(fd);
  }
}

void WorldProcess::ReadInto(Pipe& pipe, bool error, bool at_end, std::vector<LogLine>& lines) {
  char buffer[16 << 10];
  ssize_t n = 0;
  while (pipe.fd >= 0 && (n = read(pipe.fd, buffer, sizeof(buffer))) != 0) {
    if (n < 0) {
      if (errno == EINTR) continue;
      break;
    }
    pipe.partial.append(buffer, static_cast<size_t>(n));
    size_t begin = 0;
    for (size_t end; (end = pipe.partial.find('\n', begin)) != std::string::npos; begin = end + 1) {
      lines.push_back(ParseTaggedLine(pipe.partial.substr(begin, end - begin), error));
    }
    pipe.partial.erase(0, begin);
    if (pipe.partial.size() > kMaxLine) {
      lines.push_back(ParseTaggedLine(std::exchange(pipe.partial, ""), error));
    }
  }
  if (n == 0 && pipe.fd >= 0) {
    close(pipe.fd);
    pipe.fd = -1;
  }
  if ((at_end || pipe.fd < 0) && !pipe.partial.empty()) {
    lines.push_back(ParseTaggedLine(std::exchange(pipe.partial, ""), error));
  }
}

std::vector<LogLine> WorldProcess::ReadLines(bool at_end) {
  std::vector<LogLine> lines;
  ReadInto(output_[0], false, at_end, lines);
  ReadInto(output_[1], true, at_end, lines);
  return lines;
}

bool WorldProcess::Reap(int* wait_status) {
  if (pid_ <= 0) return false;
  pid_t reaped;
  do {
    reaped = waitpid(pid_, wait_status, WNOHANG);
  } while (reaped < 0 && errno == EINTR);
  if (reaped == 0) return false;
  if (reaped < 0) *wait_status = 0;
  SweepChildren(std::exchange(pid_, -1));
  return true;
}

}  // namespace toroid
