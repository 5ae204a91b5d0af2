// What `toroid doctor` found on this machine, judged: each line is fine, or says what to do.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/cuda_devices.h"
#include "parallel/request.h"

namespace toroid {

// Whether one GPU's memory can be reached from another one, or its own from another process.
struct GpuLink {
  int from = 0, to = 0;
  bool peer = false;  // directly, not through the host's memory
  std::string ipc;    // why another process cannot open it by CUDA IPC; empty: it can
};

struct DoctorFacts {
  std::string version, build;
  std::string processor, isa, isa_error;
  int64_t cores = 1, machine_cores = 1;  // this process's, the machine's
  std::optional<int64_t> free_memory;
  int64_t machine_memory = 0;
  std::optional<int64_t> shared_memory;  // free in /dev/shm; empty: there is none
  std::string mpi;                       // the library's own words
  std::string mpirun, mpirun_version;    // where it is, empty: nowhere; its first line
  std::string models;                    // folder
  int64_t model_count = -1;              // files and folders in it; -1: it is not there
  std::string driver;                    // of the kernel, "580.65.06"; empty: none is loaded
  CudaInstallation cuda;
  std::vector<std::string> unusable;  // by GPU: why it cannot be computed on; empty: it can
  // By GPU: bytes that a process takes by computing there at all; 0: not known.
  std::vector<int64_t> context_bytes;
  std::vector<GpuLink> links;  // among the GPUs, or of the only one to itself
  std::string nccl;            // version; empty: built without
};

struct Finding {
  std::string name, value;
  std::string remedy;  // empty: all is well
};

// What toroid does here, a rank to a GPU.
struct DoctorChoice {
  std::string device;        // "cuda" or "cpu"
  std::string attention;     // kernels
  std::string communicator;  // of several ranks
  std::string link;          // between neighbours of the ring
};

struct DoctorReport {
  std::vector<Finding> findings;
  DoctorChoice choice;
  std::string missing;  // what was asked for and cannot be had, with the remedy; empty: nothing
};

DoctorReport Diagnose(const DoctorFacts& facts, Device asked);

// Lines for people; the one object of `-o json`.
std::string DoctorText(const DoctorReport& report, bool colour);
std::string DoctorJson(const DoctorFacts& facts, const DoctorReport& report);

}  // namespace toroid
