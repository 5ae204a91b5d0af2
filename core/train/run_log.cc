#include "core/train/run_log.h"

#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace toroid {

std::string RunLogPath(const std::string& directory, int64_t rank) {
  return absl::StrFormat("%s/logs/rank-%04d.log", directory, rank);
}

absl::StatusOr<RunLog> RunLog::Open(const std::string& directory, const Origin& origin) {
  std::error_code error;
  std::filesystem::create_directories(directory + "/logs", error);
  if (error) {
    return absl::PermissionDeniedError(absl::StrCat("output directory cannot be made: ", directory,
                                                    ": ", error.message(), ": name another"));
  }
  RunLog log;
  log.path_ = RunLogPath(directory, origin.rank);
  log.origin_ = origin;
  log.file_.reset(std::fopen(log.path_.c_str(), "ae"));
  if (log.file_ == nullptr) {
    return absl::PermissionDeniedError(
        absl::StrCat("output directory cannot be written: ", directory, ": ", std::strerror(errno),
                     ": name another"));
  }
  return log;
}

absl::Status RunLog::Write(const char* event, const std::string& text, int64_t step) {
  using Json = nlohmann::ordered_json;
  if (file_ == nullptr) return absl::OkStatus();
  const auto booted = std::chrono::steady_clock::now().time_since_epoch();
  const Json json = {
      {"time", absl::FormatTime(absl::RFC3339_full, absl::Now(), absl::UTCTimeZone())},
      {"monotonic_s", std::chrono::duration<double>(booted).count()},
      {"job", origin_.job},
      {"epoch", origin_.epoch},
      {"rank", origin_.rank},
      {"step", step},
      {"event", event},
      {"text", text}};
  const std::string line = json.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
  if (std::fwrite(line.data(), 1, line.size(), file_.get()) == line.size() &&
      std::fflush(file_.get()) == 0) {
    return absl::OkStatus();
  }
  const int code = std::exchange(errno, 0);
  file_.reset();
  return absl::UnavailableError(absl::StrCat("cannot write ", path_, ": ", std::strerror(code),
                                             ": training goes on; check the disk"));
}

}  // namespace toroid
