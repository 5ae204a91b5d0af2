#include "launcher/mpirun_filter.h"

#include <cstdio>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "launcher/exit_code.h"

namespace toroid {
namespace {

constexpr size_t kFrame = 74;

// What Open MPI says of a launch that cannot be.
constexpr char kFewSlots[] = "not enough slots";
constexpr char kNoDaemon[] = "unable to reliably start one or more daemons";
constexpr char kNoBinary[] = "could not access or execute an executable";

bool IsFrame(absl::string_view line) {
  return line.size() == kFrame && line.find_first_not_of('-') == absl::string_view::npos;
}

// Lines of Open MPI's own that stand outside frames.
bool IsNoise(absl::string_view line) {
  return absl::StrContains(line, "ORTE_ERROR_LOG") ||
         absl::StrContains(line, "total processes killed") ||
         absl::StrContains(line, "total processes failed to start") ||
         absl::StrContains(line, "help message");
}

}  // namespace

std::string MpirunFilter::Feed(absl::string_view bytes) {
  std::string shown;
  for (const char c : bytes) {
    if (c != '\n') {
      line_ += c;
      continue;
    }
    if (at_start_ && IsFrame(line_)) {
      if (in_frame_) TakeParagraph();
      in_frame_ = !in_frame_;
    } else if (in_frame_) {
      const absl::string_view text = absl::StripAsciiWhitespace(line_);
      if (!text.empty()) absl::StrAppend(&paragraph_, paragraph_.empty() ? "" : " ", text);
    } else if (!at_start_ || !IsNoise(line_)) {
      if (absl::StrContains(spoken_ + line_, "toroid: ")) rank_spoke_ = true;
      absl::StrAppend(&shown, line_, "\n");
    }
    line_.clear();
    spoken_.clear();
    at_start_ = true;
  }
  // A progress bar has no end of line: only what may be a frame or noise ('[host:pid] ..') waits.
  const bool may_be_special = at_start_ && !line_.empty() &&
                              (line_[0] == '-' || line_[0] == '[' || absl::ascii_isdigit(line_[0]));
  if (!in_frame_ && !line_.empty() && !may_be_special) {
    shown += line_;
    if (spoken_.size() < 256) spoken_ += line_;
    line_.clear();
    at_start_ = false;
  }
  return shown;
}

std::string MpirunFilter::Finish() {
  if (in_frame_) {
    TakeParagraph();
    in_frame_ = false;
    return "";
  }
  std::string rest;
  rest.swap(line_);
  return rest;
}

void MpirunFilter::TakeParagraph() {
  const std::string text = std::move(paragraph_);
  paragraph_.clear();
  int rank = 0, signal = 0, code = 0;
  char host[257] = "", name[65] = "";
  const size_t died = text.find("process rank ");
  if (died != std::string::npos &&
      std::sscanf(text.c_str() + died,
                  "process rank %d with PID %*d on node %256s exited on signal %d (%64[^)])", &rank,
                  host, &signal, name) >= 3) {
    rank_ = rank, host_ = host, signal_ = signal, signal_name_ = name;
    return;
  }
  const size_t process = text.find("Process name: [[");
  if (process != std::string::npos &&
      std::sscanf(text.c_str() + process, "Process name: [[%*d,%*d],%d] Exit code: %d", &rank,
                  &code) == 2) {
    rank_ = rank, exit_code_ = code;
    return;
  }
  if (std::sscanf(text.c_str(), "MPI_ABORT was invoked on rank %d", &rank) == 1) {
    rank_ = rank;
    const size_t at = text.find("errorcode ");
    if (at != std::string::npos) std::sscanf(text.c_str() + at, "errorcode %d", &exit_code_);
    return;
  }
  if (absl::StartsWith(text, "Primary job")) return;
  if (other_.empty()) other_ = text;
}

int MpirunFilter::ExitCode(int code) const {
  if (signal_ != 0) return kExitFailure;
  if (rank_ >= 0 || rank_spoke_ || other_.empty()) return OwnExitCode(code);
  for (const char* cause : {kFewSlots, kNoDaemon, kNoBinary}) {
    if (absl::StrContains(other_, cause)) return kExitBadInput;
  }
  return kExitFailure;
}

std::string MpirunFilter::Failure() const {
  if (signal_ != 0) {
    return absl::StrCat("a rank died: rank ", rank_, " on host ", host_, " was ended by signal ",
                        signal_, signal_name_.empty() ? "" : absl::StrCat(" (", signal_name_, ")"),
                        ": look there for memory or a crash, and start again");
  }
  if (rank_spoke_) return "";
  if (absl::StrContains(other_, kFewSlots)) {
    return "too few slots: mpirun has fewer than asked for: lower -n or name hosts with more slots";
  }
  if (absl::StrContains(other_, kNoDaemon)) {
    return "cannot start on every host: mpirun's daemon did not answer: check that ssh works "
           "without "
           "a password and that Open MPI is installed there";
  }
  if (absl::StrContains(other_, kNoBinary)) {
    return "cannot start on every host: the toroid binary is missing there: install it at the same "
           "path on all hosts";
  }
  if (rank_ >= 0) {
    return absl::StrCat("a rank failed: rank ", rank_, " ended with exit code ", exit_code_,
                        ": its own words, if any, stand above");
  }
  return other_.empty()
             ? ""
             : absl::StrCat("mpirun failed: ", other_.substr(0, 300), ": see mpirun's manual");
}

}  // namespace toroid
