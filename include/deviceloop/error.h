/// \file
/// The exceptions that deviceloop throws. Each message says what was wrong, with the offending value, and what to do.
#pragma once

#include <stdexcept>
#include <string>
#include <utility>

#include <deviceloop/export.h>

namespace deviceloop {

/// Base of all exceptions of this library. It is thrown as such when a call fails for a reason outside the program's
/// control, such as a full disk.
class DEVICELOOP_EXPORT Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// An argument, a specification or a file's content is wrong. Nothing was changed.
class DEVICELOOP_EXPORT InvalidArgument : public Error {
 public:
  using Error::Error;
};

/// The request is meaningful, but this build, this machine or this version cannot serve it. Nothing was changed.
class DEVICELOOP_EXPORT Unsupported : public Error {
 public:
  using Error::Error;
};

/// A call to the device's API failed. The executor that threw it cannot be used any more, and reports this on every
/// later call.
class DEVICELOOP_EXPORT DeviceError : public Error {
 public:
  /// `message` is the whole text of what(); the others are what the functions below return.
  DeviceError(const std::string& message, std::string api, int code, std::string expression, std::string file, int line)
      : Error(message),
        api_(std::move(api)),
        code_(code),
        expression_(std::move(expression)),
        file_(std::move(file)),
        line_(line) {}

  /// The interface that failed, such as "cuBLASLt".
  const std::string& api() const noexcept { return api_; }
  /// Its error code.
  int code() const noexcept { return code_; }
  /// The failed call, as it is written in the source.
  const std::string& expression() const noexcept { return expression_; }
  /// The library's source file and line of that call.
  /// @{
  const std::string& file() const noexcept { return file_; }
  int line() const noexcept { return line_; }
  /// @}

 private:
  std::string api_;
  int code_;
  std::string expression_;
  std::string file_;
  int line_;
};

}  // namespace deviceloop
