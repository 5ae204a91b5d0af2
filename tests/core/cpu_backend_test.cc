#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>
#include <thread>

#include "core/backend.h"
#include "tests/support/all_close.h"
#include "tests/support/kernel_inputs.h"

namespace toroid {
namespace {

using std::chrono::seconds;
using std::chrono::steady_clock;

// Memory of a backend that frees itself.
class Buffer {
 public:
  Buffer(Backend* ops, int64_t bytes) : ops_(ops), bytes_(bytes) {
    auto data = ops->Allocate(bytes);
    EXPECT_TRUE(data.ok());
    data_ = *data;
  }
  ~Buffer() { ops_->Free(data_, bytes_); }
  void* data() const { return data_; }

 private:
  Backend* ops_;
  int64_t bytes_;
  void* data_;
};

template <typename T>
Tensor View(DType type, std::initializer_list<int64_t> shape, std::vector<T>& x) {
  Tensor view(type, shape, x.data());
  EXPECT_EQ(view.bytes(), int64_t(x.size() * sizeof(T)));
  return view;
}

TEST(CpuBackend, AllocatesAlignedZerosAndGivesDiscardedPagesBack) {
  const auto ops = NewCpuBackend(DType::kF32, 1);
  const Buffer buffer(ops.get(), 40000);
  char* bytes = static_cast<char*>(buffer.data());
  EXPECT_EQ(reinterpret_cast<uintptr_t>(bytes) % 64, 0u);
  for (int i = 0; i < 40000; ++i) ASSERT_EQ(bytes[i], 0);
  std::memset(bytes, 1, 40000);
  ops->Discard(bytes + 100, 20000);
  // Whole pages inside [100, 20100) only: 4096 to 16384 are new, the rest is as it was.
  EXPECT_EQ(bytes[4095], 1);
  EXPECT_EQ(bytes[4096], 0);
  EXPECT_EQ(bytes[16383], 0);
  EXPECT_EQ(bytes[16384], 1);
}

TEST(CpuBackend, RefusesMoreThanThereIsNamingTheBytes) {
  const auto ops = NewCpuBackend(DType::kF32, 1);
  const auto data = ops->Allocate(int64_t{1} << 60);
  ASSERT_FALSE(data.ok());
  EXPECT_EQ(data.status().code(), absl::StatusCode::kOutOfRange);
  EXPECT_NE(std::string(data.status().message()).find("1152921504606846976"), std::string::npos);
}

TEST(CpuBackend, UploadsAndDownloadsStridedViews) {
  const auto ops = NewCpuBackend(DType::kF32, 2);
  const Stream s = ops->NewStream(false);
  std::vector<float> memory(6 * 10, 0.0f);
  const Tensor part = View(DType::kF32, {6, 10}, memory).Cols(2, 3);
  const std::vector<float> host = As<float>(RandomArray(18, 1));
  ops->Upload(s, host.data(), part);
  EXPECT_EQ(memory[2], host[0]);
  EXPECT_EQ(memory[12], host[3]);
  EXPECT_EQ(memory[5], 0.0f);
  std::vector<float> back(18);
  ops->Download(s, part, back.data());
  EXPECT_EQ(back, host);
  ops->Fill(s, part, 3);
  ops->Download(s, part, back.data());
  EXPECT_EQ(back, std::vector<float>(18, 3.0f));
  EXPECT_EQ(memory[5], 0.0f);
}

// One small layer by ops of the backend, against the same lines of the reference.
template <typename T>
void ExpectLayer(DType type) {
  const auto ops = NewCpuBackend(type, 2);
  const Stream s = ops->NewStream(false);
  const int64_t t = 10, h = 4, g = 2, dim = 8, width = 32;
  const reference::Array x = RandomArray(t * width, 1), gain = RandomArray(width, 2);
  const reference::Array wq = RandomArray(h * dim * width, 3, 0.2);
  const reference::Array wkv = RandomArray(2 * g * dim * width, 4, 0.2);
  reference::Array inv_freq = {1, 0.3, 0.1, 0.01};
  std::vector<int32_t> positions(t), kv_index = {0, 0, 1, 1};
  for (int i = 0; i < t; ++i) positions[i] = i;

  std::vector<T> x_data = As<T>(x), normed(t * width), q(t * h * dim), kv(t * 2 * g * dim);
  std::vector<T> wq_data = As<T>(wq), wkv_data = As<T>(wkv), o(t * h * dim), lse(t * h);
  std::vector<float> gain_data = As<float>(gain);
  Tensor normed_tD = View(type, {t, width}, normed);
  Tensor q_tD = View(type, {t, h * dim}, q), kv_tD = View(type, {t, 2 * g * dim}, kv);
  ops->RmsNorm(s, View(type, {t, width}, x_data), View(DType::kF32, {width}, gain_data), 1e-5,
               normed_tD);
  ops->MatMul(s, normed_tD, View(type, {h * dim, width}, wq_data), Tensor(), q_tD);
  ops->MatMul(s, normed_tD, View(type, {2 * g * dim, width}, wkv_data), Tensor(), kv_tD);
  const Tensor k_tgK = kv_tD.Cols(0, g * dim).Reshape({t, g, dim});
  const Tensor v_tgK = kv_tD.Cols(g * dim, g * dim).Reshape({t, g, dim});
  const Tensor positions_t = View(DType::kI32, {t}, positions);
  const Tensor inv_freq_K = View(DType::kF64, {dim / 2}, inv_freq);
  ops->Rope(s, q_tD.Reshape({t, h, dim}), positions_t, inv_freq_K, 1);
  ops->Rope(s, k_tgK, positions_t, inv_freq_K, 1);

  // Into pages of 4 tokens in the order 2, 0, 3.
  std::vector<int32_t> table = {2, 0, 3}, length = {int32_t(t)};
  std::vector<int64_t> slots(t);
  for (int64_t i = 0; i < t; ++i) slots[i] = table[i / 4] * 4 + i % 4;
  std::vector<T> k_pages(16 * g * dim), v_pages(16 * g * dim);
  KvView view;
  view.k = View(type, {16, g, dim}, k_pages), view.v = View(type, {16, g, dim}, v_pages);
  ops->KvWrite(s, k_tgK, View(DType::kI64, {t}, slots), view.k);
  ops->KvWrite(s, v_tgK, View(DType::kI64, {t}, slots), view.v);
  view.positions = positions_t;
  view.page_table = View(DType::kI32, {3}, table), view.page_tokens = 4;
  view.length = View(DType::kI32, {1}, length);
  AttentionSpec spec;
  spec.scale = 0.5;
  const Tensor o_thK = View(type, {t, h, dim}, o), lse_th = View(type, {t, h}, lse);
  ops->Fill(s, lse_th, -INFINITY);
  ops->AttendTile(s, q_tD.Reshape({t, h, dim}), positions_t, view, View(DType::kI32, {h}, kv_index),
                  spec, Tile{0, t, 0, t}, o_thK, lse_th);

  reference::AttentionInput in;
  in.heads = h, in.kv_heads = g, in.head_dim = dim, in.kv_index = kv_index, in.scale = 0.5;
  in.q_positions = in.k_positions = positions;
  const reference::Array n = reference::RmsNorm(x, gain, 1e-5);
  in.q_thK =
      reference::Rope(reference::MatMul(n, wq, {}, t, h * dim, width), positions, h, inv_freq, 1);
  const reference::Array both = reference::MatMul(n, wkv, {}, t, 2 * g * dim, width);
  for (int64_t i = 0; i < t; ++i) {
    const double* row = &both[i * 2 * g * dim];
    in.k_ngK.insert(in.k_ngK.end(), row, row + g * dim);
    in.v_ngK.insert(in.v_ngK.end(), row + g * dim, row + 2 * g * dim);
  }
  in.k_ngK = reference::Rope(in.k_ngK, positions, g, inv_freq, 1);
  const auto expected = reference::Attention(in);
  EXPECT_TRUE(AllClose(o, expected.o_thK));
  EXPECT_TRUE(AllClose(lse, expected.lse_th));

  length[0] = 5;  // negative control, and what `length` is for: later keys are not there
  ops->Fill(s, lse_th, -INFINITY);
  ops->AttendTile(s, q_tD.Reshape({t, h, dim}), positions_t, view, View(DType::kI32, {h}, kv_index),
                  spec, Tile{0, t, 0, t}, o_thK, lse_th);
  EXPECT_FALSE(AllClose(lse, expected.lse_th));
  in.k_positions.resize(5);
  EXPECT_TRUE(AllClose(lse, reference::Attention(in).lse_th));
}

TEST(CpuBackend, ALayerMatchesTheReference) {
  ExpectLayer<float>(DType::kF32);
  ExpectLayer<double>(DType::kF64);
}

TEST(CpuBackend, OpsOfNoRowsDoNothing) {
  const auto ops = NewCpuBackend(DType::kF32, 2);
  const Stream s = ops->NewStream(false);
  std::vector<float> w(6), none;
  const Tensor empty(DType::kF32, {0, 2}, nullptr), out(DType::kF32, {0, 3}, nullptr);
  ops->MatMul(s, empty, View(DType::kF32, {3, 2}, w), Tensor(), out);
  ops->Copy(s, empty, empty);
  ops->Fill(s, empty, 1);
  ops->SwiGlu(s, empty, empty, empty);
  ops->Add(s, empty, empty);
}

using CpuBackendDeathTest = testing::Test;

TEST(CpuBackendDeathTest, WrongShapesAbortWithBothOperands) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const auto ops = NewCpuBackend(DType::kF32, 1);
  const Stream s = ops->NewStream(false);
  std::vector<float> a(12), b(12), out(16);
  EXPECT_DEATH(ops->MatMul(s, View(DType::kF32, {3, 4}, a), View(DType::kF32, {4, 3}, b), Tensor(),
                           View(DType::kF32, {4, 4}, out)),
               "4 vs 3");
  std::vector<double> wide(12);
  EXPECT_DEATH(ops->Add(s, View(DType::kF32, {3, 4}, a), View(DType::kF64, {3, 4}, wide)),
               "f64 instead of f32");
  const Stream communication = ops->NewStream(true);
  EXPECT_DEATH(ops->Add(communication, View(DType::kF32, {3, 4}, a), View(DType::kF32, {3, 4}, b)),
               "communication stream");
}

// Waits for the condition as long as a slow machine may need; false after that.
template <typename Condition>
bool Eventually(Condition condition) {
  const auto until = steady_clock::now() + seconds(20);
  while (!condition()) {
    if (steady_clock::now() > until) return false;
    std::this_thread::yield();
  }
  return true;
}

TEST(CpuBackend, CommunicationMovesWithoutAJoin) {
  const auto ops = NewCpuBackend(DType::kF32, 1);
  const Stream comm = ops->NewStream(true);
  std::atomic<int> polls{0};
  for (int round = 0; round < 3; ++round) {  // from idle to busy and back, again and again
    polls = 0;
    comm.cpu->Enqueue([&] { return ++polls >= 5; });
    EXPECT_TRUE(Eventually([&] { return comm.cpu->idle(); }));
    EXPECT_EQ(polls, 5);
  }
}

TEST(CpuBackend, JoinWaitsForWhatWasGiven) {
  const auto ops = NewCpuBackend(DType::kF32, 1);
  const Stream s = ops->NewStream(false), comm = ops->NewStream(true);
  std::atomic<int> polls{0};
  comm.cpu->Enqueue([&] { return ++polls >= 1000; });
  ops->Join(s, comm);
  EXPECT_EQ(polls, 1000);
  EXPECT_EQ(comm.cpu->done(), comm.cpu->given());
  ops->Join(s, s);
  ops->Fork(s, comm);  // nothing to wait for: compute is done when its call returns
  EXPECT_TRUE(comm.cpu->idle());
}

TEST(CpuBackend, OneCommunicationStreamWaitsForAnother) {
  const auto ops = NewCpuBackend(DType::kF32, 1);
  const Stream first = ops->NewStream(true), second = ops->NewStream(true);
  std::atomic<bool> open{false}, passed{false};
  first.cpu->Enqueue([&] { return open.load(); });
  ops->Join(second, first);
  second.cpu->Enqueue([&] { return passed = true; });
  for (int i = 0; i < 1000; ++i) second.cpu->Drive();
  EXPECT_FALSE(passed);
  open = true;
  ops->Synchronize(second);
  EXPECT_TRUE(passed);
}

TEST(CpuBackend, CopiesOnACommunicationStreamKeepItsOrder) {
  const auto ops = NewCpuBackend(DType::kF32, 2);
  const Stream s = ops->NewStream(false), comm = ops->NewStream(true);
  std::vector<float> x(1000, 1.0f), out(1000, 0.0f);
  std::atomic<bool> arrived{false};
  comm.cpu->Enqueue([&] {
    if (!arrived) return false;
    x.assign(1000, 2.0f);  // as a receive would
    return true;
  });
  ops->Copy(comm, View(DType::kF32, {10, 100}, x), View(DType::kF32, {10, 100}, out));
  arrived = true;
  ops->Join(s, comm);
  EXPECT_EQ(out, std::vector<float>(1000, 2.0f));
}

TEST(CountingBackend, GivesDistinctAddressesAndZerosAndChecksShapes) {
  const auto ops = NewCountingBackend(DType::kF32);
  const Stream s = ops->NewStream(false);
  EXPECT_EQ(s.cpu, nullptr);
  std::vector<uintptr_t> seen;
  for (int64_t bytes : {int64_t{1}, int64_t{0}, int64_t{1} << 40, int64_t{100}}) {
    auto data = ops->Allocate(bytes);
    ASSERT_TRUE(data.ok());
    const uintptr_t address = reinterpret_cast<uintptr_t>(*data);
    EXPECT_NE(address, 0u);
    EXPECT_EQ(address % 64, 0u);
    EXPECT_GT(address, seen.empty() ? 0 : seen.back());
    seen.push_back(address);
  }
  Tensor x(DType::kF32, {3, 4}, reinterpret_cast<void*>(seen[2]));
  std::vector<float> host(12, 5.0f);
  ops->Upload(s, host.data(), x);
  ops->Download(s, x, host.data());
  EXPECT_EQ(host, std::vector<float>(12, 0.0f));
  const Tensor w(DType::kQ4_1, {1 << 20, 1 << 10}, reinterpret_cast<void*>(seen[2]));
  const Tensor in(DType::kF32, {7, 1 << 10}, reinterpret_cast<void*>(seen[2]));
  const Tensor out(DType::kF32, {7, 1 << 20}, reinterpret_cast<void*>(seen[2]));
  ops->MatMul(s, in, w, Tensor(), out);
  EXPECT_DEATH(ops->MatMul(s, in, w, Tensor(), in), "CHECK failed");
}

}  // namespace
}  // namespace toroid
