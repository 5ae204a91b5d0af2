#include "launcher/text_argument.h"

#include <sys/stat.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "core/status_macros.h"

namespace toroid {
namespace {

constexpr size_t kLargestText = size_t{1} << 30;

absl::Status CannotRead(const std::string& path, int error) {
  const std::string message = absl::StrCat("cannot read: ", path, ": ", std::strerror(error));
  if (error == ENOENT || error == ENOTDIR) {
    return absl::NotFoundError(absl::StrCat("no such file: ", path, ": check the path"));
  }
  if (error == EACCES) return absl::PermissionDeniedError(message);
  return absl::InvalidArgumentError(message);
}

}  // namespace

absl::StatusOr<std::string> ReadTextFile(const std::string& path) {
  const bool standard_input = path == "-";
  std::FILE* file = standard_input ? stdin : std::fopen(path.c_str(), "rb");
  if (file == nullptr) return CannotRead(path, errno);
  std::string text;
  std::vector<char> block(1 << 16);
  size_t n;
  errno = 0;
  while ((n = std::fread(block.data(), 1, block.size(), file)) > 0) {
    text.append(block.data(), n);
    if (text.size() > kLargestText) break;
  }
  const int error = std::ferror(file) != 0 ? errno : 0;
  if (!standard_input) std::fclose(file);
  if (error != 0) return CannotRead(standard_input ? "standard input" : path, error);
  if (text.size() > kLargestText) {
    return absl::InvalidArgumentError(
        absl::StrCat("text too long: ", path, ": at most 1 GiB is read"));
  }
  return text;
}

absl::StatusOr<std::string> TextArgument(const std::string& argument) {
  if (argument == "-") return ReadTextFile("-");
  if (argument.size() < 2 || argument[0] != '@') return argument;
  return argument[1] == '@' ? argument.substr(1) : ReadTextFile(argument.substr(1));
}

absl::StatusOr<std::vector<int32_t>> IdsArgument(const std::string& argument) {
  TOROID_ASSIGN_OR_RETURN(const std::string text, TextArgument(argument));
  std::vector<int32_t> ids;
  for (absl::string_view word :
       absl::StrSplit(text, absl::ByAnyChar(", \t\r\n[]"), absl::SkipEmpty())) {
    int32_t id;
    if (!absl::SimpleAtoi(word, &id) || id < 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("not a token id: '", word.substr(0, 40), "': write ids as 1,2,3"));
    }
    ids.push_back(id);
  }
  if (ids.empty()) {
    return absl::InvalidArgumentError("no token ids: the list is empty: give at least one id");
  }
  return ids;
}

}  // namespace toroid
