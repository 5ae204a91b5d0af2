#include "launcher/doctor_report.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "launcher/json_output.h"
#include "launcher/quantity.h"

namespace toroid {
namespace {

using nlohmann::ordered_json;

constexpr int64_t kLittleMemory = int64_t{1} << 30;
constexpr int64_t kLittleShared = int64_t{64} << 20;  // what containers are given by default
constexpr int kOldestCapability = 8;
constexpr char kCpuBuild[] = "build with deploy/build.sh build-cuda -DTOROID_CUDA=ON";

// 13020 -> "13.2".
std::string CudaVersion(int version) {
  return absl::StrCat(version / 1000, ".", version % 1000 / 10);
}

// "2e1a...": as nvidia-smi and CUDA_VISIBLE_DEVICES write it.
std::string UuidText(const std::array<char, 16>& uuid) {
  std::string text = "GPU-";
  for (size_t i = 0; i < uuid.size(); ++i) {
    if (i == 4 || i == 6 || i == 8 || i == 10) text += '-';
    absl::StrAppend(&text, absl::Hex(uint8_t(uuid[i]), absl::kZeroPad2));
  }
  return text;
}

// The first version number in `text`: "mpirun (Open MPI) 4.1.4" -> "4.1.4".
std::string NumberIn(const std::string& text) {
  const size_t begin = text.find_first_of("0123456789");
  if (begin == std::string::npos) return "";
  return text.substr(begin, text.find_first_not_of("0123456789.", begin) - begin);
}

bool Usable(const DoctorFacts& facts) {
  return !facts.cuda.devices.empty() &&
         std::all_of(facts.unusable.begin(), facts.unusable.end(),
                     [](const std::string& why) { return why.empty(); });
}

bool Hopper(const DoctorFacts& facts) {
  return std::all_of(facts.cuda.devices.begin(), facts.cuda.devices.end(),
                     [](const CudaDevice& gpu) { return gpu.major == 9 && gpu.minor == 0; });
}

Finding Processor(const DoctorFacts& facts) {
  return {"processor", absl::StrCat(facts.processor, "; kernels for ", facts.isa), facts.isa_error};
}

Finding Memory(const DoctorFacts& facts) {
  const std::string all = FormatBytes(double(facts.machine_memory));
  if (!facts.free_memory) {
    return {"memory", all, "the system does not say how much is free: mount /proc"};
  }
  return {"memory", absl::StrCat(FormatBytes(double(*facts.free_memory)), " free of ", all),
          *facts.free_memory < kLittleMemory ? "little is free: end what else runs here" : ""};
}

Finding SharedMemory(const DoctorFacts& facts) {
  constexpr char kRemedy[] = "MPI and NCCL pass messages through it: docker run --shm-size=1g";
  if (!facts.shared_memory) return {"shared memory", "no /dev/shm", kRemedy};
  return {"shared memory", absl::StrCat(FormatBytes(double(*facts.shared_memory)), " free"),
          *facts.shared_memory < kLittleShared ? kRemedy : ""};
}

Finding Mpi(const DoctorFacts& facts) {
  const std::string library = facts.mpi.substr(0, facts.mpi.find(','));
  if (facts.mpirun.empty()) {
    return {"MPI", absl::StrCat(library, ", no mpirun on the PATH"),
            "several ranks need it: apt-get install openmpi-bin, or use srun"};
  }
  Finding finding = {"MPI", absl::StrCat(library, "; ", facts.mpirun, ": ", facts.mpirun_version),
                     ""};
  if (NumberIn(library) != NumberIn(facts.mpirun_version)) {
    finding.remedy =
        "mpirun is of another version than the library, and its ranks may not find each other: "
        "put the library's mpirun first on the PATH";
  }
  return finding;
}

Finding Models(const DoctorFacts& facts) {
  if (facts.model_count > 0) {
    return {"models",
            absl::StrCat(facts.models, ", ", facts.model_count,
                         facts.model_count == 1 ? " entry" : " entries"),
            ""};
  }
  return {"models",
          absl::StrCat(facts.models, facts.model_count < 0 ? " is not there" : " is empty"),
          "get one with deploy/get_model.sh, or set TOROID_MODELS"};
}

Finding Driver(const DoctorFacts& facts, bool wanted) {
  const CudaInstallation& cuda = facts.cuda;
  if (facts.driver.empty() && cuda.driver == 0) {
    const bool needs = wanted || cuda.built;
    return {"GPU driver", "none",
            !needs ? ""
                   : "install NVIDIA's driver, or give the container its GPUs (docker run --gpus "
                     "all), or use --device cpu"};
  }
  std::string value = facts.driver.empty() ? "loaded" : facts.driver;
  if (cuda.driver > 0) absl::StrAppend(&value, ", runs CUDA ", CudaVersion(cuda.driver));
  Finding finding = {"GPU driver", std::move(value), ""};
  if (cuda.driver / 1000 < cuda.runtime / 1000) {
    finding.remedy = absl::StrCat("it is older than CUDA ", CudaVersion(cuda.runtime),
                                  " of this build: install a newer driver");
  }
  return finding;
}

Finding Cuda(const DoctorFacts& facts, bool wanted) {
  const CudaInstallation& cuda = facts.cuda;
  if (!cuda.built) {
    const bool needs = wanted || !facts.driver.empty();
    return {"CUDA", "this toroid was built without", needs ? kCpuBuild : ""};
  }
  Finding finding = {"CUDA", CudaVersion(cuda.runtime), ""};
  if (cuda.devices.empty()) {
    absl::StrAppend(&finding.value, ", no GPU",
                    cuda.error.empty() ? "" : absl::StrCat(": ", cuda.error));
    finding.remedy = "look at CUDA_VISIBLE_DEVICES and the driver, or use --device cpu";
  }
  return finding;
}

int64_t ContextBytes(const DoctorFacts& facts, size_t device) {
  return device < facts.context_bytes.size() ? facts.context_bytes[device] : 0;
}

Finding Gpu(const DoctorFacts& facts, size_t device) {
  const CudaDevice& gpu = facts.cuda.devices[device];
  Finding finding = {
      absl::StrCat("GPU ", device),
      absl::StrCat(gpu.name, ", ", FormatBytes(double(gpu.free_bytes)), " free of ",
                   FormatBytes(double(gpu.total_bytes)), ", compute capability ", gpu.major, ".",
                   gpu.minor, ", ", gpu.multiprocessors, " multiprocessors, ", UuidText(gpu.uuid)),
      ""};
  if (const int64_t bytes = ContextBytes(facts, device); bytes > 0) {
    absl::StrAppend(&finding.value, ", ", FormatBytes(double(bytes)), " to a process");
  }
  if (gpu.major < kOldestCapability) {
    finding.remedy = "its compute capability is below 8.0: use --device cpu";
  } else if (device < facts.unusable.size() && !facts.unusable[device].empty()) {
    finding.remedy = facts.unusable[device];
  } else if (gpu.free_bytes < gpu.total_bytes / 2) {
    finding.remedy =
        "other processes hold most of its memory: end them, or choose another GPU "
        "with CUDA_VISIBLE_DEVICES";
  }
  return finding;
}

Finding Link(const GpuLink& link) {
  const bool self = link.from == link.to;
  Finding finding = {
      self ? absl::StrCat("GPU ", link.from, " shared")
           : absl::StrCat("GPU ", link.from, " to ", link.to),
      absl::StrCat(self        ? ""
                   : link.peer ? "peer access, "
                               : "no peer access, ",
                   link.ipc.empty() ? "CUDA IPC between processes" : "no CUDA IPC: ", link.ipc),
      ""};
  if (!link.ipc.empty()) {
    finding.remedy =
        "neighbours then speak through NCCL, more slowly: in a container share the "
        "host's IPC and PID namespaces (docker run --ipc host --pid host)";
  } else if (!self && !link.peer) {
    finding.remedy = "copies pass through the host's memory: is an NVLink or PCIe switch off?";
  }
  return finding;
}

Finding Nccl(const DoctorFacts& facts) {
  if (!facts.nccl.empty()) return {"NCCL", facts.nccl, ""};
  return {
      "NCCL", "this toroid was built without",
      facts.cuda.devices.size() > 1 ? "several GPUs need it: install NCCL and build again" : ""};
}

DoctorChoice Choose(const DoctorFacts& facts, Device asked) {
  DoctorChoice choice;
  const bool gpus = asked != Device::kCpu && Usable(facts);
  const bool broken = asked != Device::kCpu && !gpus && !facts.cuda.devices.empty();
  choice.device = gpus     ? "cuda"
                  : broken ? "none, where a rank's GPU is the one that cannot be used: --device cpu"
                           : "cpu";
  if (!gpus) {
    choice.attention = absl::StrCat("CPU, ", facts.isa);
    choice.communicator = choice.link = "MPI";
    return choice;
  }
  choice.attention = Hopper(facts) ? "--compute bf16: Hopper's tensor cores at head dim 64, 128, "
                                     "256; f32: plain CUDA"
                                   : "plain CUDA";
  if (facts.nccl.empty()) {
    choice.communicator = "none: one rank; several that share a GPU with --allow-gpu-sharing";
  } else {
    choice.communicator = "NCCL among ranks with a GPU each";
  }
  const bool ipc =
      !facts.links.empty() && std::all_of(facts.links.begin(), facts.links.end(),
                                          [](const GpuLink& link) { return link.ipc.empty(); });
  choice.link = ipc ? "the copy engine (CUDA IPC) on one host, else NCCL" : "NCCL";
  return choice;
}

std::string Missing(const DoctorFacts& facts, Device asked) {
  if (asked != Device::kCuda || Usable(facts)) return "";
  if (!facts.cuda.built) return absl::StrCat("this toroid was built without CUDA: ", kCpuBuild);
  if (facts.cuda.devices.empty()) {
    return absl::StrCat("no GPU is seen", facts.cuda.error.empty() ? "" : ", ", facts.cuda.error,
                        ": look at CUDA_VISIBLE_DEVICES and the driver");
  }
  for (size_t device = 0; device < facts.unusable.size(); ++device) {
    if (!facts.unusable[device].empty()) return facts.unusable[device];
  }
  return "no GPU can be used: see the lines above";
}

}  // namespace

DoctorReport Diagnose(const DoctorFacts& facts, Device asked) {
  const bool wanted = asked == Device::kCuda;
  DoctorReport report;
  std::vector<Finding>& findings = report.findings;
  findings.push_back({"toroid",
                      absl::StrCat(facts.version, ", ", facts.build,
                                   facts.cuda.built ? ", with CUDA" : ", without CUDA"),
                      ""});
  findings.push_back(Processor(facts));
  findings.push_back({"cores", absl::StrCat(facts.cores, " of ", facts.machine_cores), ""});
  findings.push_back(Memory(facts));
  findings.push_back(SharedMemory(facts));
  findings.push_back(Mpi(facts));
  findings.push_back(Models(facts));
  if (asked != Device::kCpu) {
    findings.push_back(Driver(facts, wanted));
    findings.push_back(Cuda(facts, wanted));
    for (size_t i = 0; i < facts.cuda.devices.size(); ++i) findings.push_back(Gpu(facts, i));
    for (const GpuLink& link : facts.links) findings.push_back(Link(link));
    if (facts.cuda.built) findings.push_back(Nccl(facts));
  }
  report.choice = Choose(facts, asked);
  report.missing = Missing(facts, asked);
  return report;
}

std::string DoctorText(const DoctorReport& report, bool colour) {
  const DoctorChoice& choice = report.choice;
  const std::vector<Finding> chosen = {{"device", choice.device, ""},
                                       {"attention", choice.attention, ""},
                                       {"communicator", choice.communicator, ""},
                                       {"neighbour link", choice.link, ""}};
  size_t width = 0;
  for (const Finding& finding : chosen) width = std::max(width, finding.name.size());
  for (const Finding& finding : report.findings) width = std::max(width, finding.name.size());
  std::string text;
  const auto line = [&](const std::string& state, const char* tint, const Finding& finding) {
    absl::StrAppend(&text, colour ? tint : "", state, colour ? "\x1b[0m" : "",
                    std::string(9 - state.size(), ' '), finding.name,
                    std::string(width + 2 - finding.name.size(), ' '), finding.value,
                    finding.remedy.empty() ? "" : ": ", finding.remedy, "\n");
  };
  for (const Finding& finding : report.findings) {
    const bool well = finding.remedy.empty();
    line(well ? "ok" : "warning", well ? "\x1b[32m" : "\x1b[33m", finding);
  }
  for (const Finding& finding : chosen) line("chosen", "\x1b[1m", finding);
  return text;
}

std::string DoctorJson(const DoctorFacts& facts, const DoctorReport& report) {
  ordered_json json = {{"schema", kJsonSchema},
                       {"version", facts.version},
                       {"build", facts.build},
                       {"cuda", facts.cuda.built},
                       {"pass", report.missing.empty()}};
  if (!report.missing.empty()) json["missing"] = report.missing;
  json["chosen"] = {{"device", report.choice.device},
                    {"attention", report.choice.attention},
                    {"communicator", report.choice.communicator},
                    {"link", report.choice.link}};
  json["checks"] = ordered_json::array();
  for (const Finding& finding : report.findings) {
    ordered_json check = {{"check", finding.name},
                          {"state", finding.remedy.empty() ? "ok" : "warning"},
                          {"found", finding.value}};
    if (!finding.remedy.empty()) check["remedy"] = finding.remedy;
    json["checks"].push_back(std::move(check));
  }
  json["gpus"] = ordered_json::array();
  for (size_t i = 0; i < facts.cuda.devices.size(); ++i) {
    const CudaDevice& gpu = facts.cuda.devices[i];
    json["gpus"].push_back({{"name", gpu.name},
                            {"uuid", UuidText(gpu.uuid)},
                            {"bytes", gpu.total_bytes},
                            {"free_bytes", gpu.free_bytes},
                            {"context_bytes", ContextBytes(facts, i)},
                            {"compute_capability", absl::StrCat(gpu.major, ".", gpu.minor)},
                            {"multiprocessors", gpu.multiprocessors},
                            {"peers", gpu.peers},
                            {"usable", i >= facts.unusable.size() || facts.unusable[i].empty()}});
  }
  json["links"] = ordered_json::array();
  for (const GpuLink& link : facts.links) {
    json["links"].push_back(
        {{"from", link.from}, {"to", link.to}, {"peer", link.peer}, {"ipc", link.ipc.empty()}});
  }
  return absl::StrCat(json.dump(-1, ' ', false, ordered_json::error_handler_t::replace), "\n");
}

}  // namespace toroid
