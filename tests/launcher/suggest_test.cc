#include "launcher/suggest.h"

#include <gtest/gtest.h>

namespace toroid {
namespace {

TEST(Suggest, DistanceCountsEditsAndSwaps) {
  EXPECT_EQ(EditDistance("mesh", "mesh"), 0);
  EXPECT_EQ(EditDistance("mehs", "mesh"), 1);  // a swap is one edit
  EXPECT_EQ(EditDistance("mes", "mesh"), 1);
  EXPECT_EQ(EditDistance("", "abc"), 3);
  EXPECT_EQ(EditDistance("Mesh", "mesh"), 0);
}

TEST(Suggest, NearestIsNearOrNothing) {
  const std::vector<std::string> flags = {"--mesh", "--max-tokens", "--prompt", "--prompt-ids"};
  EXPECT_EQ(Nearest("--mehs", flags), "--mesh");
  EXPECT_EQ(Nearest("--max-token", flags), "--max-tokens");
  EXPECT_EQ(Nearest("--max", flags), "--max-tokens");  // a beginning that fits one only
  EXPECT_EQ(Nearest("--pizza-oven", flags), "");
  EXPECT_EQ(DidYouMean("--mehs", flags, "see --help"), ": did you mean --mesh?");
  EXPECT_EQ(DidYouMean("--pizza-oven", flags, "see --help"), ": see --help");
}

}  // namespace
}  // namespace toroid
