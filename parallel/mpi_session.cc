#include "parallel/mpi_session.h"

#include <mutex>

#include "absl/strings/str_cat.h"
#include "core/check.h"
#include "core/status_macros.h"
#include "parallel/launcher_environment.h"

namespace toroid {
namespace {

std::mutex current_mutex;
std::weak_ptr<MpiSession>& CurrentSession() {
  static std::weak_ptr<MpiSession> session;
  return session;
}

}  // namespace

absl::Status MpiError(int code, const std::string& what) {
  if (code == MPI_SUCCESS) return absl::OkStatus();
  char text[MPI_MAX_ERROR_STRING];
  int length = 0;
  MPI_Error_string(code, text, &length);
  return absl::UnavailableError(absl::StrCat(what, ": ", std::string(text, length)));
}

absl::StatusOr<std::shared_ptr<MpiSession>> MpiSession::Start(int* argc, char*** argv) {
  std::lock_guard<std::mutex> lock(current_mutex);
  int started = 0;
  MPI_Initialized(&started);
  if (started) return absl::FailedPreconditionError("MPI was already started in this process");
  int granted = MPI_THREAD_SINGLE;
  TOROID_RETURN_IF_ERROR(
      MpiError(MPI_Init_thread(argc, argv, MPI_THREAD_MULTIPLE, &granted), "MPI_Init_thread"));
  std::shared_ptr<MpiSession> session(new MpiSession());
  if (granted < MPI_THREAD_MULTIPLE) {
    return absl::FailedPreconditionError(
        "this MPI grants no MPI_THREAD_MULTIPLE: install one built with it (Open MPI of Debian "
        "is)");
  }
  int size = 1;
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  TOROID_RETURN_IF_ERROR(CheckPromisedSize(ThisLauncherEnvironment(), size));
  MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);  // inherited by those made from it
  TOROID_RETURN_IF_ERROR(session->OrderByHost());
  CurrentSession() = session;
  return session;
}

absl::Status MpiSession::OrderByHost() {
  int rank = 0, size = 1;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  MPI_Comm host;
  TOROID_RETURN_IF_ERROR(MpiError(
      MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, rank, MPI_INFO_NULL, &host),
      "MPI_Comm_split_type"));
  int lowest = rank;
  const absl::Status reduced = MpiError(MPI_Allreduce(&rank, &lowest, 1, MPI_INT, MPI_MIN, host),
                                        "MPI_Allreduce among a host");
  MPI_Comm_free(&host);
  TOROID_RETURN_IF_ERROR(reduced);
  // Equal keys are ordered by rank in MPI_COMM_WORLD.
  return MpiError(MPI_Comm_split(MPI_COMM_WORLD, 0, lowest, &world_), "MPI_Comm_split");
}

std::shared_ptr<MpiSession> MpiSession::Current() {
  std::lock_guard<std::mutex> lock(current_mutex);
  return CurrentSession().lock();
}

MpiSession::~MpiSession() {
  if (broken()) return;
  if (world_ != MPI_COMM_NULL) MPI_Comm_free(&world_);
  MPI_Finalize();
}

}  // namespace toroid
