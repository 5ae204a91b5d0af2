#include "kernels/dequantize.h"

#include <gtest/gtest.h>

#include <cstring>

#include "tests/support/golden.h"

namespace toroid {
namespace {

std::vector<uint8_t> FromHex(const std::string& hex) {
  std::vector<uint8_t> bytes;
  for (size_t i = 0; i < hex.size(); i += 2) {
    bytes.push_back(uint8_t(std::stoi(hex.substr(i, 2), nullptr, 16)));
  }
  return bytes;
}

DType TypeOf(const std::string& ggml_name) {
  std::string name = ggml_name;
  for (char& c : name) c = char(std::tolower(c));
  for (int type = 0; type <= int(DType::kQ6_K); ++type) {
    if (Info(DType(type)).name == name) return DType(type);
  }
  ADD_FAILURE() << ggml_name;
  return DType::kF32;
}

// Bit for bit what gguf.quants.dequantize gives, on blocks with extreme scales too.
TEST(Dequantize, EqualsGgufPython) {
  const Golden golden = Golden::Load("gguf/blocks");
  int types = 0;
  for (const auto& test : golden["cases"]) {
    const std::string name = test["type"];
    const DType type = TypeOf(name);
    const int64_t count = test["weights"];
    ASSERT_EQ(RowBytes(type, count), test["bytes"].get<int64_t>()) << name;
    const std::vector<double> expected = golden.Array(name);
    size_t at = 0;
    for (const auto& block : test["blocks"]) {
      const std::vector<uint8_t> bytes = FromHex(block);
      std::vector<float> values(count);
      DecodeRow(type, bytes.data(), 0, count, values.data());
      for (const float value : values) {
        const float wanted = float(expected.at(at));
        EXPECT_TRUE(value == wanted || (std::isnan(value) && std::isnan(wanted)))
            << name << " element " << at << ": " << value << " vs " << wanted;
        ++at;
      }
    }
    EXPECT_EQ(at, expected.size());
    ++types;
  }
  EXPECT_EQ(types, 10);
}

// Negative control: a block shifted by one byte does not pass for the right one.
TEST(Dequantize, ShiftedBlockDiffers) {
  const Golden golden = Golden::Load("gguf/blocks");
  for (const auto& test : golden["cases"]) {
    const std::string name = test["type"];
    const int64_t count = test["weights"];
    std::vector<uint8_t> bytes = FromHex(test["blocks"][0]);
    bytes.erase(bytes.begin());
    bytes.push_back(0x3c);
    std::vector<float> values(count);
    DecodeRow(TypeOf(name), bytes.data(), 0, count, values.data());
    const std::vector<double> expected = golden.Array(name);
    bool differs = false;
    for (int64_t i = 0; i < count; ++i) differs |= !(values[i] == float(expected[i]));
    EXPECT_TRUE(differs) << name;
  }
}

// Files give no alignment.
TEST(Dequantize, PlainTypesAtAnyAddress) {
  const double doubles[] = {1.5, -2.0};
  uint8_t bytes[17];
  std::memcpy(bytes + 1, doubles, sizeof(doubles));
  float out[2];
  DecodeRow(DType::kF64, bytes + 1, 0, 2, out);
  EXPECT_EQ(out[0], 1.5f);
  EXPECT_EQ(out[1], -2.0f);
}

}  // namespace
}  // namespace toroid
