#include "core/io/checkpoint_shard.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <numeric>

#include "core/io/checkpoint_reader.h"
#include "core/io/random_model.h"
#include "tests/support/model_files.h"

namespace toroid {
namespace {

using ::testing::HasSubstr;

void FlipBit(const std::string& path, int64_t offset) {
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  file.seekg(offset);
  const char byte = char(file.get() ^ 4);
  file.seekp(offset);
  file.put(byte);
}

// Three blocks, the last one short.
std::vector<uint8_t> Data() {
  std::vector<uint8_t> data((2 << 20) + 12345);
  for (size_t i = 0; i < data.size(); ++i) data[i] = uint8_t(i * 7 + (i >> 8));
  return data;
}

constexpr ShardHeader kHeader = {0x1234, 100, 2, 8};

TEST(CheckpointShard, ReadsAnyPartOfWhatWasWritten) {
  TemporaryDirectory directory;
  for (const std::vector<uint8_t>& data :
       {Data(), std::vector<uint8_t>(), std::vector<uint8_t>(1 << 20, 3)}) {
    const std::string path = directory.path() + "/" + std::to_string(data.size());
    const auto seal = WriteShard(PosixFiles(), path, kHeader, data);
    ASSERT_TRUE(seal.ok()) << seal.status();
    EXPECT_EQ(seal->bytes, int64_t(std::filesystem::file_size(path)));
    EXPECT_EQ(seal->bytes, ShardBytes(int64_t(data.size())));
    const auto reader = ShardReader::Open(PosixFiles(), path, kHeader, *seal);
    ASSERT_TRUE(reader.ok()) << reader.status();
    for (size_t begin : {size_t{0}, size_t{5}, size_t{1} << 20, (size_t{1} << 20) - 3}) {
      if (begin > data.size()) continue;
      for (size_t count : {size_t{0}, size_t{1}, size_t{100}, size_t{1} << 21}) {
        std::vector<uint8_t> out(std::min(count, data.size() - begin));
        ASSERT_TRUE((*reader)->Read(int64_t(begin), absl::MakeSpan(out)).ok());
        EXPECT_TRUE(std::equal(out.begin(), out.end(), data.begin() + int64_t(begin)));
      }
    }
  }
}

TEST(CheckpointShard, TellsWhatIsWrong) {
  TemporaryDirectory directory;
  const std::string path = directory.path() + "/shard";
  const std::vector<uint8_t> data = Data();
  const ShardSeal seal = *WriteShard(PosixFiles(), path, kHeader, data);
  const auto refusal = [&](const ShardHeader& header) {
    const auto reader = ShardReader::Open(PosixFiles(), path, header, seal);
    std::vector<uint8_t> all(data.size());
    const absl::Status status =
        reader.ok() ? (*reader)->Read(0, absl::MakeSpan(all)) : reader.status();
    EXPECT_TRUE(status.ok() || absl::IsDataLoss(status)) << status;
    EXPECT_TRUE(status.ok() || status.message().find(path) != std::string::npos) << status;
    return std::string(status.message());
  };
  EXPECT_EQ(refusal(kHeader), "");
  EXPECT_THAT(refusal({0x1234, 50, 2, 8}), HasSubstr("it is of step 100, the checkpoint of 50"));
  EXPECT_THAT(refusal({0x1234, 100, 3, 8}), HasSubstr("rank 2 of 8, not of rank 3 of 8"));
  EXPECT_THAT(refusal({0x1235, 100, 2, 8}), HasSubstr("another checkpoint of step 100"));
  // Every part of the file: the first and the last byte of each.
  const int64_t end = seal.bytes, hashes = end - 24;
  for (int64_t offset : {int64_t{0}, int64_t{40}, int64_t{63}, int64_t{64}, int64_t{64} + (1 << 20),
                         hashes - 1, hashes, end - 1}) {
    FlipBit(path, offset);
    EXPECT_THAT(refusal(kHeader), HasSubstr("damaged")) << offset;
    FlipBit(path, offset);
    EXPECT_EQ(refusal(kHeader), "") << offset;
  }
  // What is sound stays readable beside damage: a rank needs only what it reads.
  FlipBit(path, 64);
  const auto reader = ShardReader::Open(PosixFiles(), path, kHeader, seal);
  std::vector<uint8_t> some(100);
  EXPECT_TRUE((*reader)->Read(1 << 20, absl::MakeSpan(some)).ok());
  EXPECT_FALSE((*reader)->Read((1 << 20) - 1, absl::MakeSpan(some)).ok());
  std::filesystem::resize_file(path, size_t(end - 1));
  EXPECT_THAT(refusal(kHeader), HasSubstr("bytes, the manifest says"));
  std::filesystem::resize_file(path, 10);
  EXPECT_THAT(refusal(kHeader), HasSubstr("10 bytes, the manifest says"));
  std::filesystem::remove(path);
  EXPECT_THAT(refusal(kHeader), HasSubstr("missing"));
}

// A parameter written in columns, runs and rows, more files than are held open: any rectangle and
// run of it is what it was.
TEST(CheckpointReader, ReadsAnyRunOfAnyRectangle) {
  constexpr int64_t kRows = 11, kCols = 7, kShards = 20;
  TemporaryDirectory directory;
  CheckpointManifest m;
  m.model = *RandomShape("tiny-mha");
  m.data = kShards;
  m.dtype = DType::kF32;
  m.parameters = {{"w", kRows, kCols}};
  m.shards.resize(kShards);
  // Columns 0..2 of all rows in runs of three, the others a row a shard, cut at element 2.
  for (int64_t i = 0; i < 11; ++i) {
    m.shards[i].pieces.push_back({0, {0, kRows, 0, 3}, 3 * i, 3});
    m.shards[19 - i].pieces.push_back({0, {i, 1, 3, 4}, 0, 2});
    m.shards[(i + 5) % 20].pieces.push_back({0, {i, 1, 3, 4}, 2, 2});
  }
  const auto value = [&](int64_t kind, int64_t row, int64_t col) {
    return float(kind * 1000 + row * kCols + col);
  };
  for (int64_t rank = 0; rank < kShards; ++rank) {
    std::vector<float> data;
    for (int64_t kind = 0; kind < 3; ++kind) {
      for (const CheckpointPiece& piece : m.shards[rank].pieces) {
        for (int64_t i = piece.begin; i < piece.begin + piece.count; ++i) {
          data.push_back(value(kind, piece.slice.row_begin + i / piece.slice.col_count,
                               piece.slice.col_begin + i % piece.slice.col_count));
        }
      }
    }
    const auto seal = WriteShard(PosixFiles(), directory.path() + "/" + ShardName(rank, kShards),
                                 {m.save_id, m.state.step, rank, kShards},
                                 {reinterpret_cast<uint8_t*>(data.data()), data.size() * 4});
    m.shards[rank].bytes = seal->bytes;
    m.shards[rank].hash = seal->hash;
  }
  directory.Write(kManifestName, m.ToText());
  const auto reader = CheckpointReader::Open(PosixFiles(), directory.path());
  ASSERT_TRUE(reader.ok()) << reader.status();
  EXPECT_TRUE((*reader)->Verify().ok());
  EXPECT_EQ((*reader)->FindParameter("w"), 0);
  EXPECT_EQ((*reader)->FindParameter("v"), -1);
  int64_t read = 0;
  for (const ParamSlice slice :
       {ParamSlice{0, kRows, 0, kCols}, ParamSlice{0, kRows, 0, 3}, ParamSlice{2, 5, 1, 4},
        ParamSlice{10, 1, 6, 1}, ParamSlice{0, 11, 3, 4}, ParamSlice{3, 2, 3, 4}}) {
    const int64_t size = slice.row_count * slice.col_count;
    for (int64_t begin = 0; begin < size; begin += 3) {
      for (int64_t count : {int64_t{1}, int64_t{5}, size - begin}) {
        if (begin + count > size) continue;
        for (int kind = 0; kind < 3; ++kind) {
          std::vector<float> out(size_t(count), -1);
          ASSERT_TRUE((*reader)
                          ->Read(CheckpointReader::Kind(kind), 0, slice, begin, count, out.data())
                          .ok());
          for (int64_t i = 0; i < count; ++i, ++read) {
            const int64_t at = begin + i;
            ASSERT_EQ(out[i], value(kind, slice.row_begin + at / slice.col_count,
                                    slice.col_begin + at % slice.col_count));
          }
        }
      }
    }
  }
  EXPECT_GT(read, 1000);
  FlipBit(directory.path() + "/" + ShardName(17, kShards), 70);
  EXPECT_THAT(std::string((*reader)->Verify().message()), HasSubstr(ShardName(17, kShards)));
}

}  // namespace
}  // namespace toroid
