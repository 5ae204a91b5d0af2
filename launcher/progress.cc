#include "launcher/progress.h"

#include <algorithm>
#include <chrono>
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "launcher/quantity.h"
#include "launcher/terminal.h"

namespace toroid {
namespace {

constexpr double kBarInterval = 0.1, kLineInterval = 2.0;  // seconds
constexpr int kBarColumns = 24;

double Seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

void WriteStderr(absl::string_view text) {
  std::fwrite(text.data(), 1, text.size(), stderr);
  std::fflush(stderr);
}

}  // namespace

ProgressMode ChooseProgress(absl::string_view mode, bool quiet, bool stderr_is_terminal) {
  if (quiet || mode == "none") return ProgressMode::kNone;
  if (mode == "bar") return ProgressMode::kBar;
  if (mode == "lines") return ProgressMode::kLines;
  return stderr_is_terminal ? ProgressMode::kBar : ProgressMode::kNone;
}

ProgressMeter::ProgressMeter(ProgressMode mode, int width,
                             std::function<void(absl::string_view)> write,
                             std::function<double()> now)
    : mode_(mode), width_(width), write_(std::move(write)), now_(std::move(now)) {}

ProgressMeter::ProgressMeter(ProgressMode mode)
    : ProgressMeter(mode, TerminalWidth(), WriteStderr, Seconds) {}

void ProgressMeter::Update(absl::string_view phase, int64_t done, int64_t total,
                           absl::string_view unit, absl::string_view detail) {
  if (mode_ == ProgressMode::kNone) return;
  const double now = now_();
  if (phase != phase_) {
    Clear();
    phase_ = std::string(phase);
    unit_ = std::string(unit);
    begin_ = now;
    drawn_ = mode_ == ProgressMode::kBar ? now - kBarInterval : now;
    first_ = done;
    finished_ = false;
  }
  done_ = done;
  total_ = total;
  detail_ = std::string(detail);
  const bool complete = total > 0 && done >= total;
  const double interval = mode_ == ProgressMode::kBar ? kBarInterval : kLineInterval;
  if (finished_ || (now - drawn_ < interval && !complete)) return;
  finished_ = complete;
  // A short phase writes no line to a log.
  if (mode_ == ProgressMode::kLines && complete && now - begin_ < kLineInterval) return;
  drawn_ = now;
  if (mode_ == ProgressMode::kLines) {
    write_(absl::StrCat(Line(now - begin_, 0), "\n"));
  } else {
    // On a narrow terminal the bar gives way to the numbers.
    const int room = std::max(10, width_ - 1);
    std::string line = Line(now - begin_, kBarColumns);
    const int excess = static_cast<int>(line.size()) - room;
    if (excess > 0) line = Line(now - begin_, std::max(0, kBarColumns - excess));
    write_(absl::StrCat("\r", line.substr(0, static_cast<size_t>(room)), "\033[K"));
    on_screen_ = true;
  }
}

void ProgressMeter::Update(const Progress& progress) {
  const absl::string_view phase = progress.phase;
  Update(phase, progress.done, progress.total,
         phase == "load"     ? "bytes"
         : phase == "verify" ? "runs"
                             : "tokens");
}

void ProgressMeter::Clear() {
  if (on_screen_) write_("\r\033[K");
  on_screen_ = false;
}

// "prefill  [#########---------------]  38%  1536/4012 tokens  512.3 tokens/s  5s left"
std::string ProgressMeter::Line(double seconds, int bar_columns) const {
  const bool bytes = unit_ == "bytes";
  const auto amount = [&](double n) { return bytes ? FormatBytes(n) : FormatCount(n); };
  std::string line =
      absl::StrCat(phase_, std::string(phase_.size() < 8 ? 8 - phase_.size() : 0, ' '));
  const double fraction =
      total_ > 0 ? std::clamp(static_cast<double>(done_) / static_cast<double>(total_), 0.0, 1.0)
                 : 0;
  if (total_ > 0) {
    if (bar_columns > 0) {
      const int filled = static_cast<int>(fraction * bar_columns);
      absl::StrAppend(&line, " [", std::string(static_cast<size_t>(filled), '#'),
                      std::string(static_cast<size_t>(bar_columns - filled), '-'), "]");
    }
    absl::StrAppend(&line, " ", static_cast<int>(fraction * 100), "%  ",
                    bytes ? amount(static_cast<double>(done_)) : absl::StrCat(done_), "/",
                    bytes ? amount(static_cast<double>(total_)) : absl::StrCat(total_));
  } else {
    absl::StrAppend(&line, " ", amount(static_cast<double>(done_)));
  }
  if (!bytes) absl::StrAppend(&line, " ", unit_);
  if (!detail_.empty()) absl::StrAppend(&line, "  ", detail_);
  const double made = static_cast<double>(done_ - first_);
  if (seconds > 0.05 && made > 0) {
    if (detail_.empty()) {
      absl::StrAppend(&line, "  ", amount(made / seconds), bytes ? "" : absl::StrCat(" ", unit_),
                      "/s");
    }
    if (total_ > done_) {
      absl::StrAppend(&line, "  ",
                      FormatSeconds(static_cast<double>(total_ - done_) * seconds / made), " left");
    }
  }
  return line;
}

}  // namespace toroid
