// Which paths a job may name: those under the roots that an operator declared on the agent. And
// what a client may hear of them: the roots' names, never the directories of this host.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "rpc/job.h"

namespace toroid {

// The canonical path of a file or directory that lies under a root after all links are followed.
// "NAME/rest" begins at the root NAME; an absolute path is taken as it is; "random:NAME" and
// "preset:NAME" are no paths and come back unchanged. NotFound names the path and the roots;
// PermissionDenied: it lies outside.
absl::StatusOr<std::string> ResolvePath(const std::string& path, const std::vector<Root>& roots);

// The same for a directory that may not exist yet: its nearest existing parent decides. It is made.
absl::StatusOr<std::string> MakeOutputDirectory(const std::string& path,
                                                const std::vector<Root>& roots);

// `text` with the name of a root in place of its directory: "/data/models/x" is "models/x".
std::string NameRoots(const std::string& text, const std::vector<Root>& roots);

// A status as it may leave this host. What that keeps back goes to `log`, for the operator.
absl::Status ForClient(const absl::Status& status, const std::vector<Root>& roots,
                       const std::function<void(const std::string&)>& log);

}  // namespace toroid
