// A part of a share (exchange_layout.h) in two messages: chosen rows first, which are whole before
// the rest. Each element crosses once, with the same code as if all went at once, and the receiver
// joins the two to what one message would have been: what is merged and kept knows of one.
//
//   first   begin, width, number of rows (i64), a bit for each row (of a byte from its low bit on),
//           then codes of elements in chosen rows
//   rest    codes of all others
//
// both in the order of the part's runs; rows are those of the sender's stored range. Only codecs
// whose codes stand alone: a block's scale needs all of the block.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "parallel/exchange_layout.h"
#include "parallel/stored_rows.h"

namespace toroid {

inline constexpr bool SplitsByRows(Codec codec) { return !HasScales(codec); }

// Bytes of the two messages that one would not have, each time the part is sent.
int64_t RowsBytes(int64_t rows);

// One of the two payloads for a part of sends(). REQUIRES: SplitsByRows(own.codec).
SharedBytes PackRows(const ExchangePart& part, const CodedRange& own, const StoredRows& rows,
                     bool first, const BytePool& memory);

// What PackPart would have sent, for a part of receives(). InvalidArgument: they are not the two
// halves of it.
absl::StatusOr<SharedBytes> JoinRows(const ExchangePart& part, Codec codec, absl::string_view first,
                                     absl::string_view rest, const BytePool& memory);

}  // namespace toroid
