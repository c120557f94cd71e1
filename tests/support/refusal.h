// What every message of a reader or writer must be, and the text of one to look into.
#pragma once

#include <gtest/gtest.h>

#include <deviceloop/error.h>

#include <algorithm>
#include <exception>
#include <string>
#include <typeinfo>

namespace deviceloop::testing {

/// The message of the exception of type E, and no other, that `call` throws. Fails the test where it throws none, and
/// where the message is not one printable line or does not begin with `start`.
template <class E = InvalidArgument, class F>
std::string refusal(const std::string& start, F call) {
  std::string message;
  try {
    call();
    ADD_FAILURE() << "nothing was thrown";
    return "";
  } catch (const E& error) {
    EXPECT_EQ(typeid(error), typeid(E)) << error.what();
    message = error.what();
  } catch (const std::exception& error) {
    ADD_FAILURE() << "another exception: " << error.what();
    return error.what();
  }
  EXPECT_EQ(message.substr(0, start.size()), start) << message;
  EXPECT_TRUE(std::none_of(message.begin(), message.end(), [](unsigned char c) { return c < 0x20 || c == 0x7f; }))
      << message;
  EXPECT_LT(message.size(), 2000u) << message;
  return message;
}

}  // namespace deviceloop::testing

/// Whether a message holds a text, with both shown where it does not.
#define EXPECT_MENTIONS(message, text) \
  EXPECT_NE(std::string(message).find(text), std::string::npos) << "message: " << (message) << "\nlacks:   " << (text)
