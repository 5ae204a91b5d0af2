#include "rpc/start_process.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <string>

namespace toroid {
namespace {

// All that comes out of `fd` until its last writer closes it; "no pipe" for -1.
std::string ReadAll(int fd) {
  if (fd < 0) return "no pipe";
  std::string text;
  char block[512];
  ssize_t n;
  while ((n = read(fd, block, sizeof(block))) > 0) text.append(block, static_cast<size_t>(n));
  close(fd);
  return text;
}

struct Ended {
  std::string output, error;
  int status = -1;
};

Ended RunShell(const std::string& script, ProcessSpec spec) {
  spec.argv = {"/bin/sh", "-c", script};
  const auto started = StartProcess(spec);
  EXPECT_TRUE(started.ok()) << started.status();
  Ended ended;
  if (!started.ok()) return ended;
  ended.output = ReadAll(started->output);
  ended.error = ReadAll(started->error);
  EXPECT_EQ(waitpid(started->pid, &ended.status, 0), started->pid);
  return ended;
}

TEST(StartProcessTest, PipesWhatIsAskedFor) {
  const std::string script = "echo out; echo err >&2; exit 3";
  for (const bool output : {false, true}) {
    for (const bool error : {false, true}) {
      const Ended ended = RunShell(script, {.read_output = output, .read_error = error});
      EXPECT_EQ(ended.output, output ? "out\n" : "no pipe");
      EXPECT_EQ(ended.error, error ? "err\n" : "no pipe");
      EXPECT_EQ(WEXITSTATUS(ended.status), 3);
    }
  }
}

TEST(StartProcessTest, MissingProgramExits127) {
  ProcessSpec spec;
  spec.argv = {"/nonexistent/program"};
  const auto started = StartProcess(spec);
  ASSERT_TRUE(started.ok());
  int status = 0;
  ASSERT_EQ(waitpid(started->pid, &status, 0), started->pid);
  EXPECT_EQ(WEXITSTATUS(status), 127);
}

TEST(StartProcessTest, EnvironmentIsOursOrTheGivenOne) {
  setenv("TOROID_TEST_VARIABLE", "ours", 1);
  const std::string script = "echo $TOROID_TEST_VARIABLE";
  EXPECT_EQ(RunShell(script, {.read_output = true}).output, "ours\n");
  const std::vector<std::string> given = {"TOROID_TEST_VARIABLE=given"};
  EXPECT_EQ(RunShell(script, {.environment = &given, .read_output = true}).output, "given\n");
  unsetenv("TOROID_TEST_VARIABLE");
}

// Group, ignored signals, standard input and an open descriptor: a child has them, a detached one
// does not.
TEST(StartProcessTest, DetachedHasNothingOfOurs) {
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);  // not close-on-exec
  struct sigaction ignore = {}, before;
  ignore.sa_handler = SIG_IGN;
  ASSERT_EQ(sigaction(SIGUSR1, &ignore, &before), 0);
  const std::string fd = std::to_string(ends[0]);
  const std::string script = "test -e /proc/self/fd/" + fd +
                             " && echo open; readlink /proc/self/fd/0; "
                             "cut -d' ' -f5 /proc/self/stat; kill -USR1 $$; echo alive";
  for (const bool detached : {false, true}) {
    const Ended ended = RunShell(script, {.read_output = true, .detached = detached});
    EXPECT_EQ(ended.output.find("open") != std::string::npos, !detached) << ended.output;
    EXPECT_EQ(ended.output.find("alive") != std::string::npos, !detached) << ended.output;
    EXPECT_EQ(WIFSIGNALED(ended.status), detached);
    const bool ours =
        ended.output.find("\n" + std::to_string(getpgrp()) + "\n") != std::string::npos;
    EXPECT_EQ(ours, !detached) << ended.output;
    const bool no_input = ended.output.rfind("/dev/null\n", 0) == 0;
    if (detached) {
      EXPECT_TRUE(no_input) << ended.output;
    }
  }
  sigaction(SIGUSR1, &before, nullptr);
  close(ends[0]);
  close(ends[1]);
}

// The child's end follows ours, even if we are killed: a process starts one and kills itself, and
// the pipe that the child holds is closed.
TEST(StartProcessTest, EndsWithItsParent) {
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  const pid_t parent = fork();
  ASSERT_GE(parent, 0);
  if (parent == 0) {
    close(ends[0]);
    ProcessSpec spec;
    spec.argv = {"/bin/sleep", "600"};
    if (!StartProcess(spec).ok()) _exit(1);
    kill(getpid(), SIGKILL);
  }
  close(ends[1]);
  int status = 0;
  ASSERT_EQ(waitpid(parent, &status, 0), parent);
  EXPECT_TRUE(WIFSIGNALED(status));
  EXPECT_EQ(ReadAll(ends[0]), "");  // does not return while the child lives
}

}  // namespace
}  // namespace toroid
