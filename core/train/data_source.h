// The files that training text comes from, and the documents in them.
//
//   text    a file is a document; a byte order mark in front is not part of it
//   JSONL   a line is an object, one field of which is the document's text; blank lines are skipped
//   tokens  token shards (token_shard.h), which need no tokenizer
// The bytes are untrusted. Functions, hence thread-safe.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace toroid {

enum class DataFormat {
  kByName,  // .jsonl, .ndjson: JSONL; .tokens: tokens; else text, but not what is packed otherwise
  kText,
  kJsonl,
  kTokens
};

struct SourceFile {
  std::string path;
  DataFormat format = DataFormat::kText;  // not kByName
  int64_t bytes = 0;
  int64_t modified = 0;  // ns since 1970
};

// What the patterns ("text/*.txt") match, a pattern's files in the order of their names, each file
// once. Errors name the pattern that matches nothing, the directory, the file of no known format,
// and token shards among files of text.
absl::StatusOr<std::vector<SourceFile>> FindSources(const std::vector<std::string>& patterns,
                                                    DataFormat format);

// Bytes [begin, end) of files[file].
struct SourcePart {
  int64_t file = 0;
  int64_t begin = 0, end = 0;
  bool operator==(const SourcePart&) const = default;
};
// The sources cut into portions of about `portion_bytes`, by rule: text files stay whole, JSONL is
// cut at multiples of it, small neighbours share a portion. REQUIRES portion_bytes > 0, no tokens.
std::vector<std::vector<SourcePart>> CutSources(const std::vector<SourceFile>& files,
                                                int64_t portion_bytes);

// Calls `take` with each document of a part: of JSONL those whose line begins in it. An error of
// `take` ends it; if it is InvalidArgument, about the text, file and place are put before it.
// `field` is JSONL's. Aborted if the file is not the one that was found, in bytes.
absl::Status ForEachDocument(const SourceFile& file, const SourcePart& part,
                             const std::string& field,
                             const std::function<absl::Status(std::string_view text)>& take);

}  // namespace toroid
