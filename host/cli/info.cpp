// deviceloop info: what this build and this machine offer.
#include <deviceloop/plan.h>

#include "commands.h"
#include "system_facts.h"
#include "text_output.h"

namespace deviceloop::cli {

void declare_info(OptionSet&) {}

int run_info(const OptionSet&) {
  const DeviceCaps caps = query_device_caps();
  std::vector<Fact> facts = system_facts(caps);
  if (!caps.gpus.empty())
    facts.emplace_back("cuBLASLt", caps.no_cublaslt_reason.empty() ? "found" : caps.no_cublaslt_reason);
  TextOutput text(TextOutput::Where::standard_output);
  for (const auto& [what, value] : facts) text.write(what + std::string(14 - what.size(), ' ') + value + "\n");
  text.check();
  return 0;
}

}  // namespace deviceloop::cli
