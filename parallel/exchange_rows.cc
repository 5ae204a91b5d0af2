#include "parallel/exchange_rows.h"

#include <cstring>

#include "absl/strings/str_cat.h"
#include "core/check.h"
#include "core/status_macros.h"

namespace toroid {
namespace {

constexpr int64_t kNumbers = 3;  // before the bits
constexpr int64_t kHead = kNumbers * sizeof(int64_t);

int64_t BitBytes(int64_t rows) { return (rows + 7) / 8; }

void WriteRows(const StoredRows& rows, char* out) {
  const int64_t count = int64_t(rows.chosen.size());
  const int64_t numbers[kNumbers] = {rows.begin, rows.width, count};
  std::memcpy(out, numbers, size_t(kHead));
  std::memset(out + kHead, 0, size_t(BitBytes(count)));
  for (int64_t r = 0; r < count; ++r) {
    if (rows.chosen[size_t(r)]) out[kHead + r / 8] |= char(1 << r % 8);
  }
}

// False: the payload does not begin with rows.
bool ReadRows(absl::string_view payload, StoredRows& rows) {
  constexpr int64_t kMost = int64_t{1} << 31;  // of each: products of two stay in 64 bits
  int64_t numbers[kNumbers];
  if (int64_t(payload.size()) < kHead) return false;
  std::memcpy(numbers, payload.data(), size_t(kHead));
  const auto [begin, width, count] = numbers;
  if (begin < 0 || width < 1 || width > kMost || count < 0 || count > kMost) return false;
  if (begin > kMost * kMost / 2 || kHead + BitBytes(count) > int64_t(payload.size())) return false;
  rows.begin = begin;
  rows.width = width;
  for (int64_t r = 0; r < count; ++r) {
    rows.chosen.push_back((payload[size_t(kHead + r / 8)] >> r % 8 & 1) != 0);
  }
  return true;
}

int64_t Elements(const ExchangePart& part) {
  int64_t elements = 0;
  for (const ExchangeRun& run : part.runs) elements += run.count;
  return elements;
}

}  // namespace

int64_t RowsBytes(int64_t rows) { return kHead + BitBytes(rows); }

SharedBytes PackRows(const ExchangePart& part, const CodedRange& own, const StoredRows& rows,
                     bool first, const BytePool& memory) {
  TOROID_CHECK(SplitsByRows(own.codec));
  const auto bytes = [&own](int64_t elements) { return CodeBytes(own.codec, elements); };
  std::vector<Range> sent;
  int64_t elements = 0;
  for (const ExchangeRun& run : part.runs) {
    rows.Split({run.own, run.own + run.count}, [&](Range range, bool chosen) {
      if (chosen != first) return;
      sent.push_back(range);
      elements += range.size();
    });
  }
  const int64_t head = first ? RowsBytes(int64_t(rows.chosen.size())) : 0;
  SharedBytes payload = memory.Take(size_t(head + bytes(elements)));
  char* out = payload.mutable_data();
  if (first) WriteRows(rows, out);
  out += head;
  for (const Range& range : sent) {
    std::memcpy(out, own.codes.data() + bytes(range.begin), size_t(bytes(range.size())));
    out += bytes(range.size());
  }
  return payload;
}

absl::StatusOr<SharedBytes> JoinRows(const ExchangePart& part, Codec codec, absl::string_view first,
                                     absl::string_view rest, const BytePool& memory) {
  TOROID_CHECK(SplitsByRows(codec));
  const int64_t all = CodeBytes(codec, Elements(part));
  StoredRows rows;
  const bool read = ReadRows(first, rows);
  if (read) first.remove_prefix(size_t(RowsBytes(int64_t(rows.chosen.size()))));
  int64_t chosen_bytes = 0;
  for (const ExchangeRun& run : part.runs) {
    rows.Split({run.peer, run.peer + run.count}, [&](Range range, bool chosen) {
      if (chosen) chosen_bytes += CodeBytes(codec, range.size());
    });
  }
  if (!read || int64_t(first.size()) != chosen_bytes ||
      int64_t(rest.size()) != all - chosen_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("exchange: rank ", part.rank, " of a peer pod sent ", first.size(), " and ",
                     rest.size(), " bytes of ", CodecName(codec), " codes in two messages where ",
                     all, " are due: are its model and mesh what this pod was told?"));
  }
  SharedBytes payload = memory.Take(size_t(all));
  char* out = payload.mutable_data();
  for (const ExchangeRun& run : part.runs) {
    rows.Split({run.peer, run.peer + run.count}, [&](Range range, bool chosen) {
      absl::string_view& from = chosen ? first : rest;
      const size_t bytes = size_t(CodeBytes(codec, range.size()));
      std::memcpy(out, from.data(), bytes);
      from.remove_prefix(bytes);
      out += bytes;
    });
  }
  return payload;
}

}  // namespace toroid
