#include "rpc/roots.h"

#include <unistd.h>

#include <filesystem>
#include <system_error>

#include "absl/strings/ascii.h"
#include "absl/strings/cord.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "core/status_macros.h"
#include "rpc/agent_process.h"
#include "rpc/error_info.h"

namespace toroid {
namespace {

namespace fs = std::filesystem;

constexpr char kKeptBack[] = "toroid/kept-back";  // payload: what is for the operator alone

std::string RootNames(const std::vector<Root>& roots) {
  if (roots.empty()) return "no roots are declared: start the agent with --root NAME=DIR";
  std::string out = "the roots are ";
  for (const Root& root : roots) {
    absl::StrAppend(&out, &root == &roots.front() ? "" : ", ", root.name);
  }
  return out;
}

absl::Status Outside(const std::string& path, const fs::path& leads_to,
                     const std::vector<Root>& roots) {
  absl::Status status =
      MakeError(absl::StatusCode::kPermissionDenied,
                absl::StrCat("path is outside the pod's roots: ", path, ": ", RootNames(roots)),
                {"OUTSIDE_ROOTS", {{"path", path}}, {}});
  std::string kept = absl::StrCat("path is outside the pod's roots: ", path, " leads to ",
                                  leads_to.string(), "; the roots:");
  for (const Root& root : roots) absl::StrAppend(&kept, " ", root.name, "=", root.dir);
  status.SetPayload(kKeptBack, absl::Cord(kept));
  return status;
}

// Of a path, as it stands in a sentence.
bool IsPathCharacter(char c) { return absl::ascii_isalnum(c) || absl::StrContains("/._-+~", c); }

// Whether `path` is `dir` or below it, by whole components. Both canonical.
bool IsUnder(const fs::path& path, const fs::path& dir) {
  auto p = path.begin();
  for (const fs::path& part : dir) {
    if (part.empty()) continue;  // a trailing slash
    if (p == path.end() || *p != part) return false;
    ++p;
  }
  return true;
}

absl::StatusOr<fs::path> Candidate(const std::string& path, const std::vector<Root>& roots) {
  if (path.size() > 4096 || path.find('\0') != std::string::npos) {
    return BadField("path", "longer than 4096 bytes, or with a zero byte in it");
  }
  if (!path.empty() && path[0] == '/') return fs::path(path);
  const std::string first = path.substr(0, path.find('/'));
  for (const Root& root : roots) {
    if (root.name != first) continue;
    return first.size() == path.size() ? fs::path(root.dir)
                                       : fs::path(root.dir) / path.substr(first.size() + 1);
  }
  return MakeError(absl::StatusCode::kNotFound,
                   absl::StrCat("no such path: ", path,
                                ": write it absolute, or from a root's name: ", RootNames(roots)),
                   {"NO_SUCH_PATH", {{"path", path}}, {}});
}

}  // namespace

absl::StatusOr<std::string> ResolvePath(const std::string& path, const std::vector<Root>& roots) {
  if (absl::StartsWith(path, "random:") || absl::StartsWith(path, "preset:")) return path;
  TOROID_ASSIGN_OR_RETURN(const fs::path candidate, Candidate(path, roots));
  std::error_code error;
  const fs::path canonical = fs::canonical(candidate, error);
  // What lies outside is not told apart from what does not exist, save under the roots.
  const fs::path known = fs::weakly_canonical(candidate, error);
  bool under = false;
  for (const Root& root : roots) under |= IsUnder(known, fs::path(root.dir));
  if (!under) return Outside(path, known, roots);
  if (canonical.empty()) {
    char host[256] = "";
    (void)gethostname(host, sizeof(host) - 1);
    return MakeError(
        absl::StatusCode::kNotFound,
        absl::StrCat("no such file: ", path, " on host ", host, ": put it there or check the path"),
        {"NO_SUCH_PATH", {{"path", path}, {"host", host}}, {}});
  }
  return canonical.string();
}

absl::StatusOr<std::string> MakeOutputDirectory(const std::string& path,
                                                const std::vector<Root>& roots) {
  TOROID_ASSIGN_OR_RETURN(const fs::path candidate, Candidate(path, roots));
  std::error_code error;
  const fs::path known = fs::weakly_canonical(candidate, error);
  bool under = false;
  for (const Root& root : roots) under |= IsUnder(known, fs::path(root.dir));
  if (error || !under) return Outside(path, known, roots);
  fs::create_directories(known, error);
  if (error) {
    return absl::PermissionDeniedError(
        absl::StrCat("output directory cannot be made: ", path, ": ", error.message()));
  }
  return known.string();
}

std::string NameRoots(const std::string& text, const std::vector<Root>& roots) {
  std::string out;
  for (size_t at = 0; at < text.size();) {
    const bool begins = text[at] == '/' && (at == 0 || !IsPathCharacter(text[at - 1]));
    const Root* longest = nullptr;  // roots may lie in each other
    for (const Root& root : roots) {
      const size_t end = at + root.dir.size();
      if (!begins || root.dir.size() < 2 || text.compare(at, root.dir.size(), root.dir) != 0 ||
          (end < text.size() && text[end] != '/' && IsPathCharacter(text[end]))) {
        continue;
      }
      if (longest == nullptr || longest->dir.size() < root.dir.size()) longest = &root;
    }
    if (longest == nullptr) {
      out += text[at++];
    } else {
      out += longest->name;
      at += longest->dir.size();
    }
  }
  return out;
}

absl::Status ForClient(const absl::Status& status, const std::vector<Root>& roots,
                       const std::function<void(const std::string&)>& log) {
  if (status.ok()) return status;
  const std::string message(status.message());
  absl::Status said(status.code(), NameRoots(message, roots));
  ErrorInfo info = GetErrorInfo(status);
  for (auto& [key, value] : info.metadata) value = NameRoots(value, roots);
  if (!info.reason.empty()) said = WithErrorInfo(said, info);
  if (const auto kept = status.GetPayload(kKeptBack)) {
    log(std::string(*kept));
  } else if (said.message() != message) {
    log(message);
  }
  return said;
}

absl::StatusOr<Root> ParseRoot(absl::string_view text) {
  const size_t equals = text.find('=');
  if (equals == absl::string_view::npos || equals == 0 ||
      text.substr(0, equals).find('/') != absl::string_view::npos) {
    return absl::InvalidArgumentError(
        absl::StrCat("unreadable root: '", text, "': write --root models=/data/models"));
  }
  const std::string dir(text.substr(equals + 1));
  std::error_code error;
  const fs::path canonical = fs::canonical(dir, error);
  if (error || !fs::is_directory(canonical, error)) {
    return absl::NotFoundError(absl::StrCat("root is no directory: ", text, ": make ", dir));
  }
  return Root{std::string(text.substr(0, equals)), canonical.string()};
}

}  // namespace toroid
