#include "rpc/world_exit.h"

#include <sys/wait.h>

#include <cstring>
#include <regex>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace toroid {
namespace {

// What Open MPI 4.1 says of the first process that failed.
struct Verdict {
  int rank = -1;
  int exit_code = -1;
  int signal = 0;
  std::string host;
};

Verdict ReadVerdict(const std::deque<LogLine>& tail) {
  static const std::regex noticed(
      "process rank ([0-9]+) with PID [0-9]+ on node (\\S+) exited on signal ([0-9]+)");
  static const std::regex process("Process name: \\[\\[[0-9]+,[0-9]+\\],([0-9]+)\\]");
  static const std::regex code("Exit code:\\s+([0-9]+)");
  static const std::regex abort("MPI_ABORT was invoked on rank ([0-9]+)");
  static const std::regex abort_code("with errorcode (-?[0-9]+)");
  Verdict verdict;
  const auto number = [](const std::smatch& match, int group) {
    int value = -1;
    return absl::SimpleAtoi(match[group].str(), &value) ? value : -1;
  };
  for (const LogLine& line : tail) {
    std::smatch match;
    if (std::regex_search(line.text, match, abort)) {
      if (verdict.rank < 0) verdict.rank = number(match, 1);
    } else if (std::regex_search(line.text, match, abort_code)) {
      if (verdict.exit_code < 0) verdict.exit_code = number(match, 1);
    } else if (line.rank >= 0) {
      continue;  // a rank's own words do not speak for mpirun
    } else if (std::regex_search(line.text, match, noticed)) {
      verdict = {number(match, 1), -1, number(match, 3), match[2].str()};
    } else if (std::regex_search(line.text, match, process)) {
      if (verdict.rank < 0) verdict.rank = number(match, 1);
    } else if (std::regex_search(line.text, match, code)) {
      if (verdict.exit_code < 0) verdict.exit_code = number(match, 1);
    }
  }
  return verdict;
}

// The last of our own error lines ("toroid: ..."), of the failed rank if it spoke.
std::string LastWords(const std::deque<LogLine>& tail, int rank) {
  std::string any, own;
  for (const LogLine& line : tail) {
    if (!absl::StartsWith(line.text, "toroid: ")) continue;
    any = line.text.substr(8);
    if (line.rank == rank) own = any;
  }
  return own.empty() ? any : own;
}

}  // namespace

LogLine ParseTaggedLine(const std::string& line, bool error) {
  static const std::regex tag("^\\[[0-9]+,([0-9]+)\\]<(stdout|stderr|stddiag)>:");
  LogLine out;
  out.error = error;
  out.text = line;
  std::smatch match;
  if (std::regex_search(line, match, tag) && absl::SimpleAtoi(match[1].str(), &out.rank)) {
    out.error = match[2].str() != "stdout";
    out.text = match.suffix().str();
  }
  if (!out.text.empty() && out.text.back() == '\r') out.text.pop_back();
  return out;
}

WorldExit DescribeExit(int wait_status, const std::deque<LogLine>& tail,
                       const std::vector<RankRecord>& records) {
  WorldExit exit;
  const Verdict verdict = ReadVerdict(tail);
  exit.rank = verdict.rank;
  exit.host = verdict.host;
  exit.signal = verdict.signal;
  if (WIFEXITED(wait_status)) {
    exit.exit_code = WEXITSTATUS(wait_status);
    if (exit.signal == 0 && exit.exit_code > 128 && exit.exit_code < 128 + 65 && exit.rank < 0) {
      exit.signal = exit.exit_code - 128;
    }
    if (verdict.exit_code >= 0) exit.exit_code = verdict.exit_code;
  } else if (WIFSIGNALED(wait_status)) {
    exit.signal = WTERMSIG(wait_status);
  }
  for (const RankRecord& record : records) {
    if (record.rank == exit.rank && exit.host.empty()) exit.host = record.host;
  }
  std::string text = exit.rank >= 0 ? absl::StrCat("rank ", exit.rank) : std::string("mpirun");
  if (!exit.host.empty()) absl::StrAppend(&text, " on host ", exit.host);
  if (exit.signal != 0) {
    absl::StrAppend(&text, " was ended by signal ", exit.signal, " (", strsignal(exit.signal), ")");
  } else {
    absl::StrAppend(&text, " exited with code ", exit.exit_code);
  }
  const std::string words = LastWords(tail, exit.rank);
  exit.message = words.empty() ? text : absl::StrCat(text, ": ", words);
  return exit;
}

}  // namespace toroid
