// Files of numbers that a rank keeps of merges between pods (merge_history.h): blobs one behind the
// other, with what they are of. Not synced: what a machine's crash takes of them is missing.
//
// "toroid contributions 1\n", then records: group, pod (i64), weight (f64), number of blobs (i64),
// of each its size (i64) and bytes; little-endian. Nothing guards the bytes: the hashes in the log
// of merges do.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "core/io/file_system.h"
#include "parallel/exchange_layout.h"

namespace toroid {

// Names below a pod's run directory.
inline constexpr char kMergeLogName[] = "merges.log";
inline constexpr char kContributions[] = "contributions", kAbout[] = "about.json";
std::string LaunchFolder(int64_t step);        // "from-00000040"
int64_t LaunchStep(absl::string_view folder);  // of such a name; -1: it is none
std::string BeginName(int64_t rank);           // "begin.rank-0000"
std::string MergeName(int64_t step, int64_t fragment, int64_t rank);
std::string SquaresName(int64_t step, bool of_weights);

struct Contribution {
  int64_t group = 0, pod = 0;
  double weight = 0;
  std::vector<std::string> blobs;
};

// A rank's own share: codes, scales, elements that share a scale.
std::vector<std::string> BlobsOf(const CodedRange& coded);
// Empty if they are not those of a range of so many elements.
std::optional<CodedRange> CodedOf(const std::vector<std::string>& blobs, Codec codec, int64_t size);

class ContributionWriter {
 public:
  // Replaces what was there.
  absl::Status Open(FileSystem& files, const std::string& path);
  absl::Status Add(const Contribution& contribution);
  absl::Status Close();
  bool open() const { return file_ != nullptr; }

 private:
  std::unique_ptr<WritableFile> file_;
};

// NotFound: a run without the option has none, or they were taken away.
absl::Status NoContributions(const std::string& path);
// All of a file. NoContributions; DataLoss naming it: it is damaged or not whole.
absl::StatusOr<std::vector<Contribution>> ReadContributions(FileSystem& files,
                                                            const std::string& path);

}  // namespace toroid
