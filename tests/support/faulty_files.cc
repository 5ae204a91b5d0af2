#include "tests/support/faulty_files.h"

#include <filesystem>

#include "absl/strings/str_cat.h"
#include "core/check.h"
#include "core/status_macros.h"

namespace toroid {
namespace {

std::string Above(const std::string& path) {
  return std::filesystem::path(path).parent_path().string();
}

// The path, were the directory `from` called `to`.
std::string Moved(const std::string& path, const std::string& from, const std::string& to) {
  const bool inside = path == from || path.compare(0, from.size() + 1, from + "/") == 0;
  return inside ? to + path.substr(from.size()) : path;
}

}  // namespace

class FaultyFiles::File final : public WritableFile {
 public:
  File(FaultyFiles& owner, std::string path, std::unique_ptr<WritableFile> base,
       std::shared_ptr<Content> content)
      : owner_(owner),
        path_(std::move(path)),
        base_(std::move(base)),
        content_(std::move(content)) {}

  absl::Status Append(absl::Span<const uint8_t> bytes) override {
    return owner_.Append(content_, path_, *base_, bytes);
  }
  absl::Status Sync() override {
    std::lock_guard<std::mutex> lock(owner_.mutex_);
    TOROID_RETURN_IF_ERROR(owner_.Admit(path_));
    if (!owner_.lying_) content_->synced = content_->size;
    return absl::OkStatus();  // durable for LosePower: the disk itself need not be waited for
  }
  absl::Status Close() override {
    std::lock_guard<std::mutex> lock(owner_.mutex_);
    TOROID_RETURN_IF_ERROR(owner_.Admit(path_));
    return base_->Close();
  }

 private:
  FaultyFiles& owner_;
  const std::string path_;
  const std::unique_ptr<WritableFile> base_;
  const std::shared_ptr<Content> content_;
};

FaultyFiles::FaultyFiles(FileSystem& base, std::string graveyard)
    : base_(base), graveyard_(std::move(graveyard)) {}

FaultyFiles::~FaultyFiles() = default;

int64_t FaultyFiles::calls() {
  std::lock_guard<std::mutex> lock(mutex_);
  return calls_;
}

void FaultyFiles::KillAt(int64_t call) {
  std::lock_guard<std::mutex> lock(mutex_);
  kill_at_ = calls_ + call;
}

void FaultyFiles::FailAt(int64_t call) {
  std::lock_guard<std::mutex> lock(mutex_);
  fail_at_ = calls_ + call;
}

void FaultyFiles::SetSpace(int64_t bytes) {
  std::lock_guard<std::mutex> lock(mutex_);
  space_ = bytes;
}

void FaultyFiles::Hold() {
  std::lock_guard<std::mutex> lock(mutex_);
  held_ = true;
  waiting_ = false;
}

void FaultyFiles::WaitForWriter() {
  std::unique_lock<std::mutex> lock(mutex_);
  changed_.wait(lock, [this] { return waiting_; });
}

void FaultyFiles::Release() {
  std::lock_guard<std::mutex> lock(mutex_);
  held_ = false;
  changed_.notify_all();
}

void FaultyFiles::EndFaults() {
  kill_at_ = fail_at_ = space_ = -1;
  dead_ = lying_ = false;
}

void FaultyFiles::Revive() {
  std::lock_guard<std::mutex> lock(mutex_);
  EndFaults();
}

void FaultyFiles::LieAboutSyncs() {
  std::lock_guard<std::mutex> lock(mutex_);
  lying_ = true;
}

absl::Status FaultyFiles::Admit(const std::string& path) {
  ++calls_;
  if (calls_ == kill_at_) dead_ = true;
  if (dead_) return absl::UnavailableError(absl::StrCat(path, ": the writer was killed"));
  if (calls_ == fail_at_) return absl::UnavailableError(absl::StrCat(path, ": planted I/O error"));
  return absl::OkStatus();
}

absl::Status FaultyFiles::Append(const std::shared_ptr<Content>& content, const std::string& path,
                                 WritableFile& file, absl::Span<const uint8_t> bytes) {
  std::unique_lock<std::mutex> lock(mutex_);
  waiting_ = waiting_ || held_;
  changed_.notify_all();
  changed_.wait(lock, [this] { return !held_; });
  const bool was_dead = dead_;
  const absl::Status admitted = Admit(path);
  size_t count = admitted.ok() ? bytes.size() : !was_dead && dead_ ? bytes.size() / 2 : 0;
  const bool full = space_ >= 0 && int64_t(count) > space_;
  if (full) count = size_t(space_);
  if (space_ >= 0) space_ -= int64_t(count);
  TOROID_RETURN_IF_ERROR(file.Append(bytes.subspan(0, count)));
  content->size += int64_t(count);
  if (full) return absl::ResourceExhaustedError(absl::StrCat(path, ": No space left on device"));
  return admitted;
}

absl::StatusOr<std::unique_ptr<WritableFile>> FaultyFiles::Create(const std::string& path) {
  std::lock_guard<std::mutex> lock(mutex_);
  TOROID_RETURN_IF_ERROR(Admit(path));
  TOROID_ASSIGN_OR_RETURN(std::unique_ptr<WritableFile> file, base_.Create(path));
  changes_.push_back({Change::Kind::kFile, Above(path), path, ""});
  const auto content = std::make_shared<Content>();
  contents_[path] = content;
  return std::make_unique<File>(*this, path, std::move(file), content);
}

absl::StatusOr<std::unique_ptr<ReadableFile>> FaultyFiles::Open(const std::string& path) {
  return base_.Open(path);
}

absl::StatusOr<std::vector<std::string>> FaultyFiles::List(const std::string& directory) {
  return base_.List(directory);
}

absl::Status FaultyFiles::CreateDirectory(const std::string& path) {
  std::lock_guard<std::mutex> lock(mutex_);
  TOROID_RETURN_IF_ERROR(Admit(path));
  TOROID_RETURN_IF_ERROR(base_.CreateDirectory(path));
  changes_.push_back({Change::Kind::kDirectory, Above(path), path, ""});
  return absl::OkStatus();
}

absl::Status FaultyFiles::SyncDirectory(const std::string& path) {
  std::lock_guard<std::mutex> lock(mutex_);
  TOROID_RETURN_IF_ERROR(Admit(path));
  for (size_t i = 0; i < changes_.size() && !lying_;) {
    if (changes_[i].directory != path) {
      ++i;
      continue;
    }
    const Change durable = changes_[i];
    changes_.erase(changes_.begin() + int64_t(i));
    if (durable.kind != Change::Kind::kRename) continue;
    // What came before and lies inside is from now on known by the new name.
    for (size_t before = 0; before < i; ++before) {
      changes_[before].directory = Moved(changes_[before].directory, durable.other, durable.path);
      changes_[before].path = Moved(changes_[before].path, durable.other, durable.path);
    }
  }
  return absl::OkStatus();
}

void FaultyFiles::Follow(const std::string& from, const std::string& to) {
  std::map<std::string, std::shared_ptr<Content>> moved;
  for (const auto& [path, content] : contents_) moved[Moved(path, from, to)] = content;
  contents_ = std::move(moved);
}

absl::Status FaultyFiles::Rename(const std::string& from, const std::string& to) {
  std::lock_guard<std::mutex> lock(mutex_);
  TOROID_RETURN_IF_ERROR(Admit(from));
  // A file that is replaced is kept, as one that is removed.
  if (std::filesystem::is_regular_file(to) && std::filesystem::exists(from)) {
    const std::string grave = absl::StrCat(graveyard_, "/", ++buried_);
    TOROID_RETURN_IF_ERROR(base_.Rename(to, grave));
    changes_.push_back({Change::Kind::kRemoveFile, Above(to), to, grave});
    Follow(to, grave);
  }
  TOROID_RETURN_IF_ERROR(base_.Rename(from, to));
  changes_.push_back({Change::Kind::kRename, Above(to), to, from});
  Follow(from, to);
  return absl::OkStatus();
}

absl::Status FaultyFiles::RemoveFile(const std::string& path) {
  std::lock_guard<std::mutex> lock(mutex_);
  TOROID_RETURN_IF_ERROR(Admit(path));
  const std::string grave = absl::StrCat(graveyard_, "/", ++buried_);
  TOROID_RETURN_IF_ERROR(base_.Rename(path, grave));
  changes_.push_back({Change::Kind::kRemoveFile, Above(path), path, grave});
  return absl::OkStatus();
}

absl::Status FaultyFiles::RemoveDirectory(const std::string& path) {
  std::lock_guard<std::mutex> lock(mutex_);
  TOROID_RETURN_IF_ERROR(Admit(path));
  TOROID_RETURN_IF_ERROR(base_.RemoveDirectory(path));
  changes_.push_back({Change::Kind::kRemoveDirectory, Above(path), path, ""});
  return absl::OkStatus();
}

void FaultyFiles::Undo(const Change& change) {
  namespace fs = std::filesystem;
  switch (change.kind) {
    case Change::Kind::kFile:
    case Change::Kind::kDirectory:
      fs::remove_all(change.path);
      break;
    case Change::Kind::kRename:
      fs::rename(change.path, change.other);
      break;
    case Change::Kind::kRemoveFile:
      // A file of a directory whose removal is durable has no place to come back to.
      if (fs::exists(change.directory)) fs::rename(change.other, change.path);
      break;
    case Change::Kind::kRemoveDirectory:
      fs::create_directory(change.path);
      break;
  }
}

void FaultyFiles::LosePower() {
  std::lock_guard<std::mutex> lock(mutex_);
  for (const auto& [path, content] : contents_) {
    if (std::filesystem::exists(path)) std::filesystem::resize_file(path, size_t(content->synced));
  }
  for (auto change = changes_.rbegin(); change != changes_.rend(); ++change) Undo(*change);
  changes_.clear();
  contents_.clear();
  EndFaults();
}

}  // namespace toroid
