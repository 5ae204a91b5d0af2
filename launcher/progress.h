// Progress of one command on stderr: a bar that redraws itself, or a line now and then.
//
// Modes: bar (redrawn with \r, at most ten times a second), lines (one line a phase at least 2 s
// apart, for logs), none. Auto is bar on a terminal, none elsewhere; under mpirun or srun isatty is
// not asked, so auto is none there (`launch` passes TOROID_PROGRESS=bar when its own stderr is a
// terminal). Used from one thread.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "absl/strings/string_view.h"
#include "parallel/request.h"

namespace toroid {

enum class ProgressMode { kBar, kLines, kNone };

// mode: "auto", "bar", "lines" or "none". quiet wins over all.
ProgressMode ChooseProgress(absl::string_view mode, bool quiet, bool stderr_is_terminal);

class ProgressMeter {
 public:
  // write: where text goes (stderr in the program); now: seconds, monotonic.
  ProgressMeter(ProgressMode mode, int width, std::function<void(absl::string_view)> write,
                std::function<double()> now);
  // On stderr with the monotonic clock.
  explicit ProgressMeter(ProgressMode mode);
  ~ProgressMeter() { Clear(); }

  // `unit`: "tokens", "bytes", "runs" or "steps". A new phase ends the one before. done <= total;
  // total 0 = unknown. `detail` takes the place of
  // the rate.
  void Update(absl::string_view phase, int64_t done, int64_t total, absl::string_view unit,
              absl::string_view detail = "");
  // Of a world's program.
  void Update(const Progress& progress);
  // Takes the bar off the screen, before other text is written.
  void Clear();

 private:
  // bar_columns 0: no bar.
  std::string Line(double seconds, int bar_columns) const;

  const ProgressMode mode_;
  const int width_;
  const std::function<void(absl::string_view)> write_;
  const std::function<double()> now_;
  std::string phase_, unit_, detail_;
  double begin_ = 0, drawn_ = 0;
  int64_t first_ = 0, done_ = 0, total_ = 0;
  bool on_screen_ = false, finished_ = false;
};

}  // namespace toroid
