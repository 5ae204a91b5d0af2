#include "core/io/ticking_files.h"

#include <utility>

namespace toroid {
namespace {

template <typename Result>
Result Ticked(std::atomic<int64_t>* ticks, Result result) {
  if (ticks != nullptr) ticks->fetch_add(1, std::memory_order_relaxed);
  return result;
}

class TickingWritable final : public WritableFile {
 public:
  TickingWritable(std::unique_ptr<WritableFile> base, std::atomic<int64_t>* ticks)
      : base_(std::move(base)), ticks_(ticks) {}
  absl::Status Append(absl::Span<const uint8_t> bytes) override {
    return Ticked(ticks_, base_->Append(bytes));
  }
  absl::Status Sync() override { return Ticked(ticks_, base_->Sync()); }
  absl::Status Close() override { return Ticked(ticks_, base_->Close()); }

 private:
  const std::unique_ptr<WritableFile> base_;
  std::atomic<int64_t>* const ticks_;
};

class TickingReadable final : public ReadableFile {
 public:
  TickingReadable(std::unique_ptr<ReadableFile> base, std::atomic<int64_t>* ticks)
      : base_(std::move(base)), ticks_(ticks) {}
  int64_t size() const override { return base_->size(); }
  absl::Status Read(int64_t offset, absl::Span<uint8_t> out) const override {
    return Ticked(ticks_, base_->Read(offset, out));
  }

 private:
  const std::unique_ptr<ReadableFile> base_;
  std::atomic<int64_t>* const ticks_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<WritableFile>> TickingFiles::Create(const std::string& path) {
  auto file = Ticked(ticks_, base_.Create(path));
  if (!file.ok()) return file.status();
  return std::make_unique<TickingWritable>(*std::move(file), ticks_);
}

absl::StatusOr<std::unique_ptr<ReadableFile>> TickingFiles::Open(const std::string& path) {
  auto file = Ticked(ticks_, base_.Open(path));
  if (!file.ok()) return file.status();
  return std::make_unique<TickingReadable>(*std::move(file), ticks_);
}

absl::StatusOr<std::vector<std::string>> TickingFiles::List(const std::string& directory) {
  return Ticked(ticks_, base_.List(directory));
}
absl::Status TickingFiles::CreateDirectory(const std::string& path) {
  return Ticked(ticks_, base_.CreateDirectory(path));
}
absl::Status TickingFiles::SyncDirectory(const std::string& path) {
  return Ticked(ticks_, base_.SyncDirectory(path));
}
absl::Status TickingFiles::Rename(const std::string& from, const std::string& to) {
  return Ticked(ticks_, base_.Rename(from, to));
}
absl::Status TickingFiles::RemoveFile(const std::string& path) {
  return Ticked(ticks_, base_.RemoveFile(path));
}
absl::Status TickingFiles::RemoveDirectory(const std::string& path) {
  return Ticked(ticks_, base_.RemoveDirectory(path));
}

}  // namespace toroid
