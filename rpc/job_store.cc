#include "rpc/job_store.h"

#include <sqlite3.h>

#include <variant>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "core/status_macros.h"

namespace toroid {
namespace {

constexpr int kSchema = 1;

absl::Status SqlError(sqlite3* db, absl::string_view doing) {
  const int code = sqlite3_errcode(db);
  const std::string text = absl::StrCat("job store: ", doing, ": ", sqlite3_errmsg(db));
  if (code == SQLITE_BUSY || code == SQLITE_LOCKED) {
    return absl::FailedPreconditionError(
        absl::StrCat("job store is in use: ", sqlite3_db_filename(db, "main"),
                     ": another controller holds it: stop that one or give --state another"));
  }
  if ((code & 0xff) == SQLITE_CONSTRAINT) return absl::AlreadyExistsError(text);
  if (code == SQLITE_FULL || (code & 0xff) == SQLITE_IOERR) {
    return absl::UnavailableError(absl::StrCat(text, ": check the disk"));
  }
  return absl::InternalError(text);
}

// One prepared statement, bound in order, stepped by the caller.
class Statement {
 public:
  using Value = std::variant<int64_t, std::string, std::monostate>;
  Statement(sqlite3* db, const std::string& sql, const std::vector<Value>& values) : db_(db) {
    if (sqlite3_prepare_v2(db, sql.c_str(), -1, &statement_, nullptr) != SQLITE_OK) return;
    for (size_t i = 0; i < values.size(); ++i) {
      const int column = static_cast<int>(i) + 1;
      if (const auto* number = std::get_if<int64_t>(&values[i])) {
        sqlite3_bind_int64(statement_, column, *number);
      } else if (const auto* bytes = std::get_if<std::string>(&values[i])) {
        sqlite3_bind_blob64(statement_, column, bytes->data(), bytes->size(), SQLITE_TRANSIENT);
      } else {
        sqlite3_bind_null(statement_, column);
      }
    }
  }
  ~Statement() { sqlite3_finalize(statement_); }
  Statement(const Statement&) = delete;
  Statement& operator=(const Statement&) = delete;

  // True: a row; false: done.
  absl::StatusOr<bool> Step(absl::string_view doing) {
    if (statement_ == nullptr) return SqlError(db_, doing);
    const int code = sqlite3_step(statement_);
    if (code == SQLITE_ROW) return true;
    if (code == SQLITE_DONE) return false;
    return SqlError(db_, doing);
  }
  int64_t Int(int column) { return sqlite3_column_int64(statement_, column); }
  std::string Bytes(int column) {
    const void* data = sqlite3_column_blob(statement_, column);
    const int size = sqlite3_column_bytes(statement_, column);
    return data == nullptr ? "" : std::string(static_cast<const char*>(data), size);
  }

 private:
  sqlite3* db_;
  sqlite3_stmt* statement_ = nullptr;
};

absl::Status Run(sqlite3* db, const std::string& sql,
                 const std::vector<Statement::Value>& values = {}) {
  Statement statement(db, sql, values);
  absl::StatusOr<bool> row = true;
  while (row.ok() && *row) row = statement.Step(sql.substr(0, 24));
  return row.status();
}

// Rolls back unless committed.
class Transaction {
 public:
  explicit Transaction(sqlite3* db) : db_(db), begun_(Run(db, "BEGIN IMMEDIATE")) {}
  ~Transaction() {
    if (begun_.ok() && !committed_) (void)Run(db_, "ROLLBACK");
  }
  const absl::Status& begun() const { return begun_; }
  absl::Status Commit() {
    TOROID_RETURN_IF_ERROR(Run(db_, "COMMIT"));
    committed_ = true;
    return absl::OkStatus();
  }

 private:
  sqlite3* db_;
  absl::Status begun_;
  bool committed_ = false;
};

constexpr char kJobColumns[] =
    "SELECT id, number, request_id, spec, state, status, sequence FROM jobs ";

StoredJob ReadJob(Statement& row) {
  return {row.Bytes(0),
          static_cast<uint64_t>(row.Int(1)),
          row.Bytes(2),
          row.Bytes(3),
          static_cast<int>(row.Int(4)),
          row.Bytes(5),
          static_cast<uint64_t>(row.Int(6))};
}

absl::StatusOr<StoredJob> GetOne(sqlite3* db, const std::string& where, const std::string& key) {
  Statement row(db, absl::StrCat(kJobColumns, where), {key});
  TOROID_ASSIGN_OR_RETURN(const bool found, row.Step("get"));
  if (!found) return absl::NotFoundError(absl::StrCat("no such job: ", key));
  return ReadJob(row);
}

absl::StatusOr<uint64_t> Bump(sqlite3* db, const std::string& job, const std::string& pod) {
  Statement row(db,
                "INSERT INTO epochs (job, pod, epoch) VALUES (?1, ?2, (SELECT COALESCE(MAX(epoch), "
                "0) + 1 FROM epochs WHERE job = ?1)) ON CONFLICT (job, pod) DO UPDATE SET epoch = "
                "excluded.epoch RETURNING epoch",
                {job, pod});
  TOROID_ASSIGN_OR_RETURN(const bool found, row.Step("bump epoch"));
  if (!found) return absl::InternalError("job store: no epoch came back");
  const uint64_t epoch = row.Int(0);
  TOROID_RETURN_IF_ERROR(row.Step("bump epoch").status());  // ends the statement: commits
  return epoch;
}

}  // namespace

absl::StatusOr<std::unique_ptr<JobStore>> JobStore::Open(const std::string& path) {
  sqlite3* db = nullptr;
  const int code =
      sqlite3_open_v2(path.c_str(), &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, nullptr);
  std::unique_ptr<JobStore> store(new JobStore(db));
  if (code != SQLITE_OK) {
    return absl::PermissionDeniedError(
        absl::StrCat("job store cannot be opened: ", path, ": ", sqlite3_errmsg(db)));
  }
  sqlite3_extended_result_codes(db, 0);
  // The exclusive mode keeps the lock of the first write until the file is closed.
  for (const char* sql :
       {"PRAGMA locking_mode = EXCLUSIVE", "PRAGMA journal_mode = WAL", "PRAGMA synchronous = FULL",
        "PRAGMA foreign_keys = ON", "BEGIN EXCLUSIVE",
        "CREATE TABLE IF NOT EXISTS jobs (number INTEGER PRIMARY KEY AUTOINCREMENT, id BLOB UNIQUE "
        "NOT NULL, request_id BLOB UNIQUE, spec BLOB NOT NULL, state INTEGER NOT NULL, status BLOB "
        "NOT NULL, sequence INTEGER NOT NULL)",
        "CREATE TABLE IF NOT EXISTS events (job BLOB NOT NULL REFERENCES jobs (id) ON DELETE "
        "CASCADE, sequence INTEGER NOT NULL, time_us INTEGER NOT NULL, status BLOB NOT NULL, "
        "PRIMARY KEY (job, sequence))",
        "CREATE TABLE IF NOT EXISTS epochs (job BLOB NOT NULL, pod BLOB NOT NULL, epoch INTEGER "
        "NOT NULL, PRIMARY KEY (job, pod))",
        "CREATE TABLE IF NOT EXISTS checkpoints (job BLOB PRIMARY KEY REFERENCES jobs (id) ON "
        "DELETE CASCADE, epoch INTEGER NOT NULL, step INTEGER NOT NULL, hash INTEGER NOT NULL)",
        "CREATE TABLE IF NOT EXISTS draining (pod BLOB PRIMARY KEY)"}) {
    TOROID_RETURN_IF_ERROR(Run(db, sql));
  }
  int version = 0;
  {
    Statement row(db, "PRAGMA user_version", {});
    TOROID_RETURN_IF_ERROR(row.Step("version").status());
    version = static_cast<int>(row.Int(0));
  }
  if (version > kSchema) {
    return absl::FailedPreconditionError(
        absl::StrCat("job store was written by a newer version: ", path, ": schema ", version,
                     ", known is ", kSchema));
  }
  TOROID_RETURN_IF_ERROR(Run(db, absl::StrCat("PRAGMA user_version = ", kSchema)));
  TOROID_RETURN_IF_ERROR(Run(db, "COMMIT"));
  return store;
}

JobStore::~JobStore() { sqlite3_close_v2(db_); }

absl::Status JobStore::Insert(const StoredJob& job, int64_t time_us) {
  Transaction transaction(db_);
  TOROID_RETURN_IF_ERROR(transaction.begun());
  Statement::Value request = std::monostate();
  if (!job.request_id.empty()) request = job.request_id;
  TOROID_RETURN_IF_ERROR(Run(db_,
                             "INSERT INTO jobs (id, request_id, spec, state, status, sequence) "
                             "VALUES (?, ?, ?, ?, ?, 1)",
                             {job.id, request, job.spec, int64_t{job.state}, job.status}));
  TOROID_RETURN_IF_ERROR(
      Run(db_, "INSERT INTO events (job, sequence, time_us, status) VALUES (?, 1, ?, ?)",
          {job.id, time_us, job.status}));
  return transaction.Commit();
}

absl::Status JobStore::Update(const std::string& id, int state, const std::string& status,
                              uint64_t sequence, int64_t time_us) {
  Transaction transaction(db_);
  TOROID_RETURN_IF_ERROR(transaction.begun());
  const auto number = static_cast<int64_t>(sequence);
  TOROID_RETURN_IF_ERROR(Run(db_,
                             "UPDATE jobs SET state = ?, status = ?, sequence = ? WHERE id = ?",
                             {int64_t{state}, status, number, id}));
  if (sqlite3_changes(db_) != 1) return absl::NotFoundError(absl::StrCat("no such job: ", id));
  TOROID_RETURN_IF_ERROR(
      Run(db_, "INSERT INTO events (job, sequence, time_us, status) VALUES (?, ?, ?, ?)",
          {id, number, time_us, status}));
  return transaction.Commit();
}

absl::Status JobStore::Commit(const std::string& id, const StoredCheckpoint& checkpoint,
                              const std::string& status) {
  Transaction transaction(db_);
  TOROID_RETURN_IF_ERROR(transaction.begun());
  TOROID_RETURN_IF_ERROR(Run(db_, "UPDATE jobs SET status = ? WHERE id = ?", {status, id}));
  if (sqlite3_changes(db_) != 1) return absl::NotFoundError(absl::StrCat("no such job: ", id));
  TOROID_RETURN_IF_ERROR(Run(
      db_,
      "INSERT INTO checkpoints (job, epoch, step, hash) VALUES (?, ?, ?, ?) ON CONFLICT (job) DO "
      "UPDATE SET epoch = excluded.epoch, step = excluded.step, hash = excluded.hash WHERE "
      "excluded.epoch >= epoch",
      {id, static_cast<int64_t>(checkpoint.epoch), checkpoint.step,
       static_cast<int64_t>(checkpoint.hash)}));
  if (sqlite3_changes(db_) != 1) {
    return absl::FailedPreconditionError(
        absl::StrCat("job ", id, ": the checkpoint of epoch ", checkpoint.epoch,
                     " is not committed: a later launch has committed one"));
  }
  return transaction.Commit();
}

absl::Status JobStore::Delete(const std::string& id) {
  TOROID_RETURN_IF_ERROR(Run(db_, "DELETE FROM jobs WHERE id = ?", {id}));
  if (sqlite3_changes(db_) != 1) return absl::NotFoundError(absl::StrCat("no such job: ", id));
  return absl::OkStatus();
}

absl::StatusOr<StoredJob> JobStore::Get(const std::string& id) {
  return GetOne(db_, "WHERE id = ?", id);
}

absl::StatusOr<StoredJob> JobStore::GetByRequest(const std::string& request) {
  return GetOne(db_, "WHERE request_id = ?", request);
}

absl::StatusOr<std::vector<StoredJob>> JobStore::List(const std::vector<int>& states,
                                                      uint64_t before, int limit) {
  std::string sql = absl::StrCat(kJobColumns, "WHERE (?1 = 0 OR number < ?1) ");
  if (!states.empty()) absl::StrAppend(&sql, "AND state IN (", absl::StrJoin(states, ","), ") ");
  absl::StrAppend(&sql, "ORDER BY number DESC LIMIT ?2");
  Statement row(db_, sql, {static_cast<int64_t>(before), int64_t{limit}});
  std::vector<StoredJob> out;
  while (true) {
    TOROID_ASSIGN_OR_RETURN(const bool more, row.Step("list"));
    if (!more) return out;
    out.push_back(ReadJob(row));
  }
}

absl::StatusOr<std::vector<StoredEvent>> JobStore::Events(const std::string& id,
                                                          uint64_t from_sequence) {
  Statement row(db_,
                "SELECT sequence, time_us, status FROM events WHERE job = ? AND sequence >= ? "
                "ORDER BY sequence",
                {id, static_cast<int64_t>(from_sequence)});
  std::vector<StoredEvent> out;
  while (true) {
    TOROID_ASSIGN_OR_RETURN(const bool more, row.Step("events"));
    if (!more) return out;
    out.push_back({static_cast<uint64_t>(row.Int(0)), row.Int(1), row.Bytes(2)});
  }
}

absl::StatusOr<StoredCheckpoint> JobStore::Committed(const std::string& id) {
  Statement row(db_, "SELECT epoch, step, hash FROM checkpoints WHERE job = ?", {id});
  TOROID_ASSIGN_OR_RETURN(const bool found, row.Step("committed"));
  if (!found) return absl::NotFoundError(absl::StrCat("no checkpoint of job ", id));
  return StoredCheckpoint{static_cast<uint64_t>(row.Int(0)), row.Int(1),
                          static_cast<uint64_t>(row.Int(2))};
}

absl::StatusOr<uint64_t> JobStore::BumpEpoch(const std::string& job, const std::string& pod) {
  return Bump(db_, job, pod);
}

absl::StatusOr<uint64_t> JobStore::BumpView() { return Bump(db_, "", ""); }

absl::Status JobStore::SetDraining(const std::string& pod, bool draining) {
  return Run(db_,
             draining ? "INSERT OR IGNORE INTO draining (pod) VALUES (?)"
                      : "DELETE FROM draining WHERE pod = ?",
             {pod});
}

absl::StatusOr<std::vector<std::string>> JobStore::Draining() {
  Statement row(db_, "SELECT pod FROM draining ORDER BY pod", {});
  std::vector<std::string> pods;
  while (true) {
    TOROID_ASSIGN_OR_RETURN(const bool more, row.Step("draining"));
    if (!more) return pods;
    pods.push_back(row.Bytes(0));
  }
}

}  // namespace toroid
