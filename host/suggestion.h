// What a message says of a name that does not exist.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace deviceloop {

/// " (did you mean '--steps'?)" where one of `known` is near to `word`, else nothing.
std::string suggestion(std::string_view word, const std::vector<std::string>& known);

/// "'a', 'b' and 'c'"; of a long list the first names and how many more there are.
std::string list_in_quotes(const std::vector<std::string>& names);

}  // namespace deviceloop
