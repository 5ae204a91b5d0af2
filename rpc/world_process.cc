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
#include "rpc/world_exit.h"

extern char** environ;

namespace toroid {
namespace {

constexpr size_t kMaxLine = 16 << 10;

absl::Status SystemError(const char* what) {
  return absl::UnavailableError(
      absl::StrCat("cannot start a world: ", what, ": ", strerror(errno)));
}

std::vector<char*> Pointers(const std::vector<std::string>& words) {
  std::vector<char*> out;
  for (const std::string& word : words) out.push_back(const_cast<char*>(word.c_str()));
  out.push_back(nullptr);
  return out;
}

// In the child: async-signal-safe calls only.
[[noreturn]] void BecomeWorld(pid_t parent, int null_fd, int out_fd, int error_fd, char** argv,
                              char** environment) {
  (void)setpgid(0, 0);
  (void)prctl(PR_SET_PDEATHSIG, SIGTERM);
  if (getppid() != parent) _exit(126);  // it died before the line above
  for (int number = 1; number < NSIG; ++number) {
    struct sigaction action;
    memset(&action, 0, sizeof(action));
    action.sa_handler = SIG_DFL;
    (void)sigaction(number, &action, nullptr);
  }
  sigset_t none;
  sigemptyset(&none);
  (void)sigprocmask(SIG_SETMASK, &none, nullptr);
  if (dup2(null_fd, 0) < 0 || dup2(out_fd, 1) < 0 || dup2(error_fd, 2) < 0) _exit(126);
  (void)syscall(SYS_close_range, 3u, ~0u, 4u /* CLOSE_RANGE_CLOEXEC */);
  execve(argv[0], argv, environment);
  _exit(127);
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
  int out[2], error[2];
  if (pipe2(out, O_CLOEXEC) != 0) return SystemError("pipe");
  if (pipe2(error, O_CLOEXEC) != 0) {
    close(out[0]);
    close(out[1]);
    return SystemError("pipe");
  }
  const int null_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
  std::vector<char*> arguments = Pointers(argv);
  std::vector<char*> variables = Pointers(environment);
  const pid_t parent = getpid();
  const pid_t pid = fork();
  if (pid == 0) {
    BecomeWorld(parent, null_fd, out[1], error[1], arguments.data(), variables.data());
  }
  const int failure = errno;
  close(out[1]);
  close(error[1]);
  close(null_fd);
  WorldProcess process;
  process.output_[0].fd = out[0];
  process.output_[1].fd = error[0];
  for (const Pipe& pipe : process.output_) {
    (void)fcntl(pipe.fd, F_SETFL, fcntl(pipe.fd, F_GETFL) | O_NONBLOCK);
  }
  if (pid < 0) {
    errno = failure;
    return SystemError("fork");
  }
  (void)setpgid(pid, pid);  // whoever is first of the two
  process.pid_ = pid;
  process.exit_fd_ = static_cast<int>(syscall(SYS_pidfd_open, pid, 0u));
  if (process.exit_fd_ < 0) return SystemError("pidfd_open");
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
