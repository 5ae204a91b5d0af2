// Which paths a job may name: those under the roots that an operator declared on the agent.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "rpc/job.h"

namespace toroid {

// The canonical path of a file or directory that lies under a root after all links are followed.
// "NAME/rest" begins at the root NAME; an absolute path is taken as it is; "random:NAME" is no path
// and comes back unchanged. NotFound names the path and the roots; PermissionDenied: it lies
// outside.
absl::StatusOr<std::string> ResolvePath(const std::string& path, const std::vector<Root>& roots);

// The same for a directory that may not exist yet: its nearest existing parent decides. It is made.
absl::StatusOr<std::string> MakeOutputDirectory(const std::string& path,
                                                const std::vector<Root>& roots);

}  // namespace toroid
