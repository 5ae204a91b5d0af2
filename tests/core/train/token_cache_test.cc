#include "core/train/token_cache.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <thread>

#include "absl/strings/str_cat.h"
#include "core/check.h"
#include "tests/support/model_files.h"

namespace toroid {
namespace {

using testing::HasSubstr;

// Twelve documents in four portions, and the bytes of each as the byte tokenizer sees them.
class TokenCacheTest : public testing::Test {
 protected:
  TokenCacheTest() {
    std::string lines;
    for (int i = 0; i < 10; ++i) {
      const std::string text = absl::StrCat("document ", i, std::string(size_t(7 * i), '.'));
      absl::StrAppend(&lines, R"({"text":")", text, "\"}\n");
      texts_.push_back(text);
    }
    directory_.Write("a.jsonl", lines);
    directory_.Write("b.txt", "one more");
    directory_.Write("c.txt", "");
    directory_.Write("d.txt", "the last one");
    texts_.push_back("one more");
    texts_.push_back("the last one");
  }

  TokenCache Cache(uint64_t tokenizer = 1) {
    auto sources = FindSources({directory_.path() + "/*.*"}, DataFormat::kByName);
    TOROID_CHECK_MSG(sources.ok(), sources.status().ToString());
    auto cache = TokenCache::Create(
        *sources, tokenizer, {.directory = directory_.path() + "/cache", .portion_bytes = 150});
    TOROID_CHECK_MSG(cache.ok(), cache.status().ToString());
    return *std::move(cache);
  }
  static std::vector<std::string> TextsOf(const TokenDataset& set) {
    std::vector<std::string> texts;
    for (int64_t i = 0; i < set.documents(); ++i) {
      std::vector<int32_t> ids(size_t(set.Length(i)));
      TOROID_CHECK(set.Read(i, 0, set.Length(i), ids.data()).ok());
      texts.emplace_back(ids.begin(), ids.end());
    }
    return texts;
  }
  std::vector<std::string> FilesOfCache() {
    std::vector<std::string> names;
    for (const auto& entry :
         std::filesystem::recursive_directory_iterator(directory_.path() + "/cache")) {
      if (entry.is_regular_file()) names.push_back(entry.path().string());
    }
    std::sort(names.begin(), names.end());
    return names;
  }

  TemporaryDirectory directory_;
  std::vector<std::string> texts_;
  std::unique_ptr<const Tokenizer> bytes_ = *Tokenizer::FromBytes();
};

TEST_F(TokenCacheTest, HoldsEveryDocumentOnceInOrder) {
  const TokenCache cache = Cache();
  EXPECT_EQ(cache.shards(), 4);
  TokenCacheProgress last;
  int calls = 0;
  ASSERT_TRUE(cache
                  .Make(*bytes_, 0, 1,
                        [&](const TokenCacheProgress& progress) {
                          EXPECT_GE(progress.bytes_done, last.bytes_done);
                          last = progress;
                          ++calls;
                          return true;
                        })
                  .ok());
  const auto set = cache.Open();
  ASSERT_TRUE(set.ok()) << set.status();
  EXPECT_EQ(TextsOf(*set), texts_);
  EXPECT_EQ(calls, cache.shards());
  EXPECT_EQ(last.shards_done, cache.shards());
  EXPECT_EQ(last.shards, cache.shards());
  EXPECT_EQ(last.bytes_done, last.bytes);
  EXPECT_EQ(last.documents, 12);
  EXPECT_EQ(last.tokens, set->tokens());
}

TEST_F(TokenCacheTest, IsTheSameWhoeverMadeIt) {
  const TokenCache cache = Cache();
  ASSERT_TRUE(cache.Make(*bytes_, 0, 1, nullptr).ok());
  const uint64_t fingerprint = cache.Open()->fingerprint();
  for (const int64_t workers : {2, 3, 8}) {
    std::filesystem::remove_all(directory_.path() + "/cache");
    const TokenCache again = Cache();
    std::vector<std::thread> threads;
    for (int64_t worker = 0; worker < workers; ++worker) {
      threads.emplace_back(
          [&, worker] { EXPECT_TRUE(again.Make(*bytes_, worker, workers, nullptr).ok()); });
    }
    for (std::thread& thread : threads) thread.join();
    const auto set = again.Open();
    ASSERT_TRUE(set.ok()) << set.status();
    EXPECT_EQ(set->fingerprint(), fingerprint) << workers;
  }
}

TEST_F(TokenCacheTest, GoesOnWhereItWasStopped) {
  const TokenCache cache = Cache();
  const absl::Status stopped = cache.Make(
      *bytes_, 0, 1, [](const TokenCacheProgress& progress) { return progress.shards_done < 2; });
  EXPECT_EQ(stopped.code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(FilesOfCache().size(), 2u);
  EXPECT_THAT(std::string(cache.Open().status().message()),
              HasSubstr("shard-00002-of-00004.tokens: not made yet: shard 3 of 4"));
  // As a kill leaves it, and a shard that the disk lost.
  directory_.Write(
      std::filesystem::relative(cache.ShardPath(2), directory_.path()).string() + ".partial-abcdef",
      "half");
  std::filesystem::resize_file(cache.ShardPath(1), 100);
  const auto time = std::filesystem::last_write_time(cache.ShardPath(0));
  TokenCacheProgress last;
  ASSERT_TRUE(cache
                  .Make(*bytes_, 0, 1,
                        [&](const TokenCacheProgress& progress) {
                          last = progress;
                          return true;
                        })
                  .ok());
  EXPECT_EQ(std::filesystem::last_write_time(cache.ShardPath(0)), time) << "kept";
  EXPECT_LT(last.documents, 12) << "of this call";
  EXPECT_EQ(last.bytes_done, last.bytes);
  EXPECT_EQ(FilesOfCache().size(), 4u) << "nothing half made is left";
  EXPECT_EQ(TextsOf(*cache.Open()), texts_);
}

TEST_F(TokenCacheTest, SurvivesAKillInTheMiddleOfAShard) {
  const TemporaryDirectory other;
  other.Write("a.txt", "whole");
  other.Write("b.txt", std::string(size_t{5} << 20, 'x') + '|' + "behind it");
  const auto sources = FindSources({other.path() + "/*"}, DataFormat::kByName);
  const auto cache = TokenCache::Create(*sources, 1,
                                        {.directory = other.path() + "/cache",
                                         .documents = {.separator = "|"},
                                         .portion_bytes = int64_t{6} << 20});
  ASSERT_TRUE(cache.ok()) << cache.status();
  ASSERT_EQ(cache->shards(), 1);
  const auto files = [&] {
    return std::distance(std::filesystem::recursive_directory_iterator(other.path() + "/cache"),
                         std::filesystem::recursive_directory_iterator());
  };
  const pid_t child = fork();
  if (child == 0) {
    (void)cache->Make(*bytes_, 0, 1, [](const TokenCacheProgress&) {
      kill(getpid(), SIGKILL);
      return true;
    });
    _exit(0);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFSIGNALED(status));
  EXPECT_EQ(files(), 2) << "the directory, and what the child was writing";
  EXPECT_FALSE(std::filesystem::exists(cache->ShardPath(0)));
  ASSERT_TRUE(cache->Make(*bytes_, 0, 1, nullptr).ok());
  EXPECT_EQ(files(), 2) << "the directory and the shard";
  EXPECT_EQ(cache->Open()->documents(), 3);
}

TEST_F(TokenCacheTest, ADocumentThatIsTooLargeIsNamed) {
  const TemporaryDirectory other;
  const std::string path = other.Write("huge.txt", "");
  std::filesystem::resize_file(path, (uint64_t{1} << 30) + 1);  // sparse
  const auto sources = FindSources({path}, DataFormat::kByName);
  const auto cache = TokenCache::Create(*sources, 1, {.directory = other.path() + "/cache"});
  EXPECT_THAT(std::string(cache->Make(*bytes_, 0, 1, nullptr).message()),
              HasSubstr("huge.txt: a document of 1073741825 bytes"));
}

TEST_F(TokenCacheTest, AnotherInputIsAnotherDirectory) {
  const std::string before = Cache().ShardPath(0);
  EXPECT_EQ(Cache().ShardPath(0), before);
  EXPECT_NE(Cache(2).ShardPath(0), before) << "tokenizer";
  directory_.Write("b.txt", "one More!");
  const std::string longer = Cache().ShardPath(0);
  EXPECT_NE(longer, before) << "size";
  std::filesystem::last_write_time(
      directory_.path() + "/b.txt",
      std::filesystem::last_write_time(directory_.path() + "/b.txt") + std::chrono::seconds(1));
  EXPECT_NE(Cache().ShardPath(0), longer) << "time";
}

TEST_F(TokenCacheTest, ErrorsNameTheDocument) {
  directory_.Write("d.txt", "not UTF-8: \xff");
  const absl::Status status = Cache().Make(*bytes_, 0, 1, nullptr);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("/d.txt: "));
}

TEST_F(TokenCacheTest, NoTextAtAllIsAnError) {
  const TemporaryDirectory other;
  const auto sources = FindSources({other.Write("a.txt", "")}, DataFormat::kByName);
  EXPECT_THAT(
      std::string(TokenCache::Create(*sources, 1, {.directory = other.path()}).status().message()),
      HasSubstr("a.txt: no text at all"));
  // Bytes, yet no document.
  const auto lines =
      FindSources({other.Write("a.jsonl", "{\"text\":\"\"}\n")}, DataFormat::kByName);
  const auto cache = TokenCache::Create(*lines, 1, {.directory = other.path()});
  ASSERT_TRUE(cache->Make(*bytes_, 0, 1, nullptr).ok());
  EXPECT_THAT(std::string(cache->Open().status().message()), HasSubstr("the data set is empty"));
}

TEST(TokenizerFingerprint, SeesEveryField) {
  TokenizerSource source;
  source.kind = TokenizerSource::Kind::kGguf;
  source.gguf.tokens = {"a", "b"};
  const uint64_t before = TokenizerFingerprint(source);
  EXPECT_EQ(TokenizerFingerprint(source), before);
  const auto changed = [&](auto change) {
    TokenizerSource other = source;
    change(other);
    return TokenizerFingerprint(other);
  };
  EXPECT_NE(changed([](auto& s) { s.kind = TokenizerSource::Kind::kBytes; }), before);
  EXPECT_NE(changed([](auto& s) { s.tokenizer_json = "x"; }), before);
  EXPECT_NE(changed([](auto& s) { s.gguf.tokens = {"ab"}; }), before);
  EXPECT_NE(changed([](auto& s) { s.gguf.scores = {1}; }), before);
  EXPECT_NE(changed([](auto& s) { s.gguf.add_bos = false; }), before);
  EXPECT_NE(changed([](auto& s) { s.gguf.eos_id = 1; }), before);
}

}  // namespace
}  // namespace toroid
