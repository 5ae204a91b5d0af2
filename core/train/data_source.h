// The files that training text comes from, and the documents in them.
//
//   text    a file is a document, or many with a separator between them ("<|endoftext|>") that is
//   no
//           part of them; nor is a byte order mark in front
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

struct DocumentRule {
  std::string field = "text";  // of JSONL
  std::string separator;       // of text; empty: a file is a document
};
// InvalidArgument if the separator can overlap itself, as two newlines can: where it then cuts
// would depend on where reading begins.
absl::Status Validate(const DocumentRule& rule);

// Bytes [begin, end) of files[file].
struct SourcePart {
  int64_t file = 0;
  int64_t begin = 0, end = 0;
  bool operator==(const SourcePart&) const = default;
};
// The sources cut into portions of about `portion_bytes`, by rule: files of many documents are cut
// at multiples of it, others stay whole, small neighbours share a portion. REQUIRES portion_bytes >
// 0, no tokens.
std::vector<std::vector<SourcePart>> CutSources(const std::vector<SourceFile>& files,
                                                const DocumentRule& rule, int64_t portion_bytes);

// Calls `take` with each document that begins in a part. An error of `take` ends it; if it is
// InvalidArgument, about the text, file and place are put before it. Aborted if the file has not
// the bytes that it was found with.
absl::Status ForEachDocument(const SourceFile& file, const SourcePart& part,
                             const DocumentRule& rule,
                             const std::function<absl::Status(std::string_view text)>& take);

}  // namespace toroid
