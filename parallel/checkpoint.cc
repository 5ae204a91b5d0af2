#include "parallel/checkpoint.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <random>

#include "absl/strings/str_cat.h"
#include "core/io/checkpoint_directory.h"
#include "core/io/model_origin.h"
#include "core/status_macros.h"
#include "parallel/host_exchange.h"

namespace toroid {
namespace {

using Kind = ParamStore::Kind;

// In the order of CheckpointManifest::Kind.
constexpr Kind kSaved[CheckpointManifest::kKinds] = {Kind::kWeights, Kind::kFirstMoments,
                                                     Kind::kSecondMoments};

// Elements of a piece that this tensor rank counts; count 0: none.
ParamPiece Counted(const ParamGroup& group, ParamPiece piece) {
  const int64_t begin = std::max(piece.begin, group.members[piece.member].counted_from);
  piece.count = std::max<int64_t>(0, piece.begin + piece.count - begin);
  piece.offset += begin - piece.begin;
  piece.begin = begin;
  return piece;
}

std::vector<CheckpointParameter> ParametersOf(const ParamGroups& groups) {
  std::vector<CheckpointParameter> parameters;
  for (int64_t g = 0; g < groups.count(); ++g) {
    for (const GroupMember& member : groups.group(g).members) {
      parameters.push_back({member.spec.name, member.spec.rows, member.spec.cols});
    }
  }
  return parameters;
}

// Of all ranks; their lengths and hashes are not known yet.
std::vector<CheckpointShard> ShardsOf(const ModelConfig& config, const ParamGroups& own,
                                      const MeshShape& mesh) {
  const int64_t shard_size = mesh.data * mesh.ring;
  const int64_t layers = own.count() - (own.head() == own.embedding() ? 1 : 2);
  std::vector<CheckpointShard> shards(mesh.size());
  for (int64_t t = 0; t < mesh.tensor; ++t) {
    const ParamGroups groups(config, ParamLayout(config, t, mesh.tensor), t, shard_size, layers);
    for (int64_t i = 0; i < shard_size; ++i) {
      shards[i * mesh.tensor + t].pieces = CountedPieces(groups, i);
    }
  }
  return shards;
}

uint64_t RandomId() {
  std::random_device source;
  return uint64_t{source()} << 32 | source();
}

}  // namespace

std::vector<CheckpointPiece> CountedPieces(const ParamGroups& groups, int64_t shard_rank) {
  std::vector<CheckpointPiece> pieces;
  int64_t first = 0;  // parameter of the group
  for (int64_t g = 0; g < groups.count(); ++g) {
    const ParamGroup& group = groups.group(g);
    for (const ParamPiece& stored : PiecesOf(group, groups.Stored(g, shard_rank))) {
      const ParamPiece piece = Counted(group, stored);
      if (piece.count == 0) continue;
      pieces.push_back(
          {first + piece.member, group.members[piece.member].slice, piece.begin, piece.count});
    }
    first += int64_t(group.members.size());
  }
  return pieces;
}

int64_t CheckpointCopyBytes(const ParamGroups& groups, int64_t shard_rank, DType type,
                            int64_t kinds) {
  int64_t elements = 0;
  for (const CheckpointPiece& piece : CountedPieces(groups, shard_rank)) elements += piece.count;
  return RowBytes(type, elements * kinds);
}

int64_t CheckpointCopyBytes(const ParamStore& store, int64_t kinds) {
  return CheckpointCopyBytes(store.groups(), store.mesh().shard().rank(), store.ops().dtype(),
                             kinds);
}

CheckpointWriter::CheckpointWriter(ParamStore& store, const ModelConfig& config,
                                   const CheckpointOptions& options, FileSystem& files)
    : store_(store), files_(files), options_(options), hosts_(HostsOf(store.mesh().world())) {
  TOROID_CHECK_GE(options.keep, 1);
  const MeshShape& mesh = store.mesh().shape();
  manifest_.model = config;
  manifest_.data = mesh.data;
  manifest_.ring = mesh.ring;
  manifest_.tensor = mesh.tensor;
  manifest_.epoch = options.epoch;
  manifest_.dtype = store.ops().dtype();
  if (!options.origin.empty()) {
    manifest_.origin = {int64_t(options.origin.size()), HashOfText(options.origin)};
  }
  manifest_.also = options.also;
  bytes_ = CheckpointCopyBytes(store, manifest_.kinds());
  if (store.mesh().rank() != 0) return;
  manifest_.parameters = ParametersOf(store.groups());
  manifest_.shards = ShardsOf(config, store.groups(), mesh);
}

absl::StatusOr<std::unique_ptr<CheckpointWriter>> CheckpointWriter::Create(
    ParamStore& store, const ModelConfig& config, const CheckpointOptions& options,
    FileSystem& files) {
  std::unique_ptr<CheckpointWriter> writer(new CheckpointWriter(store, config, options, files));
  writer->copy_.reset(new (std::nothrow) char[size_t(writer->bytes_)]);
  const absl::Status status =
      writer->copy_ != nullptr
          ? absl::OkStatus()
          : absl::ResourceExhaustedError(absl::StrCat("no memory for the copy of weights and "
                                                      "moments that a checkpoint is written from: ",
                                                      writer->bytes_, " bytes"));
  TOROID_RETURN_IF_ERROR(ShareStatus(store.mesh().world(), status));
  // Epochs count the launches of one job: what another one left may have a higher one.
  if (store.mesh().rank() == 0) {
    writer->latest_epoch_ = std::max(options.epoch, writer->LatestEpoch().value_or(0));
  }
  return writer;
}

CheckpointWriter::~CheckpointWriter() {
  if (thread_.joinable()) thread_.join();
}

// --- on the rank's thread -----------------------------------------------------------------------

// In the order of CountedPieces, one kind behind the other.
void CheckpointWriter::CopyStore(const std::vector<HostKind>& also) {
  char* out = copy_.get();
  for (const Kind kind : kSaved) {
    for (int64_t g = 0; g < store_.groups().count(); ++g) {
      for (const ParamPiece& stored : store_.pieces(g)) {
        const ParamPiece piece = Counted(store_.groups().group(g), stored);
        if (piece.count == 0) continue;
        const Tensor values = store_.Stored(kind, g, piece);
        store_.ops().Download(store_.stream(), values, out);
        out += values.bytes();
      }
    }
  }
  const int64_t width = RowBytes(store_.ops().dtype(), 1);
  for (const HostKind& kind : also) {
    for (int64_t g = 0; g < store_.groups().count(); ++g) {
      const char* group =
          static_cast<const char*>(kind.values) + store_.groups().StoredBegin(g) * width;
      for (const ParamPiece& stored : store_.pieces(g)) {
        const ParamPiece piece = Counted(store_.groups().group(g), stored);
        std::memcpy(out, group + piece.offset * width, size_t(piece.count * width));
        out += piece.count * width;
      }
    }
  }
  TOROID_CHECK(out == copy_.get() + bytes_);
}

template <typename Work>
void CheckpointWriter::Start(Stage stage, Work work) {
  stage_ = stage;
  done_.store(false);
  local_ = absl::OkStatus();
  thread_ = std::thread([this, work] {
    work();
    done_.store(true);
  });
}

absl::Status CheckpointWriter::Save(const TrainingState& state, const std::vector<HostKind>& also) {
  TOROID_CHECK(!in_flight());
  TOROID_CHECK_EQ(also.size(), options_.also.size());
  Communicator& world = store_.mesh().world();
  begun_ = std::chrono::steady_clock::now();
  manifest_.state = state;
  manifest_.save_id = GatherHost(world, RandomId())[0];
  outcome_ = CheckpointOutcome();
  outcome_.step = state.step;
  outcome_.path = Path(CheckpointName(state.step, state.branch));
  partial_ = Path(PartialName(state.step, state.branch, options_.epoch, manifest_.save_id));
  absl::Status begun;
  if (world.rank() == 0) {
    begun = CreateDirectories(files_, options_.directory);
    // What a stopped writer left may be what fills the disk. If it stays, the next call will say.
    RemovePartial(files_, options_.directory, options_.epoch, "").IgnoreError();
    if (begun.ok()) begun = files_.CreateDirectory(partial_);
  }
  TOROID_RETURN_IF_ERROR(ShareStatus(world, begun));
  CopyStore(also);
  Start(Stage::kShards, [this] { WriteOwnShard(); });
  return absl::OkStatus();
}

std::optional<CheckpointOutcome> CheckpointWriter::Poll() {
  if (!in_flight()) return std::nullopt;
  Communicator& world = store_.mesh().world();
  Card own;
  own.done = done_.load();
  if (own.done != 0) {
    own.seal = seal_;
    own.hash = outcome_.hash;
  }
  const std::vector<Card> cards = GatherHost(world, own);
  if (!world.Health().ok()) return End(world.Health());
  for (const Card& card : cards) {
    if (card.done == 0) return std::nullopt;
  }
  if (thread_.joinable()) thread_.join();
  const bool first = world.rank() == 0;
  switch (stage_) {
    case Stage::kIdle:
      break;
    case Stage::kShards:
      outcome_.status = ShareStatus(world, local_);
      if (!world.Health().ok()) return End(world.Health());
      if (outcome_.status.ok()) {
        Start(Stage::kCommit, [this, first, cards] {
          if (first) Commit(cards);
        });
      } else {
        Start(Stage::kCleanUp, [this, first] {
          if (first) outcome_.removal = RemoveTree(files_, partial_);
        });
      }
      return std::nullopt;
    case Stage::kCommit:
      outcome_.status = ShareStatus(world, local_);
      outcome_.hash = cards[0].hash;
      break;
    case Stage::kCleanUp:
      break;
  }
  outcome_.removal = ShareStatus(world, outcome_.removal);
  return End(outcome_.status);
}

std::optional<CheckpointOutcome> CheckpointWriter::End(const absl::Status& status) {
  if (thread_.joinable()) thread_.join();
  stage_ = Stage::kIdle;
  outcome_.status = status;
  outcome_.seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begun_).count();
  return outcome_;
}

std::optional<CheckpointOutcome> CheckpointWriter::Wait() {
  while (in_flight()) {
    if (thread_.joinable()) thread_.join();
    if (std::optional<CheckpointOutcome> outcome = Poll()) return outcome;
  }
  return std::nullopt;
}

// --- on the writer's thread ---------------------------------------------------------------------

void CheckpointWriter::WriteOwnShard() {
  const int64_t rank = store_.mesh().rank(), ranks = store_.mesh().shape().size();
  const ShardHeader header = {manifest_.save_id, manifest_.state.step, rank, ranks};
  const absl::StatusOr<ShardSeal> seal =
      WriteShard(files_, absl::StrCat(partial_, "/", ShardName(rank, ranks)), header,
                 {reinterpret_cast<const uint8_t*>(copy_.get()), size_t(bytes_)});
  local_ = seal.status();
  if (seal.ok()) {
    seal_ = *seal;
    local_ = files_.SyncDirectory(partial_);
  }
  if (local_.ok()) return;
  const absl::string_view why = absl::IsNotFound(local_)
                                    ? ": rank 0 made this directory but it is not seen here: "
                                      "checkpoints must be on storage that all hosts share"
                                    : "";
  local_ = absl::Status(local_.code(), absl::StrCat("rank ", rank, " on host ", hosts_.names[rank],
                                                    ": ", local_.message(), why));
}

void CheckpointWriter::Commit(const std::vector<Card>& cards) {
  local_ = CheckVisible(cards);
  if (local_.ok()) local_ = WriteManifest(cards);
  if (local_.ok()) local_ = Publish();
  if (local_.ok()) {
    outcome_.removal = RemoveSuperfluous();
  } else {
    outcome_.removal = RemoveTree(files_, partial_);
  }
}

// Every rank's shard lies in the directory that rank 0 sees.
absl::Status CheckpointWriter::CheckVisible(const std::vector<Card>& cards) {
  const int64_t ranks = int64_t(cards.size());
  for (int64_t rank = 0; rank < ranks; ++rank) {
    const std::string path = absl::StrCat(partial_, "/", ShardName(rank, ranks));
    const absl::StatusOr<std::unique_ptr<ReadableFile>> file = files_.Open(path);
    if (file.ok() && (*file)->size() == cards[rank].seal.bytes) continue;
    if (!file.ok() && !absl::IsNotFound(file.status())) return file.status();
    return absl::FailedPreconditionError(
        absl::StrCat(path, ": rank ", rank, " on host ", hosts_.names[rank], " has written ",
                     cards[rank].seal.bytes, " bytes, rank 0 on host ", hosts_.names[0], " sees ",
                     file.ok() ? absl::StrCat((*file)->size()) : "no such file",
                     ": checkpoints must be on storage that all hosts share"));
  }
  return absl::OkStatus();
}

absl::Status CheckpointWriter::WriteManifest(const std::vector<Card>& cards) {
  for (size_t rank = 0; rank < cards.size(); ++rank) {
    manifest_.shards[rank].bytes = cards[rank].seal.bytes;
    manifest_.shards[rank].hash = cards[rank].seal.hash;
  }
  if (!options_.origin.empty()) {
    TOROID_RETURN_IF_ERROR(
        WriteWhole(files_, absl::StrCat(partial_, "/", kOriginName), options_.origin));
  }
  const std::string text = manifest_.ToText();
  outcome_.hash = ManifestHash(text);
  TOROID_RETURN_IF_ERROR(WriteWhole(files_, absl::StrCat(partial_, "/", kManifestName), text));
  return files_.SyncDirectory(partial_);
}

// The highest that anything in the directory tells. A manifest that cannot be read tells none.
absl::StatusOr<int64_t> CheckpointWriter::LatestEpoch() {
  TOROID_ASSIGN_OR_RETURN(const std::vector<CheckpointEntry> entries,
                          ListCheckpoints(files_, options_.directory));
  int64_t latest = 0;
  for (const CheckpointEntry& entry : entries) {
    latest = std::max(latest, entry.epoch);
    if (entry.kind != CheckpointEntry::Kind::kWhole) continue;
    const std::string path = absl::StrCat(Path(entry.name), "/", kManifestName);
    const absl::StatusOr<std::string> text = ReadWhole(files_, path, kManifestBytes);
    if (absl::IsNotFound(text.status()) || absl::IsDataLoss(text.status())) continue;
    TOROID_RETURN_IF_ERROR(text.status());
    const auto manifest = CheckpointManifest::Parse(*text, path);
    if (manifest.ok()) latest = std::max(latest, manifest->epoch);
  }
  return latest;
}

// Gives the checkpoint its name. One of the same step and branch keeps being loadable under another
// until then.
absl::Status CheckpointWriter::Publish() {
  const TrainingState& state = manifest_.state;
  TOROID_ASSIGN_OR_RETURN(const int64_t latest, LatestEpoch());
  if (latest > latest_epoch_) {
    return absl::FailedPreconditionError(absl::StrCat(
        options_.directory, ": a later launch, of epoch ", latest,
        ", writes checkpoints here: this one, of epoch ", options_.epoch, ", must end"));
  }
  const std::string replaced =
      Path(ReplacedName(state.step, state.branch, options_.epoch, manifest_.save_id));
  const absl::Status moved = files_.Rename(outcome_.path, replaced);
  if (!moved.ok() && !absl::IsNotFound(moved)) return moved;
  const absl::Status named = files_.Rename(partial_, outcome_.path);
  if (!named.ok()) {
    if (moved.ok()) files_.Rename(replaced, outcome_.path).IgnoreError();
    return named;
  }
  return files_.SyncDirectory(options_.directory);
}

absl::Status CheckpointWriter::RemoveSuperfluous() {
  CheckpointEntry committed;
  TOROID_CHECK(
      ParseCheckpointName(CheckpointName(manifest_.state.step, manifest_.state.branch), committed));
  TOROID_ASSIGN_OR_RETURN(const std::vector<CheckpointEntry> entries,
                          ListCheckpoints(files_, options_.directory));
  absl::Status first;
  for (const CheckpointEntry& entry :
       Superfluous(entries, committed, options_.keep, options_.epoch)) {
    first.Update(
        RemoveCheckpoint(files_, options_.directory, entry, options_.epoch, manifest_.save_id));
  }
  return first;
}

}  // namespace toroid
