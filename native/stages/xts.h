// Xts: AES-XTS as dm-crypt's aes-xts-plain64 uses it, done by OpenSSL. Its functions are found at run
// time: Node.js carries and exports OpenSSL, elsewhere libcrypto.so is loaded; so nothing is linked,
// and there is one OpenSSL in a process. One thread at a time.
//
//   key     two AES keys of one size in a row: 32 bytes (AES-128) or 64 (AES-256)
//   tweak   the number of a sector of 512 bytes, 16 bytes little-endian, whatever the unit's size
#pragma once

#include <cstdint>
#include <memory>

#include "base/result.h"
#include "stages/secret.h"

namespace vbd::stages {

class Xts {
  public:
    enum class Direction { kEncrypt, kDecrypt };

    /// Errors: kUnsupported without an OpenSSL, kInvalidArgument for a key of another length or with
    /// two equal halves.
    static Result<std::unique_ptr<Xts>> create(const Secret& key, Direction direction);
    ~Xts();

    /// Changes `bytes` (a multiple of `unit_bytes`) in place; `sector` is that of the first byte, in
    /// 512 bytes. False: OpenSSL refused, and the data must not be used.
    bool run(uint8_t* data, uint64_t bytes, uint64_t sector, uint32_t unit_bytes);

  private:
    Xts() = default;

    void* context_ = nullptr;  // EVP_CIPHER_CTX
};

}  // namespace vbd::stages
