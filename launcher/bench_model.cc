// Prefill and decode of a whole model through the Engine.
#include "launcher/bench_model.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "core/io/model_source.h"
#include "core/io/weights.h"
#include "core/model/params.h"
#include "core/random.h"
#include "core/status_macros.h"
#include "launcher/bench.h"
#include "parallel/host_exchange.h"

namespace toroid {

std::vector<int32_t> RandomIds(int64_t count, int64_t vocab) {
  std::vector<int32_t> ids(count);
  for (int64_t i = 0; i < count; ++i) {
    ids[i] = int32_t(Philox(1, uint64_t(i), 0)[0] % uint64_t(vocab));
  }
  return ids;
}

double PrefillFlops(const ModelConfig& config, int64_t tokens) {
  double flops = 0;
  for (const ParamSpec& spec : ParamTable(config)) {
    if (spec.layer >= 0 && spec.rows > 1) {
      flops += 2.0 * double(spec.rows) * double(spec.cols) * double(tokens);
    }
  }
  const double width = double(config.query_heads * config.head_dim);
  for (int64_t layer = 0; layer < config.layers; ++layer) {
    const int64_t reach = config.window(layer) > 0 ? config.window(layer) : tokens;
    const int64_t ramp = std::min(reach, tokens);  // these tokens see all before them
    const double pairs =
        double(ramp) * double(ramp + 1) / 2 + double(tokens - ramp) * double(reach);
    flops += 4 * pairs * width;
  }
  return flops + 2.0 * double(config.vocab) * double(config.dim);  // the last position's logits
}

double DecodeBytes(const Engine& engine, int64_t keys, int64_t batch, int64_t kv_bytes) {
  const ModelConfig& config = engine.config();
  double bytes = double(engine.model().weight_bytes());
  const DType compute = kv_bytes == 2 ? DType::kBF16 : DType::kF32;
  for (const ParamSpec& spec : ParamTable(config)) {  // tables of which only one row is read
    const bool words = spec.name == "model.embed_tokens.weight" && !config.tied_embeddings;
    if (!words && spec.name != "model.embed_positions.weight") continue;
    bytes -= double(spec.rows * RowBytes(StoredType(engine.source(), spec, compute), spec.cols));
  }
  for (int64_t layer = 0; layer < config.layers; ++layer) {
    const int64_t window = config.window(layer);
    const int64_t seen = window > 0 ? std::min(window, keys) : keys;
    bytes += 2.0 * double(kv_bytes) * double(batch * seen * config.kv_heads * config.head_dim);
  }
  return bytes;
}

absl::Status VerifyDecode(Engine& engine, int64_t made) {
  GenerateRequest request;
  request.prompt_ids = RandomIds(64, engine.config().vocab);
  request.max_tokens = made;
  request.ignore_eos = true;
  TOROID_ASSIGN_OR_RETURN(const GenerateResult cached, engine.Generate(request, {}));
  std::vector<int32_t> ids = cached.ids;
  // Ranks other than 0 have no tokens: they follow rank 0's, which the world broadcasts.
  ids.resize(made);
  Tensor told(DType::kI32, {made}, ids.data());
  engine.mesh().world().Broadcast(engine.stream(), told, 0);
  request.prompt_ids.insert(request.prompt_ids.end(), ids.begin(), ids.end() - 1);
  request.max_tokens = 1;
  TOROID_ASSIGN_OR_RETURN(const GenerateResult uncached, engine.Generate(request, {}));
  absl::Status status;
  // A margin near a tie tells nothing.
  if (engine.mesh().rank() == 0 && std::min(cached.min_margin, uncached.min_margin) > 1e-3 &&
      uncached.ids.at(0) != ids.back()) {
    status = absl::InternalError(absl::StrCat(
        "wrong result: token ", ids.back(), " by decode, token ", uncached.ids[0], " by prefill"));
  }
  return ShareStatus(engine.mesh().world(), status);
}

absl::Status BenchModel(BenchRun& run, std::unique_ptr<Communicator> world, const LoadRequest& load,
                        const std::vector<int64_t>& lengths, int64_t batch) {
  constexpr int64_t kDecodeTokens = 32;
  const bool speaks = world->rank() == 0;
  const double ranks = world->size();
  run.Begin(absl::StrCat("load ", load.model));
  TOROID_ASSIGN_OR_RETURN(ModelSource source, OpenModel(load.model, load.seed));
  const auto shared = std::make_shared<const ModelSource>(std::move(source));
  TOROID_ASSIGN_OR_RETURN(const std::unique_ptr<Engine> engine,
                          Engine::Create(std::move(world), shared, load, nullptr));
  TOROID_RETURN_IF_ERROR(VerifyDecode(*engine, 4));
  const int64_t kv_bytes = load.compute == Compute::kBF16 ? 2 : 4;
  for (const int64_t tokens : lengths) {
    GenerateRequest request;
    request.prompt_ids = RandomIds(tokens, engine->config().vocab);
    request.max_tokens = kDecodeTokens + 1;  // the first comes from prefill's logits
    request.ignore_eos = true;
    request.n = request.batch = batch;
    std::vector<double> prefill, decode;
    for (int i = 0; i <= run.samples(); ++i) {
      run.Begin(absl::StrCat("prefill ", tokens, " and decode"));
      TOROID_ASSIGN_OR_RETURN(const GenerateResult result, engine->Generate(request, {}));
      if (i == 0) continue;  // a warm-up
      prefill.push_back(result.report.timing.prefill_s);
      if (result.batch < batch) {
        return absl::ResourceExhaustedError(absl::StrCat("no memory for a batch of ", batch,
                                                         ": only ", result.batch,
                                                         ": give a smaller --batch"));
      }
      double seconds = result.report.timing.decode_s;
      for (const GenerateResult& answer : result.more) seconds += answer.report.timing.decode_s;
      decode.push_back(seconds);
    }
    if (!speaks) continue;
    const double seconds = Median(prefill);
    run.Add(TokensRow(
        absl::StrCat("prefill ", tokens), double(tokens), seconds,
        ranks * run.fma_peak() * 1e9 * double(tokens) / PrefillFlops(engine->config(), tokens)));
    // Every weight is read once in a step, and multiplied once for each row.
    const double reads = run.memory_read() * 1e9 * double(batch) /
                         DecodeBytes(*engine, tokens + kDecodeTokens / 2, batch, kv_bytes);
    const double products = ranks * run.fma_peak() * 1e9 / PrefillFlops(engine->config(), 1);
    run.Add(TokensRow(
        absl::StrCat("decode after ", tokens, batch > 1 ? absl::StrCat(", batch ", batch) : ""),
        double(batch * kDecodeTokens), Median(decode), std::min(reads, products)));
  }
  return absl::OkStatus();
}

}  // namespace toroid
