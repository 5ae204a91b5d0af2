// toroid doctor: what this machine has for toroid, what is wrong with it, and what toroid will use.
#include <poll.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "core/backend.h"
#include "core/status_macros.h"
#include "core/version.h"
#include "kernels/isa.h"
#include "launcher/doctor_report.h"
#include "launcher/exit_code.h"
#include "launcher/options.h"
#include "launcher/services.h"
#include "launcher/terminal.h"
#include "launcher/verbs.h"
#include "parallel/host_memory.h"
#include "parallel/launcher_environment.h"
#include "parallel/mpi_communicator.h"
#include "parallel/nccl_communicator.h"
#include "rpc/start_process.h"

namespace toroid {
namespace {

// What follows the colon of the first line of `file` that begins with `key`; empty: no such line.
std::string LineOf(const std::string& file, const std::string& key) {
  std::ifstream in(file);
  for (std::string line; std::getline(in, line);) {
    if (line.rfind(key, 0) != 0) continue;
    const size_t colon = line.find(':');
    if (colon != std::string::npos) {
      return std::string(absl::StripAsciiWhitespace(line.substr(colon + 1)));
    }
  }
  return "";
}

// "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun .." -> "580.65.06".
std::string KernelDriver() {
  const std::string line = LineOf("/proc/driver/nvidia/version", "NVRM version");
  const std::vector<std::string> words = absl::StrSplit(line, ' ', absl::SkipEmpty());
  for (const std::string& word : words) {
    const bool number = !word.empty() && absl::ascii_isdigit(static_cast<unsigned char>(word[0]));
    if (number && word.find('.') != std::string::npos) return word;
  }
  return line;
}

std::string OnPath(const std::string& program) {
  const char* path = std::getenv("PATH");
  const std::vector<std::string> folders =
      absl::StrSplit(absl::NullSafeStringView(path), ':', absl::SkipEmpty());
  for (const std::string& folder : folders) {
    const std::string file = absl::StrCat(folder, "/", program);
    if (access(file.c_str(), X_OK) == 0) return file;
  }
  return "";
}

struct Ended {
  int code = -1;
  std::string output;
};

// For a program that asks a driver which may be what is broken.
constexpr absl::Duration kPatience = absl::Seconds(20);

// Runs a program of ours or of MPI to its end, or kills it. Its stderr is read where `of_error`
// says so.
Ended RunToEnd(const std::vector<std::string>& argv, bool of_error) {
  ProcessSpec spec;
  spec.argv = argv;
  spec.read_output = !of_error, spec.read_error = of_error;
  const absl::StatusOr<StartedProcess> child = StartProcess(spec);
  if (!child.ok()) return {};
  Ended ended;
  const int from = of_error ? child->error : child->output;
  std::array<char, 4096> block;
  const absl::Time deadline = absl::Now() + kPatience;
  while (true) {
    pollfd ready = {from, POLLIN, 0};
    const int left = int(std::max<int64_t>(0, absl::ToInt64Milliseconds(deadline - absl::Now())));
    const int polled = poll(&ready, 1, left);
    if (polled == 0) kill(child->pid, SIGKILL);  // code stays -1
    if (polled < 0 && errno == EINTR) continue;
    if (polled <= 0) break;
    const ssize_t n = read(from, block.data(), block.size());
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) break;
    ended.output.append(block.data(), size_t(n));
  }
  close(from);
  int status = 0;
  while (waitpid(child->pid, &status, 0) < 0 && errno == EINTR) {
  }
  ended.code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  return ended;
}

void LookAtModels(DoctorFacts& facts) {
  const char *set = std::getenv("TOROID_MODELS"), *home = std::getenv("HOME");
  facts.models = set != nullptr && *set != 0
                     ? std::string(set)
                     : absl::StrCat(absl::NullSafeStringView(home), "/.cache/toroid/models");
  std::error_code error;
  std::filesystem::directory_iterator entries(facts.models, error);
  if (error) return;
  facts.model_count = std::distance(begin(entries), end(entries));
}

// The memory of one GPU as the rank of another one would reach it: a process of its own tries.
GpuLink TryLink(const CudaInstallation& cuda, int from, int to) {
  GpuLink link = {from, to, false, ""};
  for (const int peer : cuda.devices[size_t(from)].peers) link.peer = link.peer || peer == to;
  const absl::StatusOr<std::string> handle = CudaIpcHandle(to);
  const absl::StatusOr<std::string> self = OwnPath();
  if (!handle.ok() || !self.ok()) {
    link.ipc = std::string((handle.ok() ? self.status() : handle.status()).message());
    return link;
  }
  const Ended other = RunToEnd({*self, "doctor", "--open-handle", absl::BytesToHexString(*handle),
                                "--open-on", absl::StrCat(from)},
                               /*of_error=*/true);
  if (other.code == kExitOk) return link;
  link.ipc = absl::StrCat("another process cannot open it", other.output.empty() ? "" : ": ",
                          std::string(absl::StripAsciiWhitespace(other.output)));
  return link;
}

void LookAtGpus(DoctorFacts& facts) {
  std::vector<int64_t> used;  // before this process has hold of any
  for (int gpu = 0; gpu < CudaDevices(); ++gpu) used.push_back(CudaUsedBytes(gpu).value_or(0));
  facts.cuda = DescribeCuda();
  facts.nccl = NcclVersion();
  const int gpus = int(facts.cuda.devices.size());
  for (int gpu = 0; gpu < gpus; ++gpu) {
    CudaOptions options;
    options.device = gpu;
    const absl::StatusOr<std::unique_ptr<Backend>> ops = NewCudaBackend(options);
    facts.unusable.emplace_back(ops.ok() ? "" : std::string(ops.status().message()));
    const int64_t before = size_t(gpu) < used.size() ? used[size_t(gpu)] : 0;
    const int64_t after = before > 0 ? CudaUsedBytes(gpu).value_or(before) : before;
    facts.context_bytes.push_back(std::max<int64_t>(0, after - before));
  }
  for (int gpu = 0; gpu < gpus; ++gpu) {  // along the ring of all
    facts.links.push_back(TryLink(facts.cuda, gpu, (gpu + 1) % gpus));
  }
}

DoctorFacts LookAround(Device asked) {
  DoctorFacts facts;
  facts.version = kVersion, facts.build = TOROID_BUILD_TYPE;
  facts.processor = LineOf("/proc/cpuinfo", "model name");
  facts.isa = IsaName(CurrentIsa()), facts.isa_error = IsaError();
  facts.cores = AffinityCores();
  facts.machine_cores = sysconf(_SC_NPROCESSORS_ONLN);
  facts.free_memory = FreeMemory();
  facts.machine_memory = int64_t(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGESIZE);
  struct statvfs shared;
  if (statvfs("/dev/shm", &shared) == 0) {
    facts.shared_memory = int64_t(shared.f_bavail) * int64_t(shared.f_frsize);
  }
  facts.mpi = MpiLibraryVersion();
  facts.mpirun = OnPath("mpirun");
  if (!facts.mpirun.empty()) {
    const Ended said = RunToEnd({facts.mpirun, "--version"}, /*of_error=*/false);
    facts.mpirun_version = said.output.substr(0, said.output.find('\n'));
  }
  LookAtModels(facts);
  facts.driver = KernelDriver();
  if (asked != Device::kCpu) LookAtGpus(facts);
  return facts;
}

absl::Status RunDoctor(const Arguments& arguments) {
  if (arguments.Has("--open-handle")) {
    const std::string handle = absl::HexStringToBytes(arguments.Text("--open-handle"));
    return OpenCudaIpcHandle(int(arguments.Count("--open-on")), handle);
  }
  const Device asked = DeviceNamed(arguments.Text("--device"));
  const DoctorFacts facts = LookAround(asked);
  const DoctorReport report = Diagnose(facts, asked);
  WriteStdout(JsonOption(arguments) ? DoctorJson(facts, report)
                                    : DoctorText(report, ColourStdout()));
  if (report.missing.empty()) return absl::OkStatus();
  return WithExitCode(
      absl::FailedPreconditionError(absl::StrCat("--device cuda: ", report.missing)), kExitFailure);
}

const OptionTable kDoctorOptions = {
    "what is asked for",
    {
        {"--device", ValueKind::kChoice, "auto|cpu|cuda", "auto",
         "cuda: exit 1 if it cannot be had; cpu: do not look at GPUs", true},
    }};

const OptionTable kHandleOptions = {
    "what doctor asks of a second process",
    {
        {"--open-handle", ValueKind::kText, "HEX", "", "open this memory of a GPU, by CUDA IPC"},
        {"--open-on", ValueKind::kCount, "GPU", "0", "from this GPU"},
    }};

}  // namespace

const Verb kDoctorVerb = {
    .name = "doctor",
    .summary = "what this machine has for toroid, what is wrong with it, what toroid will use",
    .positionals = {},
    .tables = {&kDoctorOptions, &kOutputOptions, &kHandleOptions},
    .examples =
        "toroid doctor\n"
        "toroid doctor --device cuda    # exit 1 where there is no GPU to compute on\n"
        "toroid doctor -o json | jq '.checks[] | select(.state == \"warning\")'",
    .run = RunDoctor,
    .details =
        "A line is ok, or a warning that ends with what to do; `chosen` is what --device "
        "would use here.",
};

}  // namespace toroid
