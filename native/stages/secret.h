// Secret: key bytes that are wiped where they lay when nobody needs them any more.
#pragma once

#include <string.h>

#include <cstdint>
#include <memory>
#include <vector>

namespace vbd::stages {

class Secret {
  public:
    explicit Secret(std::vector<uint8_t> bytes) : bytes_(std::move(bytes)) {}
    ~Secret() {
        // An empty vector may have no address, and that must not be passed even for no bytes.
        if (!bytes_.empty()) ::explicit_bzero(bytes_.data(), bytes_.size());
    }
    Secret(const Secret&) = delete;
    Secret& operator=(const Secret&) = delete;

    const std::vector<uint8_t>& bytes() const { return bytes_; }

  private:
    std::vector<uint8_t> bytes_;
};

}  // namespace vbd::stages
