// CHECK: our own mistakes (shape, device, protocol order) abort with both operands printed.
// Never used on data from outside: that is answered with an absl::Status.
#pragma once

#include <sstream>
#include <string>

namespace toroid {

// Prints "file:line: CHECK failed: text (detail)" to stderr and aborts. Thread-safe.
[[noreturn]] void CheckFailed(const char* file, int line, const char* text,
                              const std::string& detail);

template <typename A, typename B>
std::string CheckOperands(const A& a, const B& b) {
  std::ostringstream out;
  out << a << " vs " << b;
  return out.str();
}

}  // namespace toroid

#define TOROID_CHECK(condition)                                  \
  do {                                                           \
    if (!(condition)) [[unlikely]]                               \
      ::toroid::CheckFailed(__FILE__, __LINE__, #condition, ""); \
  } while (false)

#define TOROID_CHECK_MSG(condition, detail)                          \
  do {                                                               \
    if (!(condition)) [[unlikely]]                                   \
      ::toroid::CheckFailed(__FILE__, __LINE__, #condition, detail); \
  } while (false)

#define TOROID_CHECK_OP(a, op, b)                                       \
  do {                                                                  \
    auto&& check_a = (a);                                               \
    auto&& check_b = (b);                                               \
    if (!(check_a op check_b)) [[unlikely]]                             \
      ::toroid::CheckFailed(__FILE__, __LINE__, #a " " #op " " #b,      \
                            ::toroid::CheckOperands(check_a, check_b)); \
  } while (false)

#define TOROID_CHECK_EQ(a, b) TOROID_CHECK_OP(a, ==, b)
#define TOROID_CHECK_NE(a, b) TOROID_CHECK_OP(a, !=, b)
#define TOROID_CHECK_LE(a, b) TOROID_CHECK_OP(a, <=, b)
#define TOROID_CHECK_LT(a, b) TOROID_CHECK_OP(a, <, b)
#define TOROID_CHECK_GE(a, b) TOROID_CHECK_OP(a, >=, b)
#define TOROID_CHECK_GT(a, b) TOROID_CHECK_OP(a, >, b)
