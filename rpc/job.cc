#include "rpc/job.h"

#include <limits>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "rpc/error_info.h"

namespace toroid {

absl::StatusOr<MeshWish> ParseMeshWish(absl::string_view text) {
  MeshWish wish;
  if (text.empty()) return wish;
  for (absl::string_view item : absl::StrSplit(text, ',')) {
    const std::pair<absl::string_view, absl::string_view> parts =
        absl::StrSplit(item, absl::MaxSplits('=', 1));
    int64_t* axis = parts.first == "data"     ? &wish.data
                    : parts.first == "ring"   ? &wish.ring
                    : parts.first == "tensor" ? &wish.tensor
                                              : nullptr;
    if (axis == nullptr) {
      return BadField("mesh", absl::StrCat("unknown axis '", parts.first, "' in '", text,
                                           "': the axes are data, ring, tensor"));
    }
    if (*axis != 0) return BadField("mesh", absl::StrCat("axis given twice: ", parts.first));
    if (parts.second == "*") {
      *axis = MeshWish::kRest;
    } else if (!absl::SimpleAtoi(parts.second, axis) || *axis < 1) {
      return BadField("mesh", absl::StrCat("unreadable size '", parts.second, "' of ", parts.first,
                                           " in '", text, "': write ring=2 or ring=*"));
    }
  }
  return wish;
}

const MeshWish& MeshOn(const std::string& pod, const MeshWish& mesh, const PodMeshes& pod_meshes) {
  const auto own = pod_meshes.find(pod);
  return own == pod_meshes.end() ? mesh : own->second;
}

absl::StatusOr<MeshShape> ResolveMesh(const MeshWish& wish, int64_t slots) {
  if (wish == MeshWish()) return MeshShape{1, slots, 1};
  MeshShape mesh{wish.data, wish.ring, wish.tensor};
  int64_t product = 1;
  int64_t* rest = nullptr;
  for (int64_t* axis : {&mesh.data, &mesh.ring, &mesh.tensor}) {
    if (*axis == 0) *axis = 1;
    if (*axis == MeshWish::kRest) {
      if (rest != nullptr) return BadField("mesh", "two axes are the rest: only one can be");
      rest = axis;
      continue;
    }
    if (*axis < 1 || *axis > std::numeric_limits<int32_t>::max() / product) {
      return BadField("mesh", absl::StrCat("axis of size ", *axis, ": sizes are 1 and up"));
    }
    product *= *axis;
  }
  const auto too_few = [&] {
    return MakeError(
        absl::StatusCode::kResourceExhausted,
        absl::StrCat("too few slots: mesh needs ", product, ", pod has ", slots,
                     ": try --mesh ring=", slots),
        {"TOO_FEW_SLOTS", {{"needed", absl::StrCat(product)}, {"slots", absl::StrCat(slots)}}, {}});
  };
  if (product > slots) return too_few();
  if (rest != nullptr) {
    *rest = slots / product;
    if (slots % product != 0) {
      return BadField("mesh", absl::StrCat("the rest of ", slots, " slots does not divide by ",
                                           product, ": try ring=", slots));
    }
  }
  return mesh;
}

std::string OutputDirectory(const JobSpec& spec, const std::string& name) {
  return absl::StrReplaceAll(spec.output_dir, {{"{name}", name}});
}

const char* ToString(JobState state) {
  switch (state) {
    case JobState::kQueued:
      return "QUEUED";
    case JobState::kStarting:
      return "STARTING";
    case JobState::kRunning:
      return "RUNNING";
    case JobState::kRestarting:
      return "RESTARTING";
    case JobState::kSucceeded:
      return "SUCCEEDED";
    case JobState::kFailed:
      return "FAILED";
    case JobState::kCancelled:
      return "CANCELLED";
  }
  return "";
}

bool IsTerminal(JobState state) {
  return state == JobState::kSucceeded || state == JobState::kFailed ||
         state == JobState::kCancelled;
}

}  // namespace toroid
