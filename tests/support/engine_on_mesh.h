// Engines on a mesh of threads: OnEngines(case, [](Engine& engine) { ... }) runs the body on every
// rank; ScoreOn, GenerateOn and LogitsOn hand back what rank 0 got.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "parallel/engine.h"

namespace toroid {

inline const LayoutRule kContiguous{LayoutRule::Kind::kContiguous, 1};
inline const LayoutRule kZigzag{LayoutRule::Kind::kZigzag, 1};
inline const LayoutRule kStriped1{LayoutRule::Kind::kStriped, 1};
inline const LayoutRule kPages{LayoutRule::Kind::kStriped, 16};

// How a model is loaded. random: weights are drawn from seed 7.
struct EngineCase {
  std::string model = "random:tiny-gqa";
  MeshShape mesh;
  LayoutRule layout = kPages;
  Compute compute = Compute::kF64;
  int64_t page_tokens = 16;
  uint64_t shuffle = 0;  // of the cache's pages
  int64_t context = 0;   // 0: the model's own
  int64_t layers = 0;    // the first so many, 0: all
  int threads = 1;       // per rank
  Device device = Device::kCpu;
  bool share_gpus = false;
};

// "ring=2,tensor=2 zigzag", for SCOPED_TRACE.
std::string ToString(const EngineCase& c);

// `count` token ids below vocab, the same in every run.
std::vector<int32_t> MixedIds(int64_t count, int64_t vocab);

// Opened once in a process, then shared.
std::shared_ptr<const ModelSource> TestSource(const std::string& model);

// Wraps each rank's world before the engine gets it (faults); null: as it is.
using WrapWorld = std::function<std::unique_ptr<Communicator>(std::unique_ptr<Communicator>)>;

// Runs `use` with an engine on every rank of the mesh.
void OnEngines(const EngineCase& c, const std::function<void(Engine&)>& use,
               std::chrono::milliseconds deadline = std::chrono::seconds(120),
               const WrapWorld& wrap = nullptr);

ScoreResult ScoreOn(const EngineCase& c, const ScoreRequest& request,
                    std::chrono::milliseconds deadline = std::chrono::seconds(120));
GenerateResult GenerateOn(const EngineCase& c, const GenerateRequest& request,
                          std::chrono::milliseconds deadline = std::chrono::seconds(120));
// Logits of every position, row-major [ids, V].
std::vector<double> LogitsOn(const EngineCase& c, const std::vector<int32_t>& ids);

// Log p of every token, mean loss, and the last position's largest logits and log Z agree.
void ExpectClose(const ScoreResult& a, const ScoreResult& b, double tolerance);

}  // namespace toroid
