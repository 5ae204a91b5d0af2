#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "core/io/checkpoint_directory.h"
#include "core/io/checkpoint_reader.h"
#include "core/io/model_config_json.h"
#include "core/status_macros.h"
#include "parallel/checkpoint.h"
#include "parallel/host_exchange.h"

namespace toroid {
namespace {

constexpr int64_t kStagingBytes = 4 << 20;

using SavedKind = CheckpointManifest::Kind;
constexpr std::pair<SavedKind, ParamStore::Kind> kKinds[] = {
    {SavedKind::kWeights, ParamStore::Kind::kWeights},
    {SavedKind::kFirstMoments, ParamStore::Kind::kFirstMoments},
    {SavedKind::kSecondMoments, ParamStore::Kind::kSecondMoments}};

absl::Status CheckModel(const CheckpointReader& reader, const ModelConfig& config,
                        const ParamStore& store) {
  const CheckpointManifest& manifest = reader.manifest();
  const auto refuse = [&](const std::string& why) {
    return absl::FailedPreconditionError(
        absl::StrCat(reader.directory(), ": the checkpoint is of another model: ", why));
  };
  if (manifest.dtype != store.ops().dtype()) {
    return absl::FailedPreconditionError(
        absl::StrCat(reader.directory(), ": the checkpoint holds ", Info(manifest.dtype).name,
                     ", this run computes in ", Info(store.ops().dtype()).name, ": use --compute ",
                     Info(manifest.dtype).name));
  }
  const std::string difference = FirstDifference(manifest.model, config);
  if (!difference.empty()) return refuse(difference);
  size_t count = 0;
  for (int64_t g = 0; g < store.groups().count(); ++g) {
    for (const GroupMember& member : store.groups().group(g).members) {
      const ParamSpec& spec = member.spec;
      const int64_t found = reader.FindParameter(spec.name);
      if (found < 0) return refuse(absl::StrCat("it has no ", spec.name));
      const CheckpointParameter& parameter = manifest.parameters[found];
      if (parameter.rows != spec.rows || parameter.cols != spec.cols) {
        return refuse(absl::StrCat(spec.name, " is [", parameter.rows, ", ", parameter.cols,
                                   "], here [", spec.rows, ", ", spec.cols, "]"));
      }
      ++count;
    }
  }
  if (count == manifest.parameters.size()) return absl::OkStatus();
  return refuse(absl::StrCat("it has ", manifest.parameters.size(), " parameters, here ", count));
}

// A kind that the run keeps on the host.
absl::Status FillHost(CheckpointReader& reader, const ParamStore& store, const HostKind& kind) {
  const std::vector<std::string>& also = reader.manifest().also;
  const auto found = std::find(also.begin(), also.end(), kind.name);
  if (found == also.end()) return absl::OkStatus();
  const int saved = CheckpointManifest::kKinds + int(found - also.begin());
  const int64_t width = RowBytes(store.ops().dtype(), 1);
  for (int64_t g = 0; g < store.groups().count(); ++g) {
    char* group = static_cast<char*>(kind.values) + store.groups().StoredBegin(g) * width;
    for (const ParamPiece& piece : store.pieces(g)) {
      const GroupMember& member = store.groups().group(g).members[piece.member];
      TOROID_RETURN_IF_ERROR(reader.Read(saved, reader.FindParameter(member.spec.name),
                                         member.slice, piece.begin, piece.count,
                                         group + piece.offset * width));
    }
  }
  return absl::OkStatus();
}

absl::Status Fill(CheckpointReader& reader, ParamStore& store) {
  std::vector<char> staging;
  for (const auto& [saved, kind] : kKinds) {
    for (int64_t g = 0; g < store.groups().count(); ++g) {
      for (const ParamPiece& piece : store.pieces(g)) {
        const GroupMember& member = store.groups().group(g).members[piece.member];
        const int64_t parameter = reader.FindParameter(member.spec.name);
        const Tensor out = store.Stored(kind, g, piece);
        const int64_t most = kStagingBytes / RowBytes(out.dtype, 1);
        for (int64_t at = 0; at < piece.count; at += most) {
          const Tensor part = out.Rows(at, std::min(most, piece.count - at));
          staging.resize(size_t(part.bytes()));
          TOROID_RETURN_IF_ERROR(reader.Read(saved, parameter, member.slice, piece.begin + at,
                                             part.rows(), staging.data()));
          store.ops().Upload(store.stream(), staging.data(), part);
        }
      }
    }
  }
  store.Forget();
  return absl::OkStatus();
}

// All ranks read one checkpoint.
absl::Status CheckSame(Communicator& world, const CheckpointReader& reader) {
  const std::vector<uint64_t> hashes = GatherHost(world, reader.hash());
  const WorldHosts hosts = HostsOf(world);
  TOROID_RETURN_IF_ERROR(world.Health());
  for (int rank = 1; rank < world.size(); ++rank) {
    if (hashes[rank] == hashes[0]) continue;
    return absl::FailedPreconditionError(
        absl::StrCat(reader.directory(), ": rank ", rank, " on host ", hosts.names[rank],
                     " sees another checkpoint there than rank 0 on host ", hosts.names[0],
                     ": checkpoints must be on storage that all hosts share"));
  }
  return absl::OkStatus();
}

// A run that starts anew because some rank sees no checkpoint would write over the one that is
// there.
absl::Status NotSeen(const WorldHosts& hosts, int rank, const std::string& path) {
  return absl::FailedPreconditionError(
      absl::StrCat(path, ": rank ", rank, " on host ", hosts.names[rank],
                   " sees nothing there, another rank "
                   "does: checkpoints must be on storage that all hosts share"));
}

// Rank 0's list, newest first; FailedPrecondition if it is empty and another rank's is not.
absl::StatusOr<std::vector<std::string>> NamesToLoad(Communicator& world,
                                                     const std::string& directory,
                                                     FileSystem& files) {
  const auto entries = ListCheckpoints(files, directory);
  TOROID_RETURN_IF_ERROR(ShareStatus(world, entries.status()));
  std::vector<std::string> names;
  for (const CheckpointEntry& entry : Loadable(*entries)) names.push_back(entry.name);
  const std::vector<int64_t> seen = GatherHost(world, int64_t(names.size()));
  const WorldHosts hosts = HostsOf(world);
  const std::string text = BroadcastText(world, absl::StrJoin(names, "/"));
  TOROID_RETURN_IF_ERROR(world.Health());
  if (seen[0] == 0 && std::count(seen.begin(), seen.end(), 0) < world.size()) {
    return NotSeen(hosts, 0, directory);
  }
  return absl::StrSplit(text, '/', absl::SkipEmpty());
}

absl::StatusOr<LoadedCheckpoint> LoadOne(const std::string& path, const ModelConfig& config,
                                         ParamStore& store, FileSystem& files,
                                         const std::vector<HostKind>& also = {}) {
  Communicator& world = store.mesh().world();
  absl::StatusOr<std::unique_ptr<CheckpointReader>> opened = CheckpointReader::Open(files, path);
  absl::Status status = opened.status();
  if (status.ok()) status = (*opened)->CheckName();
  const WorldHosts hosts = HostsOf(world);
  if (world.rank() != 0 && absl::IsNotFound(status)) status = NotSeen(hosts, world.rank(), path);
  TOROID_RETURN_IF_ERROR(ShareStatus(world, status));
  CheckpointReader& reader = **opened;
  TOROID_RETURN_IF_ERROR(CheckSame(world, reader));
  TOROID_RETURN_IF_ERROR(CheckModel(reader, config, store));  // the same on all ranks
  absl::Status filled = Fill(reader, store);
  for (const HostKind& kind : also) filled.Update(FillHost(reader, store, kind));
  TOROID_RETURN_IF_ERROR(ShareStatus(world, filled));
  const CheckpointManifest& manifest = reader.manifest();
  return LoadedCheckpoint{
      manifest.state, path, reader.hash(), {manifest.data, manifest.ring, manifest.tensor}, {}};
}

}  // namespace

absl::StatusOr<LoadedCheckpoint> LoadCheckpoint(const std::string& path, const ModelConfig& config,
                                                ParamStore& store, FileSystem& files,
                                                const std::vector<HostKind>& also) {
  absl::StatusOr<LoadedCheckpoint> loaded = LoadOne(path, config, store, files, also);
  if (!absl::IsDataLoss(loaded.status()) && !absl::IsNotFound(loaded.status())) return loaded;
  absl::Status status = loaded.status();
  Communicator& world = store.mesh().world();
  const std::string before =
      BroadcastText(world, world.rank() == 0 ? CheckpointBefore(files, path) : std::string());
  if (before.empty()) return status;
  return absl::Status(status.code(),
                      absl::StrCat(status.message(), "; the checkpoint before is ", before));
}

absl::StatusOr<LoadedCheckpoint> LoadNewestCheckpoint(const std::string& directory,
                                                      const ModelConfig& config, ParamStore& store,
                                                      FileSystem& files) {
  Communicator& world = store.mesh().world();
  TOROID_ASSIGN_OR_RETURN(const std::vector<std::string> names,
                          NamesToLoad(world, directory, files));
  std::vector<std::string> refused;
  for (const std::string& name : names) {
    absl::StatusOr<LoadedCheckpoint> loaded =
        LoadOne(absl::StrCat(directory, "/", name), config, store, files);
    if (absl::IsNotFound(loaded.status())) {
      return absl::FailedPreconditionError(
          absl::StrCat(loaded.status().message(),
                       ": it was there a moment ago: is another run "
                       "using this directory?"));
    }
    if (loaded.ok()) loaded->refused = std::move(refused);
    if (!absl::IsDataLoss(loaded.status())) return loaded;
    refused.push_back(std::string(loaded.status().message()));
  }
  if (refused.empty()) {
    return absl::NotFoundError(absl::StrCat(directory, ": there is no checkpoint"));
  }
  return absl::DataLossError(absl::StrCat(directory, ": none of the ", refused.size(),
                                          " checkpoints can be loaded: ", refused[0]));
}

}  // namespace toroid
