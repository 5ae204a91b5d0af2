#include "parallel/pod_exchange.h"

#include <algorithm>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "core/status_macros.h"
#include "parallel/contributions_about.h"
#include "parallel/exchange_rows.h"
#include "parallel/param_hash.h"

namespace toroid {

absl::StatusOr<std::unique_ptr<PodExchange>> PodExchange::Create(PodLink& link,
                                                                 const Options& options,
                                                                 const ModelConfig& config,
                                                                 int64_t layers,
                                                                 ParamStore& store) {
  TOROID_ASSIGN_OR_RETURN(
      std::unique_ptr<PodSwap> swap,
      PodSwap::Create(link, options.pods, config, layers, store, options.swap, options.watch));
  std::unique_ptr<PodExchange> exchange(new PodExchange(std::move(swap), config, layers));
  PodSwap& made = *exchange->swap_;
  if (made.spec().gradients()) {
    exchange->gradients_ = std::make_unique<GradientExchange>(made);
  } else {
    exchange->outer_ = std::make_unique<OuterExchange>(made);
  }
  return exchange;
}

void PodExchange::Begin(int64_t step, int64_t labels) {
  step_ = step;
  labels_ = labels;
  if (gradients_ != nullptr) {
    gradients_->Begin(step, labels);
  } else {
    outer_->Begin(step);
  }
}

absl::StatusOr<PodExchange::Applied> PodExchange::Finish(double loss) {
  if (outer_ != nullptr) {
    outer_->FinishReading();
    return Applied{loss, labels_, labels_ > 0};
  }
  TOROID_ASSIGN_OR_RETURN(const PodTotals totals, gradients_->Finish(loss, word_));
  heard_ = totals.word;
  if (swap_->spec().mode == ExchangeSpec::Mode::kExact) {
    return Applied{totals.loss, totals.labels, totals.labels > 0};
  }
  return Applied{loss, labels_, totals.labels > 0};
}

absl::Status PodExchange::After(int64_t steps) {
  if (outer_ == nullptr) return absl::OkStatus();
  TOROID_RETURN_IF_ERROR(outer_->After(steps, labels_, word_));
  heard_ = outer_->heard();
  return absl::OkStatus();
}

std::vector<double> PodExchange::SquaredSums(ParamStore::Kind kind) {
  // Of one mesh all have the same sums.
  if (outer_ != nullptr || (swap_->goes_on() && !swap_->meshes_differ())) {
    return swap_->store().SquaredSums(kind);
  }
  const bool gradients = kind == ParamStore::Kind::kGradients;
  std::vector<double> sums = swap_->store().SquaredSums(kind);
  const absl::StatusOr<int64_t> giver =
      swap_->TakeOfOnePod(gradients ? PodSwap::kGradientSquares : PodSwap::kWeightSquares, step_,
                          sums, absl::StrCat("the norm of step ", step_));
  failed_.Update(giver.status());
  if (giver.ok() && swap_->meshes_differ() && swap_->history() != nullptr) {
    swap_->history()->Squares(step_ + 1, !gradients, *giver, sums);
  }
  return sums;
}

absl::StatusOr<std::vector<std::vector<double>>> PodExchange::Swap(const std::vector<double>& own,
                                                                   absl::string_view what) {
  return swap_->SwapCards(PodSwap::kResume, swaps_++, own, what);
}

// --- pods that come ------------------------------------------------------------------------------

// What a pod cannot make for itself. Errors of the codec are those of its own values; its own outer
// weights are where it begins.
CopiedState PodExchange::Copied() {
  using Kind = ParamStore::Kind;
  CopiedState state;
  if (gradients_ != nullptr) state.kinds.push_back(Kind::kWeights);
  state.kinds.push_back(Kind::kFirstMoments);
  state.kinds.push_back(Kind::kSecondMoments);
  if (gradients_ != nullptr) {
    state.host = {gradients_->pending()};
  } else {
    state.host = {outer_->outer_weights(), outer_->momentum()};
  }
  std::erase(state.host, nullptr);
  return state;
}

absl::Status PodExchange::TakeIn(int64_t steps, const std::function<std::string()>& text) {
  TOROID_RETURN_IF_ERROR(State().status());
  TOROID_ASSIGN_OR_RETURN(const std::vector<int64_t> taken, swap_->TakeIn(steps));
  if (taken.empty()) return absl::OkStatus();
  const CopiedState state = Copied();
  const uint64_t hash = StateHash(swap_->store(), state);
  for (const int64_t pod : taken) {
    GiveState(*swap_, pod, steps, state, absl::StrCat(hash, " ", text()));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> PodExchange::TakeState() {
  const CopiedState state = Copied();
  TOROID_ASSIGN_OR_RETURN(const std::string text, toroid::TakeState(*swap_, state));
  const size_t space = text.find(' ');
  uint64_t given = 0;
  if (space == std::string::npos || !absl::SimpleAtoi(text.substr(0, space), &given)) {
    return absl::DataLossError(absl::StrCat("what pod ", giver(), " gave cannot be read"));
  }
  const uint64_t hash = StateHash(swap_->store(), state);
  if (hash == given) return text.substr(space + 1);
  return absl::DataLossError(absl::StrFormat(
      "the state that pod %d gave has the hash %016x there and %016x here", giver(), given, hash));
}

absl::Status PodExchange::RestoreJoined(const std::vector<double>& numbers) {
  TOROID_RETURN_IF_ERROR(Restore(numbers));
  if (outer_ != nullptr) outer_->Joined();
  return absl::OkStatus();
}

// --- for checkpoints -----------------------------------------------------------------------------

std::vector<std::string> PodExchange::StateNames(const ExchangeSpec& spec) {
  std::vector<std::string> names;
  if (spec.error_feedback) names.push_back("exchange error");
  if (spec.mode == ExchangeSpec::Mode::kDelayed) names.push_back("gradient on its way");
  if (spec.gradients()) return names;
  names.push_back("outer weights");
  names.push_back("outer momentum");
  return names;
}

absl::StatusOr<std::vector<HostKind>> PodExchange::State() {
  if (gradients_ != nullptr) {
    TOROID_RETURN_IF_ERROR(gradients_->Settle().status());
  } else {
    TOROID_RETURN_IF_ERROR(outer_->Settle());
  }
  return RoomForState();
}

std::vector<HostKind> PodExchange::RoomForState() {
  if (gradients_ != nullptr) return Named({gradients_->residual(), gradients_->pending()});
  return Named({outer_->residual(), outer_->outer_weights(), outer_->momentum()});
}

// The names to what there is of them, in order.
std::vector<HostKind> PodExchange::Named(const std::vector<void*>& values) const {
  std::vector<HostKind> kinds;
  const std::vector<std::string> names = StateNames(swap_->spec());
  for (void* const at : values) {
    if (at == nullptr) continue;
    TOROID_CHECK(kinds.size() < names.size());
    kinds.push_back({names[kinds.size()], at});
  }
  TOROID_CHECK_EQ(kinds.size(), names.size());
  return kinds;
}

std::vector<double> PodExchange::numbers() const {
  return gradients_ != nullptr ? gradients_->numbers() : outer_->numbers();
}

absl::Status PodExchange::Restore(const std::vector<double>& numbers) {
  return gradients_ != nullptr ? gradients_->Restore(numbers) : outer_->Restore(numbers);
}

absl::Status PodExchange::BeginHere() {
  if (outer_ != nullptr) outer_->BeginHere();
  return absl::OkStatus();
}

uint64_t PodExchange::CommonHash() {
  return ParamHash(swap_->store(), outer_ != nullptr ? outer_->outer_weights() : nullptr);
}

namespace {

// Whether the launch that went on from this step before was one that joined: its log begins there.
bool HasJoined(FileSystem& files, const std::string& directory, int64_t steps) {
  const std::string path =
      absl::StrCat(directory, "/", kContributions, "/", LaunchFolder(steps), "/", kAbout);
  const auto text = ReadWhole(files, path, kMostAbout);
  if (!text.ok()) return false;
  const auto about = ParseContributionsAbout(*text, path);
  return about.ok() && about->joined;
}

}  // namespace

void PodExchange::Record(FileSystem& files, const RecordOptions& asked) {
  MergeHistory::Options options;
  options.directory = asked.directory;
  options.pod = pod();
  options.step = asked.steps;
  options.keep = asked.keep;
  options.alarm = asked.alarm;
  options.joined = swap_->joined();
  if (asked.keep) {
    options.about = About(files, asked);
    options.begin = [this](ContributionWriter& writer) { return WriteBegin(writer); };
  }
  swap_->Record(MergeHistory::Open(swap_->store().mesh().world(), files, options));
}

std::string PodExchange::About(FileSystem& files, const RecordOptions& asked) {
  ContributionsAbout about;
  about.model = config_;
  about.layers = layers_;
  about.dtype = swap_->store().ops().dtype();
  about.pod = pod();
  about.meshes = swap_->meshes();
  about.exchange = swap_->spec();
  about.joined = swap_->joined() || HasJoined(files, asked.directory, asked.steps);
  if (gradients_ != nullptr) {
    about.update = ContributionsUpdate{asked.optimizer, asked.max_norm, asked.updates,
                                       gradients_->settled_labels() > 0,
                                       swap_->store().stream().cpu == nullptr};
  }
  return ToText(about);
}

// A group at a time: there is no room for a second copy of all.
absl::Status PodExchange::WriteBegin(ContributionWriter& writer) {
  using Kind = ParamStore::Kind;
  ParamStore& store = swap_->store();
  const auto bytes = [&store](int64_t size) { return size_t(RowBytes(store.ops().dtype(), size)); };
  if (outer_ != nullptr) {
    Contribution all;
    for (const void* values : {outer_->outer_weights(), outer_->momentum()}) {
      all.blobs.emplace_back(static_cast<const char*>(values), bytes(store.groups().stored_size()));
    }
    return writer.Add(all);
  }
  for (int64_t g = 0; g < store.groups().count(); ++g) {
    Contribution group;
    group.group = g;
    for (const Kind kind : {Kind::kWeights, Kind::kFirstMoments, Kind::kSecondMoments}) {
      const Tensor stored = store.Stored(kind, g);
      group.blobs.emplace_back(size_t(stored.bytes()), '\0');
      store.ops().Download(store.stream(), stored, group.blobs.back().data());
    }
    if (gradients_->pending() != nullptr) {
      const char* const pending = static_cast<const char*>(gradients_->pending());
      group.blobs.emplace_back(pending + bytes(store.groups().StoredBegin(g)),
                               group.blobs[0].size());
    }
    TOROID_RETURN_IF_ERROR(writer.Add(group));
  }
  return absl::OkStatus();
}

// By the sizes of codes and messages. As memory they take up to 2 MiB more each from 2 MiB on,
// whole large pages (shared_bytes.cc), and the own share of a layer whose keys and values have
// biases of heads that no 64 divides has a scale for each unit (CodedRange), of which 64 elements
// may have several: as 2 bytes are to 64 codes, little.
ExchangeBytes PodExchange::HostBytes(const ParamStore& store, const ExchangeSpec& spec,
                                     int64_t pods, bool go_on, bool on_host) {
  const int64_t width = RowBytes(store.ops().dtype(), 1), size = store.groups().stored_size();
  const auto coded = [&spec](int64_t elements) {
    const int64_t blocks = (elements + kCodecBlock - 1) / kCodecBlock;
    return CodeBytes(spec.codec, elements) + (HasScales(spec.codec) ? 2 * blocks : 0);
  };
  int64_t largest = 0;
  std::vector<int64_t> fragments(size_t(spec.fragments), 0);
  for (int64_t g = 0; g < store.groups().count(); ++g) {
    const int64_t n = store.Stored(ParamStore::Kind::kWeights, g).rows();
    largest = std::max(largest, n);
    fragments[size_t(OuterExchange::FragmentOf(store.groups(), spec.fragments, g))] += n;
  }
  ExchangeBytes bytes;
  bytes.state = int64_t(StateNames(spec).size()) * size * width;
  const int64_t delay = spec.mode == ExchangeSpec::Mode::kDelayed;
  if (spec.gradients()) {
    // A host's gradients are read and merged where they lie, but for what the codec left out.
    bytes.buffers = ((!on_host || spec.error_feedback) + !on_host) * largest * width;
    // The embedding's may come in two messages; when they are joined, all else of their turn has
    // been merged.
    const int64_t embedding = store.groups().embedding();
    const GroupMember* table = store.groups().group(embedding).Find(kEmbeddingTable);
    const int64_t share =
        coded(size) + (SplitsByRows(spec.codec) ? RowsBytes(table->slice.row_count) : 0);
    bytes.queues = share * (1 + delay + (3 + 2 * delay) * (pods - 1));
    if (go_on) bytes.given = GivenBytes(store, 3 + delay);
    return bytes;
  }
  bytes.buffers = largest * width;
  bytes.queues =
      coded(*std::max_element(fragments.begin(), fragments.end())) * (1 + 3 * (pods - 1));
  if (go_on) bytes.given = GivenBytes(store, 4);
  return bytes;
}

ExchangeBytes PodExchange::host_bytes() const {
  ExchangeBytes bytes;
  bytes.state = gradients_ != nullptr ? gradients_->state_bytes() : outer_->state_bytes();
  bytes.buffers = gradients_ != nullptr ? gradients_->buffer_bytes() : outer_->buffer_bytes();
  bytes.queues = swap_->mail().queued_bytes_peak();
  bytes.given = swap_->mail().aside_bytes();
  return bytes;
}

}  // namespace toroid
