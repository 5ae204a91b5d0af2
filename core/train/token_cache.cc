#include "core/train/token_cache.h"

#include <algorithm>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/check.h"
#include "core/io/fingerprint.h"
#include "core/status_macros.h"
#include "core/train/token_shard.h"

namespace toroid {
namespace {

constexpr int64_t kMakingOfTokens = 1;  // counts up when the same text would give other shards
constexpr int64_t kProgressBytes = int64_t{4} << 20;

// A document's tokens are made in one piece, in several times its memory.
constexpr int64_t kLargestDocument = int64_t{1} << 30;

absl::Status TooLarge(std::string_view text) {
  return absl::InvalidArgumentError(
      absl::StrCat("a document of ", text.size(), " bytes; the largest has ", kLargestDocument,
                   ": name the separator that divides it, or write JSONL"));
}

int64_t BytesIn(const std::vector<SourcePart>& portion) {
  int64_t bytes = 0;
  for (const SourcePart& part : portion) bytes += part.end - part.begin;
  return bytes;
}

uint64_t KeyOf(const std::vector<SourceFile>& sources, uint64_t tokenizer,
               const TokenCacheOptions& options) {
  FingerprintHash hash;
  hash.Number(kMakingOfTokens);
  hash.Number(int64_t(tokenizer));
  hash.Number(options.encode.add_special);
  hash.Number(options.encode.parse_special);
  hash.Number(options.portion_bytes);
  for (const SourceFile& file : sources) {
    hash.Text(file.path);
    hash.Number(int64_t(file.format));
    hash.Number(file.bytes);
    hash.Number(file.modified);
    const DocumentRule& rule = options.documents;
    hash.Text(file.format == DataFormat::kJsonl ? rule.field : rule.separator);
  }
  return hash.value();
}

}  // namespace

absl::StatusOr<TokenCache> TokenCache::Create(std::vector<SourceFile> sources, uint64_t tokenizer,
                                              TokenCacheOptions options) {
  TOROID_CHECK(!sources.empty());
  TOROID_RETURN_IF_ERROR(Validate(options.documents));
  TokenCache cache;
  cache.key_ = KeyOf(sources, tokenizer, options);
  cache.directory_ = absl::StrCat(options.directory, "/", absl::Hex(cache.key_, absl::kZeroPad16));
  cache.portions_ = CutSources(sources, options.documents, options.portion_bytes);
  if (cache.portions_.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        sources[0].path, sources.size() > 1 ? " and the files after it" : "", ": no text at all"));
  }
  cache.sources_ = std::move(sources);
  cache.options_ = std::move(options);
  std::error_code error;
  std::filesystem::create_directories(cache.directory_, error);
  if (error) {
    return absl::UnavailableError(absl::StrCat(cache.directory_, ": ", error.message()));
  }
  return cache;
}

std::string TokenCache::ShardPath(int64_t shard) const {
  return absl::StrCat(directory_, "/shard-", absl::Dec(shard, absl::kZeroPad5), "-of-",
                      absl::Dec(shards(), absl::kZeroPad5), ".tokens");
}

bool TokenCache::Exists(int64_t shard) const {
  const auto opened = TokenShard::Open(ShardPath(shard));
  return opened.ok() && opened->source() == key_;
}

absl::Status TokenCache::Make(
    const Tokenizer& tokenizer, int64_t worker, int64_t workers,
    const std::function<bool(const TokenCacheProgress&)>& progress) const {
  TOROID_CHECK(worker >= 0 && worker < workers);
  TokenCacheProgress done;
  for (int64_t shard = worker; shard < shards(); shard += workers) {
    ++done.shards;
    done.bytes += BytesIn(portions_[size_t(shard)]);
  }
  int64_t bytes_before = 0;
  for (int64_t shard = worker; shard < shards(); shard += workers) {
    TOROID_RETURN_IF_ERROR(AtomicFile::RemoveAbandoned(ShardPath(shard)));
    if (!Exists(shard)) TOROID_RETURN_IF_ERROR(MakeShard(tokenizer, shard, progress, done));
    bytes_before += BytesIn(portions_[size_t(shard)]);
    done.bytes_done = bytes_before;
    ++done.shards_done;
    if (progress && !progress(done)) return absl::CancelledError("tokenising was stopped");
  }
  return absl::OkStatus();
}

absl::Status TokenCache::MakeShard(const Tokenizer& tokenizer, int64_t shard,
                                   const std::function<bool(const TokenCacheProgress&)>& progress,
                                   TokenCacheProgress& done) const {
  TOROID_ASSIGN_OR_RETURN(TokenShardWriter writer,
                          TokenShardWriter::Create(ShardPath(shard), tokenizer.vocab_size(), key_));
  int64_t unsaid = 0;  // bytes since progress was told
  for (const SourcePart& part : portions_[size_t(shard)]) {
    const int64_t end = done.bytes_done + part.end - part.begin;
    TOROID_RETURN_IF_ERROR(
        ForEachDocument(sources_[size_t(part.file)], part, options_.documents,
                        [&](std::string_view text) -> absl::Status {
                          if (options_.ticks != nullptr) ++*options_.ticks;
                          if (text.empty()) return absl::OkStatus();
                          if (int64_t(text.size()) > kLargestDocument) return TooLarge(text);
                          TOROID_ASSIGN_OR_RETURN(const std::vector<int32_t> ids,
                                                  tokenizer.Encode(text, options_.encode));
                          TOROID_RETURN_IF_ERROR(writer.Add(ids));
                          ++done.documents;
                          done.tokens += int64_t(ids.size());
                          unsaid += int64_t(text.size());
                          if (unsaid < kProgressBytes) return absl::OkStatus();
                          done.bytes_done = std::min(end, done.bytes_done + unsaid);
                          unsaid = 0;
                          if (progress && !progress(done))
                            return absl::CancelledError("tokenising was stopped");
                          return absl::OkStatus();
                        }));
    done.bytes_done = end;
  }
  return writer.Finish();
}

absl::StatusOr<TokenDataset> TokenCache::Open() const {
  std::vector<TokenShard> opened;
  for (int64_t i = 0; i < shards(); ++i) {
    auto shard = TokenShard::Open(ShardPath(i));
    if (absl::IsNotFound(shard.status())) {
      return absl::FailedPreconditionError(
          absl::StrCat(ShardPath(i), ": not made yet: shard ", i + 1, " of ", shards(),
                       "; all workers must have ended, and share this directory"));
    }
    TOROID_RETURN_IF_ERROR(shard.status());
    opened.push_back(*std::move(shard));
  }
  return TokenDataset::Of(std::move(opened));
}

uint64_t TokenizerFingerprint(const TokenizerSource& source) {
  FingerprintHash hash;
  hash.Number(int64_t(source.kind));
  hash.Text(source.tokenizer_json);
  hash.Text(source.tokenizer_config_json);
  const GgufVocabulary& gguf = source.gguf;
  hash.Text(gguf.model);
  hash.Text(gguf.pre);
  const auto texts = [&](const std::vector<std::string>& values) {
    hash.Number(int64_t(values.size()));
    for (const std::string& value : values) hash.Text(value);
  };
  texts(gguf.tokens);
  texts(gguf.merges);
  const auto bytes = [&](const auto& values) {
    hash.Bytes(
        {reinterpret_cast<const uint8_t*>(values.data()), values.size() * sizeof(values[0])});
  };
  bytes(gguf.scores);
  bytes(gguf.token_types);
  for (const auto& id : {gguf.bos_id, gguf.eos_id, gguf.unk_id}) hash.Number(id.value_or(-1));
  for (const auto& flag : {gguf.add_bos, gguf.add_eos, gguf.add_space_prefix}) {
    hash.Number(flag ? int64_t(*flag) : -1);
  }
  return hash.value();
}

}  // namespace toroid
