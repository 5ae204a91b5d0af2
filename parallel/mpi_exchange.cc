#include "parallel/mpi_exchange.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "parallel/mpi_session.h"

namespace toroid {
namespace {

constexpr int kTag = 1;  // messages of a pair match in order: one tag is enough
// A broadcast of a few bytes to a few ranks goes straight to each: in MPI's tree one that sleeps or
// computes holds up those behind it.
constexpr int64_t kDirectBytes = 8 << 10;
constexpr int kDirectRanks = 64;

}  // namespace

void MpiExchange::Started(int code, const char* what, int peer, Awaited awaited) {
  if (code == MPI_SUCCESS) {
    awaited_.push_back(awaited);
    return;
  }
  requests_.pop_back();
  if (first_error_.ok()) first_error_ = MpiError(code, absl::StrCat(what, " rank ", peer));
}

void MpiExchange::Send(const void* data, int64_t bytes, int to) {
  for (int64_t begin = 0; begin < bytes; begin += cut_) {
    const int count = static_cast<int>(std::min(cut_, bytes - begin));
    requests_.push_back(MPI_REQUEST_NULL);
    Started(MPI_Isend(static_cast<const char*>(data) + begin, count, MPI_BYTE, to, kTag, comm_,
                      &requests_.back()),
            "sending to", to, {to, -1});
  }
}

void MpiExchange::Receive(void* data, int64_t bytes, int from) {
  for (int64_t begin = 0; begin < bytes; begin += cut_) {
    const int count = static_cast<int>(std::min(cut_, bytes - begin));
    requests_.push_back(MPI_REQUEST_NULL);
    Started(MPI_Irecv(static_cast<char*>(data) + begin, count, MPI_BYTE, from, kTag, comm_,
                      &requests_.back()),
            "receiving from", from, {from, count});
  }
}

void MpiExchange::Broadcast(void* data, int64_t bytes, int root) {
  int rank = 0, size = 1;
  MPI_Comm_rank(comm_, &rank);
  MPI_Comm_size(comm_, &size);
  if (bytes <= kDirectBytes && size <= kDirectRanks) {
    if (rank != root) return Receive(data, bytes, root);
    for (int d = 1; d < size; ++d) Send(data, bytes, (root + d) % size);
    return;
  }
  for (int64_t begin = 0; begin < bytes; begin += cut_) {
    const int count = static_cast<int>(std::min(cut_, bytes - begin));
    requests_.push_back(MPI_REQUEST_NULL);
    Started(MPI_Ibcast(static_cast<char*>(data) + begin, count, MPI_BYTE, root, comm_,
                       &requests_.back()),
            "broadcasting from", root, {root, -1});
  }
}

void MpiExchange::Barrier() {
  requests_.push_back(MPI_REQUEST_NULL);
  Started(MPI_Ibarrier(comm_, &requests_.back()), "barrier", 0, {0, -1});
}

// What went wrong in a finished Testall, or OK. `code`: what it returned.
absl::Status MpiExchange::Problem(int code) {
  if (code != MPI_SUCCESS && code != MPI_ERR_IN_STATUS) return MpiError(code, "MPI_Testall");
  for (size_t i = 0; i < requests_.size(); ++i) {
    const auto [peer, bytes] = awaited_[i];
    const int error = code == MPI_SUCCESS ? MPI_SUCCESS : statuses_[i].MPI_ERROR;
    if (error == MPI_ERR_PENDING) continue;
    if (error != MPI_SUCCESS) {
      return MpiError(error, absl::StrCat("message ", bytes < 0 ? "to" : "from", " rank ", peer));
    }
    if (bytes < 0) continue;
    int count = 0;
    MPI_Get_count(&statuses_[i], MPI_BYTE, &count);
    if (count != bytes) {
      return absl::InternalError(
          absl::StrCat("expected ", bytes, " bytes from rank ", peer, ", which sent ", count));
    }
  }
  return absl::OkStatus();
}

bool MpiExchange::Poll(absl::Status& error) {
  if (first_error_.ok() && !requests_.empty()) {
    statuses_.resize(requests_.size());
    for (MPI_Status& status : statuses_) status.MPI_ERROR = MPI_SUCCESS;
    int done = 0;
    const int code =
        MPI_Testall(static_cast<int>(requests_.size()), requests_.data(), &done, statuses_.data());
    if (code == MPI_SUCCESS && !done) return false;
    first_error_ = Problem(code);
  }
  error = first_error_;
  requests_.clear();
  awaited_.clear();
  return true;
}

}  // namespace toroid
