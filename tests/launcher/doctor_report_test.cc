#include "launcher/doctor_report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace toroid {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

// A host of two H100 on which all is well.
DoctorFacts Host() {
  DoctorFacts facts;
  facts.version = "1.2.3", facts.build = "Release";
  facts.processor = "Some CPU", facts.isa = "avx512";
  facts.cores = 8, facts.machine_cores = 16;
  facts.free_memory = int64_t{100} << 30, facts.machine_memory = int64_t{128} << 30;
  facts.shared_memory = int64_t{8} << 30;
  facts.mpi = "Open MPI v4.1.4, package: Debian OpenMPI";
  facts.mpirun = "/usr/bin/mpirun", facts.mpirun_version = "mpirun (Open MPI) 4.1.4";
  facts.models = "/models", facts.model_count = 2;
  facts.driver = "580.65.06";
  facts.cuda.built = true, facts.cuda.runtime = 13000, facts.cuda.driver = 13010;
  CudaDevice gpu;
  gpu.name = "NVIDIA H100", gpu.major = 9, gpu.multiprocessors = 132;
  gpu.total_bytes = int64_t{80} << 30, gpu.free_bytes = int64_t{79} << 30;
  gpu.uuid = {0x12, char(0xab), 0, 1};
  gpu.peers = {1};
  facts.cuda.devices = {gpu, gpu};
  facts.cuda.devices[1].peers = {0};
  facts.unusable = {"", ""};
  facts.context_bytes = {int64_t{512} << 20, 0};  // of the second it is not known
  facts.links = {{0, 1, true, ""}, {1, 0, true, ""}};
  facts.nccl = "2.28.9";
  return facts;
}

DoctorFacts CpuHost() {
  DoctorFacts facts = Host();
  facts.driver = "", facts.cuda = {}, facts.unusable = {}, facts.links = {}, facts.nccl = "";
  return facts;
}

// The names of what is not well.
std::vector<std::string> Warnings(const DoctorReport& report) {
  std::vector<std::string> names;
  for (const Finding& finding : report.findings) {
    if (!finding.remedy.empty()) names.push_back(finding.name);
  }
  return names;
}

std::string RemedyOf(const DoctorReport& report, const std::string& name) {
  for (const Finding& finding : report.findings) {
    if (finding.name == name) return finding.remedy;
  }
  return "no such finding";
}

TEST(Doctor, NothingIsWrongWithASoundHost) {
  const DoctorReport report = Diagnose(Host(), Device::kCuda);
  EXPECT_THAT(Warnings(report), IsEmpty());
  EXPECT_EQ(report.missing, "");
  EXPECT_EQ(report.choice.device, "cuda");
  EXPECT_THAT(report.choice.attention, HasSubstr("Hopper"));
  EXPECT_THAT(report.choice.communicator, HasSubstr("NCCL"));
  EXPECT_THAT(report.choice.link, HasSubstr("copy engine"));
  EXPECT_THAT(DoctorText(report, /*colour=*/false),
              AllOf(HasSubstr("ok       GPU 0           NVIDIA H100, 79.0 GiB free of 80.0 GiB, "
                              "compute capability 9.0, 132 multiprocessors, "
                              "GPU-12ab0001-0000-0000-0000-000000000000, 512.0 MiB to a process\n"),
                    HasSubstr("ok       GPU 0 to 1      peer access, CUDA IPC between processes\n"),
                    HasSubstr("chosen   device          cuda\n")));
}

TEST(Doctor, EachFaultIsNamedWithItsRemedy) {
  struct Fault {
    void (*plant)(DoctorFacts&);
    const char *name, *remedy;
  };
  const Fault faults[] = {
      {[](DoctorFacts& f) { f.isa_error = "TOROID_ISA=x is not possible"; }, "processor",
       "TOROID_ISA=x"},
      {[](DoctorFacts& f) { f.free_memory = 1 << 20; }, "memory", "end what else"},
      {[](DoctorFacts& f) { f.free_memory.reset(); }, "memory", "mount /proc"},
      {[](DoctorFacts& f) { f.shared_memory = (64 << 20) - 1; }, "shared memory", "--shm-size"},
      {[](DoctorFacts& f) { f.shared_memory.reset(); }, "shared memory", "--shm-size"},
      {[](DoctorFacts& f) { f.mpirun = ""; }, "MPI", "openmpi-bin"},
      {[](DoctorFacts& f) { f.mpirun_version = "mpirun (Open MPI) 5.0.7"; }, "MPI",
       "another version"},
      {[](DoctorFacts& f) { f.model_count = 0; }, "models", "get_model.sh"},
      {[](DoctorFacts& f) { f.model_count = -1; }, "models", "get_model.sh"},
      {[](DoctorFacts& f) { f.cuda.driver = 12080; }, "GPU driver", "older than CUDA 13.0"},
      {[](DoctorFacts& f) { f.cuda.devices[1].major = 7; }, "GPU 1", "below 8.0"},
      {[](DoctorFacts& f) { f.cuda.devices[0].free_bytes = 1 << 30; }, "GPU 0",
       "CUDA_VISIBLE_DEVICES"},
      {[](DoctorFacts& f) { f.unusable[1] = "GPU 1: refused"; }, "GPU 1", "refused"},
      {[](DoctorFacts& f) { f.links[0].peer = false; }, "GPU 0 to 1", "host's memory"},
      {[](DoctorFacts& f) { f.links[1].ipc = "refused"; }, "GPU 1 to 0", "--ipc host"},
      {[](DoctorFacts& f) { f.nccl = ""; }, "NCCL", "install NCCL"},
  };
  for (const Fault& fault : faults) {
    DoctorFacts facts = Host();
    fault.plant(facts);
    const DoctorReport report = Diagnose(facts, Device::kAuto);
    EXPECT_THAT(Warnings(report), ElementsAre(fault.name));
    EXPECT_THAT(RemedyOf(report, fault.name), HasSubstr(fault.remedy));
    EXPECT_THAT(DoctorText(report, /*colour=*/false), HasSubstr("\nwarning  "));
  }
}

TEST(Doctor, AHostWithoutGpusIsSoundUnlessOneIsAskedFor) {
  const DoctorReport sound = Diagnose(CpuHost(), Device::kAuto);
  EXPECT_THAT(Warnings(sound), IsEmpty());
  EXPECT_EQ(sound.choice.device, "cpu");
  EXPECT_EQ(sound.missing, "");
  const DoctorReport asked = Diagnose(CpuHost(), Device::kCuda);
  EXPECT_THAT(Warnings(asked), ElementsAre("GPU driver", "CUDA"));
  EXPECT_THAT(asked.missing, HasSubstr("-DTOROID_CUDA=ON"));
  DoctorFacts facts = CpuHost();
  facts.driver = "580.65.06";  // a GPU that this build cannot use
  EXPECT_THAT(Warnings(Diagnose(facts, Device::kAuto)), ElementsAre("CUDA"));
}

TEST(Doctor, SaysWhatIsMissingAndChoosesWithoutIt) {
  DoctorFacts facts = Host();
  facts.unusable[1] = "GPU 1: it is broken: use --device cpu";
  EXPECT_EQ(Diagnose(facts, Device::kCuda).missing, facts.unusable[1]);
  EXPECT_EQ(Diagnose(facts, Device::kAuto).missing, "");
  EXPECT_THAT(Diagnose(facts, Device::kAuto).choice.device, HasSubstr("none"));  // it fails there
  facts = Host();
  facts.cuda.devices.clear(), facts.unusable.clear(), facts.links.clear();
  facts.cuda.error = "no CUDA-capable device is detected";
  EXPECT_THAT(Diagnose(facts, Device::kCuda).missing, HasSubstr("no CUDA-capable device"));
  facts = Host();
  facts.links[0].ipc = "refused";
  EXPECT_EQ(Diagnose(facts, Device::kAuto).choice.link, "NCCL");
  facts.cuda.devices[0].major = 10;
  EXPECT_EQ(Diagnose(facts, Device::kAuto).choice.attention, "plain CUDA");
  // Asked for the CPU, it looks at nothing else.
  const DoctorReport cpu = Diagnose(Host(), Device::kCpu);
  EXPECT_EQ(cpu.choice.device, "cpu");
  EXPECT_EQ(RemedyOf(cpu, "GPU 0"), "no such finding");
}

TEST(Doctor, JsonHasChecksAndGpus) {
  DoctorFacts facts = Host();
  facts.model_count = 0;
  const DoctorReport report = Diagnose(facts, Device::kAuto);
  const nlohmann::json json = nlohmann::json::parse(DoctorJson(facts, report));
  EXPECT_EQ(json["schema"], 1);
  EXPECT_EQ(json["pass"], true);
  EXPECT_EQ(json["chosen"]["device"], "cuda");
  ASSERT_EQ(json["gpus"].size(), 2u);
  EXPECT_EQ(json["gpus"][0]["compute_capability"], "9.0");
  EXPECT_EQ(json["gpus"][0]["bytes"], int64_t{80} << 30);
  EXPECT_EQ(json["gpus"][0]["peers"], nlohmann::json({1}));
  EXPECT_EQ(json["gpus"][0]["context_bytes"], int64_t{512} << 20);
  EXPECT_EQ(json["gpus"][1]["context_bytes"], 0);
  EXPECT_EQ(json["links"].size(), 2u);
  int warnings = 0;
  for (const nlohmann::json& check : json["checks"]) {
    EXPECT_EQ(check.contains("remedy"), check["state"] == "warning");
    warnings += check["state"] == "warning";
  }
  EXPECT_EQ(warnings, 1);
}

}  // namespace
}  // namespace toroid
