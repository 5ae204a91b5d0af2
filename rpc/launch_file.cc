// The file that tells a world's ranks who they are, and the records of ranks beside it.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "core/status_macros.h"
#include "parallel/host_exchange.h"
#include "rpc/rank_record.h"
#include "rpc/worker_process.h"

namespace toroid {
namespace {

using nlohmann::json;

std::string HostName() {
  char name[256] = "";
  (void)gethostname(name, sizeof(name) - 1);
  return name;
}

absl::Status WriteAll(int fd, const std::string& text, const std::string& path) {
  size_t done = 0;
  while (done < text.size()) {
    const ssize_t n = write(fd, text.data() + done, text.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) {
      return absl::UnavailableError(
          absl::StrCat("cannot write ", path, ": ", strerror(errno), ": check the disk"));
    }
    done += static_cast<size_t>(n);
  }
  return absl::OkStatus();
}

std::string Text(const WorkerOptions& options) {
  json roots = json::array();
  for (const Root& root : options.roots) roots.push_back({{"name", root.name}, {"dir", root.dir}});
  const json file = {{"controller", options.controller},
                     {"job", options.job},
                     {"epoch", options.epoch},
                     {"view", options.view},
                     {"pod", options.pod},
                     {"credential", options.credential},
                     {"scratch", options.scratch_dir},
                     {"tls_dir", options.tls_dir},
                     {"link_rate", options.throttle.bytes_per_second},
                     {"link_latency_s", absl::ToDoubleSeconds(options.throttle.latency)},
                     {"link_jitter_s", absl::ToDoubleSeconds(options.throttle.jitter)},
                     {"link_cuts_s", absl::ToDoubleSeconds(options.throttle.cut_every)},
                     {"link_seed", options.throttle.seed},
                     {"roots", roots}};
  return file.dump(-1, ' ', false, json::error_handler_t::replace);
}

absl::StatusOr<WorkerOptions> Parse(const std::string& text, const std::string& path) {
  try {
    const json file = json::parse(text);
    WorkerOptions options;
    options.controller = file.at("controller");
    options.job = file.at("job");
    options.epoch = file.at("epoch");
    options.view = file.at("view");
    options.pod = file.at("pod");
    options.credential = file.at("credential");
    options.scratch_dir = file.at("scratch");
    options.tls_dir = file.at("tls_dir");
    options.throttle.bytes_per_second = file.at("link_rate");
    options.throttle.latency = absl::Seconds(file.at("link_latency_s").get<double>());
    options.throttle.jitter = absl::Seconds(file.at("link_jitter_s").get<double>());
    options.throttle.cut_every = absl::Seconds(file.at("link_cuts_s").get<double>());
    options.throttle.seed = file.at("link_seed");
    for (const json& root : file.at("roots")) {
      options.roots.push_back({root.at("name"), root.at("dir")});
    }
    return options;
  } catch (const std::exception& error) {
    return absl::InvalidArgumentError(
        absl::StrCat("unreadable launch file: ", path, ": ", error.what()));
  }
}

}  // namespace

absl::Status WriteLaunchFile(const std::string& path, const WorkerOptions& options) {
  (void)unlink(path.c_str());
  const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
  if (fd < 0) {
    return absl::PermissionDeniedError(absl::StrCat("cannot make ", path, ": ", strerror(errno)));
  }
  const absl::Status written = WriteAll(fd, Text(options), path);
  close(fd);
  return written;
}

absl::StatusOr<WorkerOptions> ReadLaunchFile(const std::string& path) {
  struct stat info;
  if (stat(path.c_str(), &info) != 0) {
    return absl::NotFoundError(
        absl::StrCat("launch file not readable: ", path, ": toroid worker is started by agents"));
  }
  if ((info.st_mode & 077) != 0) {
    return absl::PermissionDeniedError(
        absl::StrCat("launch file is open to others: ", path, ": its mode must be 0600"));
  }
  std::ifstream in(path);
  std::stringstream text;
  text << in.rdbuf();
  return Parse(text.str(), path);
}

absl::StatusOr<WorkerOptions> ShareLaunchFile(Communicator& world,
                                              absl::StatusOr<WorkerOptions> own) {
  absl::Status of_first = world.rank() == 0 ? own.status() : absl::OkStatus();
  if (absl::IsNotFound(of_first) && world.size() > 1) {
    of_first = absl::NotFoundError(absl::StrCat(
        own.status().message(), ", whose own host comes first in --hosts or --hostfile"));
  }
  TOROID_RETURN_IF_ERROR(ShareStatus(world, of_first));
  const std::string text = BroadcastText(world, own.ok() ? Text(*own) : "");
  TOROID_RETURN_IF_ERROR(world.Health());
  if (own.ok()) return own;
  return Parse(text, "rank 0's");
}

void RecordRank(const WorkerOptions& options, int rank) {
  const std::string path = absl::StrCat(options.scratch_dir, "/rank-", rank);
  const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
  if (fd < 0) return;  // another host, which does not see the agent's directory
  (void)WriteAll(fd, absl::StrCat(getpid(), " ", HostName(), "\n"), path);
  close(fd);
}

std::vector<RankRecord> ReadRankRecords(const std::string& scratch_dir, int ranks) {
  std::vector<RankRecord> out;
  for (int rank = 0; rank < ranks; ++rank) {
    std::ifstream in(absl::StrCat(scratch_dir, "/rank-", rank));
    RankRecord record;
    record.rank = rank;
    if (in >> record.pid >> record.host) out.push_back(record);
  }
  return out;
}

}  // namespace toroid
