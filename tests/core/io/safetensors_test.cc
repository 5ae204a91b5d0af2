#include "core/io/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/model_files.h"

namespace toroid {
namespace {

using testing::HasSubstr;

absl::StatusOr<std::vector<SafetensorsTensor>> Parse(const std::string& bytes) {
  return ParseSafetensors({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()}, "f");
}

std::string ErrorOf(const std::string& header, size_t data_bytes) {
  return std::string(
      Parse(SafetensorsBytes(header, std::string(data_bytes, 'x'))).status().message());
}

constexpr const char* kGood =
    R"({"__metadata__":{"format":"pt"},"b":{"dtype":"F32","shape":[2,1],"data_offsets":[4,12]},)"
    R"("a":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]},"e":{"dtype":"F32","shape":[0],"data_offsets":[12,12]}}   )";

TEST(Safetensors, ReadsInOrderOfBytes) {
  const std::string bytes = SafetensorsBytes(kGood, "abcdefghijkl");
  const auto tensors = Parse(bytes);
  ASSERT_TRUE(tensors.ok()) << tensors.status();
  ASSERT_EQ(tensors->size(), 3u);
  EXPECT_EQ((*tensors)[0].name, "a");
  EXPECT_EQ((*tensors)[0].dtype, DType::kBF16);
  EXPECT_EQ((*tensors)[1].shape, (std::vector<int64_t>{2, 1}));
  EXPECT_EQ((*tensors)[1].data[0], 'e');
  EXPECT_EQ((*tensors)[2].data.size(), 0u);
}

TEST(Safetensors, EmptyHeaderIsAModelWithoutTensors) { EXPECT_EQ(ErrorOf("{}", 0), ""); }

TEST(Safetensors, BadFilesAreRefusedByRule) {
  struct Case {
    const char* header;
    size_t data;
    const char* message;
  };
  const Case cases[] = {
      {"", 0, "does not begin with {"},
      {" {}", 0, "does not begin with {"},
      {"[]", 0, "does not begin with {"},
      {"{", 0, "is no valid JSON"},
      {"{}{}", 0, "is no valid JSON"},
      {"{\"a\":\"\xff\"}", 0, "the header"},
      {R"({"a":1})", 0, "holds a number where none belongs"},
      {R"({"a":null})", 0, "holds a null"},
      {R"({"a":[]})", 0, "holds an array where none belongs"},
      {R"({"a":"x"})", 0, "holds a text where none belongs"},
      {R"({"a":{}})", 0, "without all of dtype, shape and data_offsets"},
      {R"({"a":{"dtype":"F32","shape":[1]}})", 4, "without all of"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0]}})", 4, "without two data_offsets"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4,4]}})", 4, "over two data_offsets"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1}})", 4, "unknown field x"},
      {R"({"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 4,
       "with dtype twice"},
      {R"({"a":{"dtype":"F32","shape":[1],"shape":[1],"data_offsets":[0,4]}})", 4,
       "with shape twice"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[0],"data_offsets":[4,4]}})",
       4, "has a twice"},
      {R"({"__metadata__":{"k":"1","k":"2"}})", 0, "k twice in __metadata__"},
      {R"({"__metadata__":{"k":1}})", 0, "holds a number where none belongs"},
      {R"({"__metadata__":{"k":{}}})", 0, "holds an object where none belongs"},
      {R"({"a":{"dtype":"F32","shape":[[1]],"data_offsets":[0,4]}})", 4, "holds an array"},
      {R"({"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}})", 4, "a negative number"},
      {R"({"a":{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}})", 4, "no 64-bit unsigned"},
      {R"({"a":{"dtype":"F32","shape":[99999999999999999999],"data_offsets":[0,4]}})", 4,
       "no 64-bit unsigned"},
      {R"({"a":{"dtype":"F32","shape":[18446744073709551615],"data_offsets":[0,4]}})", 4,
       "overflows"},
      {R"({"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}})", 0,
       "overflows"},
      {R"({"a":{"dtype":"F32","shape":[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1],"data_offsets":[0,4]}})",
       4, "over 16 dimensions"},
      {R"({"a":{"dtype":"F33","shape":[1],"data_offsets":[0,4]}})", 4, "unknown dtype F33"},
      {R"({"a":{"dtype":"","shape":[1],"data_offsets":[0,4]}})", 4, "without all of dtype"},
      {R"({"a":{"dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4]}})", 4, "dtype F8_E4M3, which"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}})", 4, "data_offsets 4 to 0"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,8]}})", 8, "its shape takes 4 bytes"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 3, "may be truncated"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 5, "cover 4 of 5 bytes"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})", 8, "after a hole"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
       8, "within the tensor before it"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})",
       4, "within the tensor before it"},
  };
  for (const Case& test : cases) {
    EXPECT_THAT(ErrorOf(test.header, test.data), HasSubstr(test.message)) << test.header;
  }
}

TEST(Safetensors, BadLengthsAreRefused) {
  const auto error = [](const std::string& bytes) {
    return std::string(Parse(bytes).status().message());
  };
  EXPECT_THAT(error(""), HasSubstr("shorter than 8"));
  EXPECT_THAT(error("1234567"), HasSubstr("shorter than 8"));
  EXPECT_THAT(error(Raw(uint64_t{3}) + "{}"), HasSubstr("beyond the file"));
  EXPECT_THAT(error(Raw(uint64_t{100000001}) + "{}"), HasSubstr("above 100000000"));
  EXPECT_THAT(error(Raw(~uint64_t{0}) + "{}"), HasSubstr("above 100000000"));
}

TEST(Safetensors, EveryTruncationIsRefused) {
  const std::string bytes = SafetensorsBytes(kGood, "abcdefghijkl");
  for (size_t length = 0; length < bytes.size(); ++length) {
    EXPECT_FALSE(Parse(bytes.substr(0, length)).ok()) << length;
  }
}

// A header of brackets alone would be a tree far larger than itself if it were built.
TEST(Safetensors, DeepNestingStopsAtOnce) {
  EXPECT_THAT(ErrorOf("{\"a\":" + std::string(1 << 20, '['), 0), HasSubstr("holds an array"));
}

}  // namespace
}  // namespace toroid
