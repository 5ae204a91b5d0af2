#include "core/train/data_source.h"

#include <glob.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "core/check.h"
#include "core/io/json_fields.h"
#include "core/io/mapped_file.h"
#include "core/status_macros.h"

namespace toroid {
namespace {

absl::StatusOr<DataFormat> FormatOf(const std::string& path) {
  const std::string name = absl::AsciiStrToLower(path);
  for (const char* end : {".jsonl", ".ndjson"}) {
    if (absl::EndsWith(name, end)) return DataFormat::kJsonl;
  }
  if (absl::EndsWith(name, ".tokens")) return DataFormat::kTokens;
  for (const char* end : {".gz", ".zst", ".xz", ".bz2", ".zip", ".tar", ".parquet", ".arrow",
                          ".json", ".bin", ".npy"}) {
    if (absl::EndsWith(name, end)) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": toroid reads text, JSONL (.jsonl) and token shards (.tokens), not ",
                       end, "; unpack it, or name the format if it is one of these"));
    }
  }
  return DataFormat::kText;
}

absl::StatusOr<SourceFile> Describe(const std::string& path, DataFormat format) {
  struct stat info;
  if (::stat(path.c_str(), &info) != 0) {
    return absl::NotFoundError(absl::StrCat(path, ": ", std::strerror(errno)));
  }
  if (S_ISDIR(info.st_mode)) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": a directory; name its files, as in ", path, "/*.txt"));
  }
  if (!S_ISREG(info.st_mode)) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": not a regular file"));
  }
  SourceFile file = {path, format, int64_t(info.st_size),
                     int64_t(info.st_mtim.tv_sec) * 1'000'000'000 + info.st_mtim.tv_nsec};
  if (format == DataFormat::kByName) {
    TOROID_ASSIGN_OR_RETURN(file.format, FormatOf(path));
  }
  return file;
}

// A file of that very name counts before a pattern.
absl::StatusOr<std::vector<std::string>> Match(const std::string& pattern) {
  std::error_code error;
  if (std::filesystem::exists(pattern, error)) return std::vector<std::string>{pattern};
  glob_t found = {};
  const int result = ::glob(pattern.c_str(), 0, nullptr, &found);
  std::vector<std::string> paths(found.gl_pathv, found.gl_pathv + found.gl_pathc);
  ::globfree(&found);
  if (result == GLOB_NOMATCH) {
    return absl::NotFoundError(absl::StrCat(pattern, ": no file matches"));
  }
  if (result != 0) return absl::UnavailableError(absl::StrCat(pattern, ": cannot be searched"));
  return paths;
}

absl::Status At(const std::string& where, const absl::Status& status) {
  if (!absl::IsInvalidArgument(status)) return status;
  return absl::Status(status.code(), absl::StrCat(where, ": ", status.message()));
}

// Calls `take` with what lies between the separators and begins in the part, and where it begins.
absl::Status ForEachPiece(
    std::string_view text, const SourcePart& part, const std::string& separator,
    const std::function<absl::Status(std::string_view piece, int64_t begin)>& take) {
  const int64_t width = int64_t(separator.size());
  int64_t begin = part.begin;
  if (begin > 0) {  // the piece that lies across it belongs to the part before
    const size_t found = text.find(separator, size_t(std::max<int64_t>(0, begin - width)));
    begin = found == std::string_view::npos ? int64_t(text.size()) : int64_t(found) + width;
  }
  while (begin < part.end) {
    const size_t end = std::min(text.find(separator, size_t(begin)), text.size());
    TOROID_RETURN_IF_ERROR(take(text.substr(size_t(begin), end - size_t(begin)), begin));
    begin = int64_t(end) + width;
  }
  return absl::OkStatus();
}

absl::Status TakeLine(std::string_view line, const std::string& where, const std::string& field,
                      const std::function<absl::Status(std::string_view)>& take) {
  if (line.find_first_not_of(" \t\r") == std::string_view::npos) return absl::OkStatus();
  TOROID_ASSIGN_OR_RETURN(const auto object, ParseJsonObject({line.data(), line.size()}, where));
  const auto value = object.find(field);
  if (value == object.end() || !value->is_string()) {
    return absl::InvalidArgumentError(
        absl::StrCat(where, ": no text in its field \"", field, "\""));
  }
  return At(where, take(value->get_ref<const std::string&>()));
}

}  // namespace

absl::StatusOr<std::vector<SourceFile>> FindSources(const std::vector<std::string>& patterns,
                                                    DataFormat format) {
  if (patterns.empty()) return absl::InvalidArgumentError("the data has no path");
  std::vector<SourceFile> files;
  absl::flat_hash_set<std::string> seen;
  for (const std::string& pattern : patterns) {
    TOROID_ASSIGN_OR_RETURN(const std::vector<std::string> paths, Match(pattern));
    for (const std::string& path : paths) {
      if (!seen.insert(path).second) continue;
      TOROID_ASSIGN_OR_RETURN(SourceFile file, Describe(path, format));
      files.push_back(std::move(file));
    }
  }
  for (const SourceFile& file : files) {
    if ((file.format == DataFormat::kTokens) != (files[0].format == DataFormat::kTokens)) {
      return absl::InvalidArgumentError(
          absl::StrCat(files[0].path, " and ", file.path,
                       ": one is a token shard, the other is not; take one kind"));
    }
  }
  return files;
}

absl::Status Validate(const DocumentRule& rule) {
  const std::string& text = rule.separator;
  for (size_t shift = 1; shift < text.size(); ++shift) {
    if (text.compare(shift, std::string::npos, text, 0, text.size() - shift) == 0) {
      return absl::InvalidArgumentError(absl::StrCat(
          "document separator: \"", absl::CEscape(text),
          "\" can overlap itself; take one that cannot, as <|endoftext|>, or write JSONL"));
    }
  }
  return absl::OkStatus();
}

std::vector<std::vector<SourcePart>> CutSources(const std::vector<SourceFile>& files,
                                                const DocumentRule& rule, int64_t portion_bytes) {
  TOROID_CHECK_GT(portion_bytes, 0);
  std::vector<std::vector<SourcePart>> portions;
  int64_t room = 0;
  const auto add = [&](const SourcePart& part) {
    const int64_t bytes = part.end - part.begin;
    if (portions.empty() || bytes > room) {
      portions.emplace_back();
      room = portion_bytes;
    }
    portions.back().push_back(part);
    room -= bytes;
  };
  for (size_t i = 0; i < files.size(); ++i) {
    const SourceFile& file = files[i];
    TOROID_CHECK(file.format == DataFormat::kText || file.format == DataFormat::kJsonl);
    const bool many = file.format == DataFormat::kJsonl || !rule.separator.empty();
    const int64_t step = many ? portion_bytes : file.bytes;
    for (int64_t begin = 0; begin < file.bytes; begin += step) {
      add({int64_t(i), begin, std::min(file.bytes, begin + step)});
    }
  }
  return portions;
}

absl::Status ForEachDocument(const SourceFile& file, const SourcePart& part,
                             const DocumentRule& rule,
                             const std::function<absl::Status(std::string_view text)>& take) {
  TOROID_ASSIGN_OR_RETURN(const MappedFile mapped, MappedFile::Open(file.path));
  const auto bytes = mapped.bytes();
  if (int64_t(bytes.size()) != file.bytes) {
    return absl::AbortedError(absl::StrCat(file.path, ": it had ", file.bytes,
                                           " bytes and now has ", bytes.size(),
                                           "; start again when it is complete"));
  }
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  const auto place = [&](absl::string_view what, int64_t begin) {
    return absl::StrCat(file.path, ": the ", what, " at byte ", begin);
  };
  if (file.format == DataFormat::kJsonl) {
    return ForEachPiece(text, part, "\n", [&](std::string_view line, int64_t begin) {
      return TakeLine(line, place("line", begin), rule.field, take);
    });
  }
  const std::string_view mark = "\xef\xbb\xbf";
  const auto without_mark = [&](std::string_view piece) {
    return piece.substr(0, mark.size()) == mark ? piece.substr(mark.size()) : piece;
  };
  if (rule.separator.empty()) return At(file.path, take(without_mark(text)));
  return ForEachPiece(text, part, rule.separator, [&](std::string_view piece, int64_t begin) {
    return At(place("document", begin), take(begin == 0 ? without_mark(piece) : piece));
  });
}

}  // namespace toroid
