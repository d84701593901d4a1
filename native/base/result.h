// Result<T>: a value, or an Error with a stable kind, an errno and the place it happened.
// The core is built without exceptions; every call that can fail for a reason outside the program
// returns one of these. Programmer mistakes are VBD_CHECK, which stays on in release builds.
#pragma once

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <string>
#include <utility>
#include <variant>

namespace vbd {

/// A broken invariant of ours (never of a guest's making): says where and aborts.
#define VBD_CHECK(condition)                                                                    \
    do {                                                                                        \
        if (!(condition)) [[unlikely]] {                                                        \
            std::fprintf(stderr, "vbdkit: broken invariant at %s:%d: %s\n", __FILE__, __LINE__, \
                         #condition);                                                           \
            std::abort();                                                                       \
        }                                                                                       \
    } while (0)

enum class ErrorKind {
    kInvalidArgument,  // the caller's request makes no sense
    kXen,              // a grant or event channel operation was refused
    kRing,             // the shared ring is corrupt
    kBacking,          // the disk's file or device failed
    kUnsupported,      // this kernel or build cannot do it
    kNoMemory,
};

struct Error {
    ErrorKind kind = ErrorKind::kInvalidArgument;
    int errno_code = 0;   // 0 where no system call failed
    std::string message;  // one line, without a trailing full stop
};

/// "opening /srv/a.raw: No such file or directory"
inline Error system_error(ErrorKind kind, int errno_code, std::string what) {
    what += ": ";
    what += std::strerror(errno_code);
    return Error{kind, errno_code, std::move(what)};
}

template <typename T>
class [[nodiscard]] Result {
  public:
    Result(T value) : state_(std::in_place_index<0>, std::move(value)) {}
    Result(Error error) : state_(std::in_place_index<1>, std::move(error)) {}

    explicit operator bool() const { return state_.index() == 0; }
    T& value() & {
        VBD_CHECK(*this);
        return *std::get_if<0>(&state_);
    }
    const T& value() const& {
        VBD_CHECK(*this);
        return *std::get_if<0>(&state_);
    }
    T&& value() && {
        VBD_CHECK(*this);
        return std::move(*std::get_if<0>(&state_));
    }
    const Error& error() const {
        VBD_CHECK(!*this);
        return *std::get_if<1>(&state_);
    }

  private:
    std::variant<T, Error> state_;
};

/// Success without a value, or an Error.
class [[nodiscard]] Status {
  public:
    Status() = default;
    Status(Error error) : error_(std::move(error)) {}

    explicit operator bool() const { return !error_; }
    const Error& error() const {
        VBD_CHECK(error_.has_value());
        return *error_;
    }

  private:
    std::optional<Error> error_;
};

}  // namespace vbd
