#include "rpc/mpirun_line.h"

#include <sched.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <set>
#include <sstream>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "core/status_macros.h"
#include "rpc/error_info.h"

extern char** environ;

namespace toroid {
namespace {

std::string FindInPath(const std::string& name) {
  const char* path = std::getenv("PATH");
  if (path == nullptr) return "";
  for (absl::string_view dir : absl::StrSplit(path, ':', absl::SkipEmpty())) {
    std::string candidate = absl::StrCat(dir, "/", name);
    if (access(candidate.c_str(), X_OK) == 0) return candidate;
  }
  return "";
}

// Distinct sets of sibling threads among the processors that this process may use.
int PhysicalCores() {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0) return 1;
  std::set<std::string> cores;
  int unknown = 0;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &allowed)) continue;
    std::ifstream file(
        absl::StrCat("/sys/devices/system/cpu/cpu", cpu, "/topology/thread_siblings_list"));
    std::string siblings;
    if (std::getline(file, siblings)) {
      cores.insert(siblings);
    } else {
      ++unknown;
    }
  }
  return std::max(1, static_cast<int>(cores.size()) + unknown);
}

// Whether a sandbox forbids process_vm_readv altogether: even of our own memory.
bool ProcessVmBlocked() {
  char from = 1, to = 0;
  iovec local{&to, 1}, remote{&from, 1};
  return process_vm_readv(getpid(), &local, 1, &remote, 1, 0) != 1 &&
         (errno == EPERM || errno == ENOSYS);
}

bool IsLocal(const std::string& host, const LaunchPlace& place) {
  return host == "localhost" || host == "127.0.0.1" || host == place.host;
}

absl::Status TooFewSlots(int ranks, int slots, const std::string& where) {
  return MakeError(
      absl::StatusCode::kResourceExhausted,
      absl::StrCat("too few slots: ", ranks, " ranks asked for, ", slots, " slots in ", where,
                   ": lower the number of ranks or add hosts"),
      {"TOO_FEW_SLOTS", {{"needed", absl::StrCat(ranks)}, {"slots", absl::StrCat(slots)}}, {}});
}

std::vector<std::string> SrunLine(const MpirunRequest& request, int ranks,
                                  const LaunchPlace& place) {
  std::vector<std::string> line = {place.srun,          "-n",
                                   absl::StrCat(ranks), "--mpi=pmix",
                                   "--cpu-bind=none",   "--kill-on-bad-exit=1"};
  if (request.quiet) line.push_back("--quiet");
  if (request.tag_output) line.push_back("--label");
  return line;
}

absl::StatusOr<std::vector<HostSlots>> Hosts(const MpirunRequest& request) {
  if (!request.hosts.empty()) return ParseHosts(request.hosts);
  if (request.hostfile.empty()) return std::vector<HostSlots>();
  std::ifstream file(request.hostfile);
  if (!file) {
    return absl::NotFoundError(
        absl::StrCat("hostfile not readable: ", request.hostfile, ": check the path"));
  }
  std::stringstream text;
  text << file.rdbuf();
  return ParseHostfile(text.str());
}

// The number asked for, or one for every slot.
absl::StatusOr<int> RanksOf(const MpirunRequest& request, const std::vector<HostSlots>& hosts) {
  if (request.ranks > 0) return request.ranks;
  if (request.ranks < 0 || hosts.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("number of ranks is ", request.ranks, ": at least 1 is needed"));
  }
  int64_t ranks = 0;
  for (const HostSlots& host : hosts) {
    if (host.slots == 0) {
      return absl::InvalidArgumentError(absl::StrCat(
          "no number of slots: ", host.host, ": write slots=4 behind it or say how many ranks"));
    }
    ranks += host.slots;
  }
  if (ranks > std::numeric_limits<int>::max()) {
    return absl::InvalidArgumentError(absl::StrCat("too many slots: ", ranks, ": name fewer"));
  }
  return static_cast<int>(ranks);
}

}  // namespace

LaunchPlace ThisPlace() {
  LaunchPlace place;
  place.cores = PhysicalCores();
  place.root = geteuid() == 0;
  place.process_vm_blocked = ProcessVmBlocked();
  char name[256] = "";
  if (gethostname(name, sizeof(name) - 1) == 0) place.host = name;
  place.mpirun = FindInPath("mpirun");
  place.srun = FindInPath("srun");
  place.slurm = std::getenv("SLURM_JOB_ID") != nullptr;
  if (const char* tasks = std::getenv("SLURM_NTASKS")) {
    if (!absl::SimpleAtoi(tasks, &place.slurm_tasks)) place.slurm_tasks = 0;
  }
  for (char** variable = environ; *variable != nullptr; ++variable) {
    const absl::string_view text = *variable;
    if (text.substr(0, 7) == "TOROID_")
      place.variables.emplace_back(text.substr(0, text.find('=')));
  }
  std::sort(place.variables.begin(), place.variables.end());
  return place;
}

absl::StatusOr<std::vector<HostSlots>> ParseHosts(const std::string& hosts) {
  std::vector<HostSlots> out;
  for (absl::string_view item : absl::StrSplit(hosts, ',')) {
    const std::pair<absl::string_view, absl::string_view> parts =
        absl::StrSplit(item, absl::MaxSplits(':', 1));
    HostSlots host{std::string(parts.first), 1};
    const bool numbered = absl::StrContains(item, ":");
    if (host.host.empty() || host.host[0] == '-' ||
        (numbered && (!absl::SimpleAtoi(parts.second, &host.slots) || host.slots < 1))) {
      return absl::InvalidArgumentError(
          absl::StrCat("unreadable host: '", item, "' in '", hosts, "': write a:4,b:4"));
    }
    out.push_back(std::move(host));
  }
  return out;
}

absl::StatusOr<std::vector<HostSlots>> ParseHostfile(const std::string& text) {
  std::vector<HostSlots> out;
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    line = line.substr(0, line.find('#'));
    std::vector<absl::string_view> words =
        absl::StrSplit(line, absl::ByAnyChar(" \t\r"), absl::SkipEmpty());
    if (words.empty()) continue;
    HostSlots host{std::string(words[0]), 0};
    for (size_t i = 1; i < words.size(); ++i) {
      absl::string_view value = words[i];
      if (!absl::ConsumePrefix(&value, "slots=")) continue;
      if (!absl::SimpleAtoi(value, &host.slots) || host.slots < 1) {
        return absl::InvalidArgumentError(
            absl::StrCat("unreadable hostfile line: '", line, "': write: name slots=4"));
      }
    }
    out.push_back(std::move(host));
  }
  if (out.empty()) return absl::InvalidArgumentError("hostfile names no host: write: name slots=4");
  return out;
}

absl::StatusOr<std::vector<std::string>> MpirunLine(const MpirunRequest& request,
                                                    const LaunchPlace& place) {
  if (request.command.empty()) return absl::InvalidArgumentError("no command to launch");
  if (!request.hosts.empty() && !request.hostfile.empty()) {
    return absl::InvalidArgumentError("hosts and hostfile are both given: give one");
  }
  TOROID_ASSIGN_OR_RETURN(const std::vector<HostSlots> hosts, Hosts(request));
  TOROID_ASSIGN_OR_RETURN(const int ranks, RanksOf(request, hosts));

  std::vector<std::string> line;
  const auto add = [&line](std::initializer_list<const char*> words) {
    line.insert(line.end(), words.begin(), words.end());
  };
  if (place.slurm && hosts.empty() && !place.srun.empty()) {
    if (place.slurm_tasks > 0 && ranks > place.slurm_tasks) {
      return TooFewSlots(ranks, place.slurm_tasks, "this Slurm allocation");
    }
    line = SrunLine(request, ranks, place);
  } else {
    if (place.mpirun.empty()) {
      return absl::FailedPreconditionError(
          "mpirun not found: it is not in PATH: install Open MPI (Debian: openmpi-bin)");
    }
    line = {place.mpirun};
    if (request.quiet) add({"-q"});
    if (place.root) add({"--allow-run-as-root"});
    line.insert(line.end(), {"-n", absl::StrCat(ranks)});
    add({"--bind-to", "none"});
    bool remote = false, counted = true;
    int slots = 0;
    for (const HostSlots& host : hosts) {
      remote |= !IsLocal(host.host, place);
      counted &= host.slots > 0;
      slots += host.slots;
    }
    if (!hosts.empty()) {
      const bool list = !request.hosts.empty();
      if (counted && ranks > slots) {
        return TooFewSlots(ranks, slots, list ? request.hosts : request.hostfile);
      }
      line.insert(line.end(), {list ? "--host" : "--hostfile",
                               list ? request.hosts : request.hostfile, "--map-by", "slot"});
    } else if (ranks > place.cores) {
      add({"--oversubscribe"});
    }
    // Slots of other hosts say nothing about their cores, so there too a waiting rank gives way.
    if (ranks > place.cores || !hosts.empty()) add({"--mca", "mpi_yield_when_idle", "1"});
    if (place.process_vm_blocked) add({"--mca", "btl_vader_single_copy_mechanism", "none"});
    if (remote) {
      add({"--mca", "oob_tcp_keepalive_time", "2", "--mca", "oob_tcp_keepalive_intvl", "1", "--mca",
           "oob_tcp_keepalive_probes", "3"});
      for (const std::string& name : place.variables) line.insert(line.end(), {"-x", name});
    }
    if (request.tag_output) add({"--tag-output"});
  }
  line.insert(line.end(), request.extra.begin(), request.extra.end());
  line.insert(line.end(), request.command.begin(), request.command.end());
  return line;
}

std::string ShellQuoted(const std::vector<std::string>& argv) {
  std::string out;
  for (const std::string& word : argv) {
    if (!out.empty()) out += ' ';
    const bool plain = !word.empty() && word.find_first_not_of(
                                            "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                            "0123456789_-+=:,./@%") == std::string::npos;
    if (plain) {
      out += word;
      continue;
    }
    out += '\'';
    for (char c : word) {
      if (c == '\'') {
        out += "'\\''";
      } else {
        out += c;
      }
    }
    out += '\'';
  }
  return out;
}

}  // namespace toroid
