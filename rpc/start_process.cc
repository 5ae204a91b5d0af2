#include "rpc/start_process.h"

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"

extern char** environ;

namespace toroid {
namespace {

// Closed at the end of its scope.
struct Descriptor {
  int fd = -1;
  ~Descriptor() {
    if (fd >= 0) close(fd);
  }
};

struct Pipe {
  Descriptor reader, writer;
  bool Open() {
    std::array<int, 2> ends;
    if (pipe2(ends.data(), O_CLOEXEC) != 0) return false;
    reader.fd = ends[0];
    writer.fd = ends[1];
    return true;
  }
};

absl::Status SystemError(absl::string_view what) {
  return absl::InternalError(absl::StrCat(what, ": ", strerror(errno)));
}

std::vector<char*> Pointers(const std::vector<std::string>& words) {
  std::vector<char*> out;
  for (const std::string& word : words) out.push_back(const_cast<char*>(word.c_str()));
  out.push_back(nullptr);
  return out;
}

void DefaultSignals() {
  for (int number = 1; number < NSIG; ++number) {
    struct sigaction action;
    memset(&action, 0, sizeof(action));
    action.sa_handler = SIG_DFL;
    (void)sigaction(number, &action, nullptr);
  }
  sigset_t none;
  sigemptyset(&none);
  (void)sigprocmask(SIG_SETMASK, &none, nullptr);
}

// In the child. standard[i] becomes descriptor i, unless it is -1.
[[noreturn]] void Become(pid_t parent, bool detached, bool own_group,
                         const std::array<int, 3>& standard, char** argv, char** environment) {
  if (own_group) (void)setpgid(0, 0);
  (void)prctl(PR_SET_PDEATHSIG, SIGTERM);
  if (getppid() != parent) _exit(126);  // it died before the line above
  if (detached) DefaultSignals();
  for (int i = 0; i < 3; ++i) {
    if (standard[i] >= 0 && dup2(standard[i], i) < 0) _exit(126);
  }
  if (detached) (void)syscall(SYS_close_range, 3u, ~0u, 4u /* CLOSE_RANGE_CLOEXEC */);
  execve(argv[0], argv, environment);
  _exit(127);
}

}  // namespace

absl::StatusOr<StartedProcess> StartProcess(const ProcessSpec& spec) {
  Pipe output, error;
  if ((spec.read_output && !output.Open()) || (spec.read_error && !error.Open())) {
    return SystemError("cannot make a pipe");
  }
  Descriptor nothing;
  if (spec.detached && (nothing.fd = open("/dev/null", O_RDONLY | O_CLOEXEC)) < 0) {
    return SystemError("cannot open /dev/null");
  }
  std::vector<char*> argv = Pointers(spec.argv);
  std::vector<char*> environment;
  if (spec.environment != nullptr) environment = Pointers(*spec.environment);
  char** const variables = spec.environment != nullptr ? environment.data() : environ;
  const bool own_group = spec.detached || spec.own_group;
  const pid_t parent = getpid();
  const pid_t pid = fork();
  if (pid < 0) return SystemError("cannot fork");
  if (pid == 0) {
    Become(parent, spec.detached, own_group, {nothing.fd, output.writer.fd, error.writer.fd},
           argv.data(), variables);
  }
  if (own_group) (void)setpgid(pid, pid);  // whoever is first of the two
  return StartedProcess{pid, std::exchange(output.reader.fd, -1),
                        std::exchange(error.reader.fd, -1)};
}

}  // namespace toroid
