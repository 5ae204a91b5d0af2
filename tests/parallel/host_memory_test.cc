// What is free: of the machine, of control groups of both versions and of all above them.
#include "parallel/host_memory.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

namespace toroid {
namespace {

class HostMemory : public testing::Test {
 protected:
  HostMemory()
      : root_(testing::TempDir() + "/host_memory_" +
              testing::UnitTest::GetInstance()->current_test_info()->name()) {
    std::filesystem::remove_all(root_);
  }
  ~HostMemory() override { std::filesystem::remove_all(root_); }
  void Write(const std::string& path, const std::string& text) const {
    std::filesystem::create_directories(std::filesystem::path(root_ + path).parent_path());
    std::ofstream(root_ + path) << text;
  }
  std::optional<int64_t> Free() const { return FreeMemory(root_); }
  const std::string root_;
};

TEST_F(HostMemory, IsTheLeastOfMachineAndGroups) {
  EXPECT_EQ(Free(), std::nullopt);  // a system that says nothing
  Write("/proc/meminfo", "MemTotal: 9000 kB\nMemFree: 10 kB\nMemAvailable:  4000 kB\n");
  EXPECT_EQ(Free(), 4000 * 1024);
  Write("/proc/self/cgroup", "0::/a/b\n");
  EXPECT_EQ(Free(), 4000 * 1024);  // the group has no files
  Write("/sys/fs/cgroup/a/b/memory.max", "max\n");
  Write("/sys/fs/cgroup/a/b/memory.current", "5\n");
  EXPECT_EQ(Free(), 4000 * 1024);  // and then no limit
  Write("/sys/fs/cgroup/a/memory.max", "1000000\n");
  Write("/sys/fs/cgroup/a/memory.current", "700000\n");
  EXPECT_EQ(Free(), 300000);  // the one above has one
  Write("/sys/fs/cgroup/a/memory.stat", "anon 1\ninactive_file 200000\n");
  EXPECT_EQ(Free(), 500000);
  Write("/sys/fs/cgroup/a/b/memory.max", "4\n");
  EXPECT_EQ(Free(), 0);  // more is used than may be
}

TEST_F(HostMemory, ReadsGroupsOfVersionOne) {
  Write("/proc/meminfo", "MemAvailable: 4000 kB\n");
  Write("/proc/self/cgroup", "5:cpu:/\n4:memory:/x\n");
  Write("/sys/fs/cgroup/memory/x/memory.limit_in_bytes", "1000\n");
  Write("/sys/fs/cgroup/memory/x/memory.usage_in_bytes", "900\n");
  Write("/sys/fs/cgroup/memory/x/memory.stat", "inactive_file 1\ntotal_inactive_file 50\n");
  EXPECT_EQ(Free(), 150);
}

TEST_F(HostMemory, IsSomethingHere) { EXPECT_GT(FreeMemory().value_or(1), 0); }

}  // namespace
}  // namespace toroid
