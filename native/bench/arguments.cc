// Arguments, and pinning.
#include <sched.h>

#include <charconv>

#include "bench/benchmark.h"

namespace vbd::bench {

Result<Arguments> Arguments::parse(int count, char** words) {
    Arguments arguments;
    for (int i = 0; i < count; i++) {
        const std::string word = words[i];
        const size_t equals = word.find('=');
        if (equals == std::string::npos) {
            return Error{ErrorKind::kInvalidArgument, 0, "'" + word + "' is not KEY=VALUE"};
        }
        arguments.values_[word.substr(0, equals)] = word.substr(equals + 1);
        arguments.bad_[word.substr(0, equals)] = false;
    }
    return arguments;
}

std::string Arguments::text(const std::string& name, const std::string& fallback) {
    const auto found = values_.find(name);
    if (found == values_.end()) return fallback;
    bad_.erase(name);
    return found->second;
}

uint64_t Arguments::number(const std::string& name, uint64_t fallback) {
    const std::string word = text(name, "");
    if (word.empty()) return fallback;
    uint64_t value = 0;
    const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), value);
    if (error != std::errc() || end != word.data() + word.size()) bad_[name] = true;
    return value;
}

std::string Arguments::unused() const {
    std::string names;
    for (const auto& [name, is_number] : bad_) {
        names += is_number ? " " + name + "= is not a number;" : " " + name + "=";
    }
    return names;
}

Status pin_to(int cpu) {
    if (cpu < 0) return {};
    cpu_set_t one;
    CPU_ZERO(&one);
    if (cpu < CPU_SETSIZE) CPU_SET(cpu, &one);
    if (::sched_setaffinity(0, sizeof one, &one) == 0) return {};
    return system_error(ErrorKind::kInvalidArgument, errno,
                        "pinning to processor " + std::to_string(cpu));
}

}  // namespace vbd::bench
