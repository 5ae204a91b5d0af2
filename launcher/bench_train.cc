// A step of training through the Trainer: forward, backward and one AdamW update, in float32 unless
// told otherwise. The batch is the same random text in every step, so the loss must fall.
//
// With several ranks the same batch is trained in pairs (bench_pairs.h): by one rank that has the
// threads of all, and by all.
#include <algorithm>
#include <cmath>
#include <optional>

#include "absl/strings/str_cat.h"
#include "core/io/model_source.h"
#include "core/status_macros.h"
#include "launcher/bench.h"
#include "launcher/bench_model.h"
#include "launcher/bench_pairs.h"
#include "parallel/host_exchange.h"
#include "parallel/trainer.h"

namespace toroid {
namespace {

const char* NameOf(Remat remat) {
  return remat == Remat::kNone ? "none" : remat == Remat::kBlock ? "block" : "attention_output";
}

// Three times the forward's, all positions' logits among them.
double StepFlops(const ModelConfig& config, int64_t tokens) {
  const double head = 2.0 * double(config.vocab) * double(config.dim);
  return 3 * (PrefillFlops(config, tokens) + head * double(tokens - 1));
}

// `packs` texts of `tokens` tokens, each a document.
TrainBatch RandomBatch(int64_t packs, int64_t tokens, int64_t vocab) {
  TrainBatch batch;
  batch.documents.assign(size_t(packs), {tokens});
  batch.read = [tokens, ids = RandomIds(packs * tokens, vocab)](int64_t pack) {
    Pack text;
    text.ids.assign(ids.begin() + pack * tokens, ids.begin() + (pack + 1) * tokens);
    text.labels.assign(text.ids.begin() + 1, text.ids.end());
    text.labels.push_back(-1);
    text.document_lengths = {tokens};
    return absl::StatusOr<Pack>(std::move(text));
  };
  return batch;
}

absl::StatusOr<std::shared_ptr<const ModelSource>> OpenForTraining(const LoadRequest& load,
                                                                   int64_t longest) {
  TOROID_ASSIGN_OR_RETURN(ModelSource source, OpenModel(load.model, load.seed));
  const bool learned = source.config.positions == PositionKind::kLearned;
  if (learned && source.random_seed) {
    source.config.context = std::max(source.config.context, longest);
  } else if (learned && source.config.context < longest) {
    return absl::InvalidArgumentError(absl::StrCat("too long: ", longest, " tokens: ", load.model,
                                                   " has ", source.config.context,
                                                   " learned positions: give fewer --tokens"));
  }
  return std::make_shared<const ModelSource>(std::move(source));
}

// Trains one batch over and over.
class Training {
 public:
  static absl::StatusOr<std::unique_ptr<Training>> Create(std::unique_ptr<Communicator> world,
                                                          std::shared_ptr<const ModelSource> source,
                                                          const LoadRequest& load, Remat remat,
                                                          int64_t packs_per_rank) {
    TrainOptions options;
    options.mesh = load.mesh;
    options.layout = load.layout;
    options.compute = load.compute;
    options.threads = load.threads;
    options.remat = remat;
    options.packs_per_rank = packs_per_rank;
    options.optimizer.rate.peak = 1e-4;
    std::unique_ptr<Training> training(new Training());
    TOROID_ASSIGN_OR_RETURN(training->trainer_,
                            Trainer::Create(std::move(world), std::move(source), options, nullptr));
    return training;
  }

  Trainer& trainer() { return *trainer_; }

  // Begins with another batch. initial: the weights are those that training begins with, so the
  // first loss is near the entropy of the vocabulary.
  void Begin(const std::string& name, const TrainBatch& batch, bool initial) {
    name_ = name, batch_ = &batch, initial_ = initial;
    first_loss_.reset();
  }

  // Seconds of one step. Each step's loss must be below that of the batch's first.
  absl::StatusOr<double> Step() {
    const double begin = BenchSeconds();
    TOROID_ASSIGN_OR_RETURN(const StepResult result, trainer_->Step(step_++, *batch_));
    const double seconds = BenchSeconds() - begin;
    if (!result.skipped.empty()) {
      return absl::InternalError(absl::StrCat("wrong result: ", name_, ": the gradient of ",
                                              result.skipped, " is not finite: not timed"));
    }
    if (!first_loss_) {
      first_loss_ = result.loss;
      const double entropy = std::log(double(trainer_->config().vocab));
      if (initial_) TOROID_RETURN_IF_ERROR(ExpectClose(name_, result.loss, entropy, 0.1));
    } else if (!(result.loss < *first_loss_)) {
      return absl::InternalError(absl::StrCat("wrong result: ", name_, ": the loss went from ",
                                              *first_loss_, " to ", result.loss, ": not timed"));
    }
    return seconds;
  }
  // REQUIRES: a step since Begin.
  double first_loss() const { return *first_loss_; }

 private:
  Training() = default;
  std::unique_ptr<Trainer> trainer_;
  int64_t step_ = 0;
  std::string name_;
  const TrainBatch* batch_ = nullptr;
  bool initial_ = false;
  std::optional<double> first_loss_;
};

}  // namespace

absl::Status BenchTrain(BenchRun& run, std::unique_ptr<Communicator> own_world,
                        const LoadRequest& load, const std::vector<int64_t>& lengths, Remat remat) {
  const int ranks = own_world->size(), rank = own_world->rank();
  run.Begin(absl::StrCat("load ", load.model));
  const int64_t longest = *std::max_element(lengths.begin(), lengths.end());
  TOROID_ASSIGN_OR_RETURN(const auto source, OpenForTraining(load, longest));
  TOROID_ASSIGN_OR_RETURN(const std::unique_ptr<Training> all,
                          Training::Create(std::move(own_world), source, load, remat, 1));
  Communicator& world = all->trainer().mesh().world();
  const int64_t packs = load.mesh.data;
  std::unique_ptr<Training> one;
  absl::Status created;
  if (rank == 0 && ranks > 1) {
    LoadRequest alone = load;
    alone.mesh = MeshShape{};
    alone.threads = load.threads * ranks;
    auto training =
        Training::Create(std::make_unique<SelfCommunicator>(), source, alone, remat, packs);
    created = training.status();
    if (training.ok()) one = *std::move(training);
  }
  TOROID_RETURN_IF_ERROR(ShareStatus(world, created));
  const Stream comm_s = all->trainer().backend().NewStream(/*communication=*/true);

  bool initial = source->initial;  // until the first length has been trained
  for (const int64_t tokens : lengths) {
    const std::string name = absl::StrCat("train ", tokens, " remat=", NameOf(remat));
    const std::string meshed = ranks > 1 ? absl::StrCat(name, " ", ToString(load.mesh)) : name;
    const TrainBatch batch = RandomBatch(packs, tokens, source->config.vocab);
    if (one) one->Begin(name, batch, initial);
    all->Begin(meshed, batch, initial);
    initial = false;
    BenchPairs pairs;
    TOROID_RETURN_IF_ERROR(RunPairs(
        run, meshed, world, comm_s,
        [&]() -> absl::StatusOr<double> { return one ? one->Step() : 0.0; },
        [&] { return all->Step(); }, pairs));
    absl::Status same;
    if (one) same = ExpectClose(meshed, all->first_loss(), one->first_loss(), 1e-5);
    TOROID_RETURN_IF_ERROR(ShareStatus(world, same));
    double peak = run.fma_peak();
    world.AllReduce(all->trainer().stream(), Partial(Tensor(DType::kF64, {1}, &peak)));
    if (rank != 0) continue;
    const double batch_tokens = double(packs * tokens);
    double bound = peak * 1e9 * double(tokens) / StepFlops(source->config, tokens);
    if (one) {
      run.Add(TokensRow(absl::StrCat(name, ", one rank, ", load.threads * ranks, " threads"),
                        batch_tokens, Median(pairs.one), bound));
      bound = run.rows().back().rate;
    }
    run.Add(TokensRow(absl::StrCat(meshed, one ? " (bound: one rank)" : ""), batch_tokens,
                      Median(pairs.all), bound));
  }
  return absl::OkStatus();
}

}  // namespace toroid
