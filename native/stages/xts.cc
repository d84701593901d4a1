#include "stages/xts.h"

#include <dlfcn.h>

#include <cstring>

namespace vbd::stages {

namespace {

/// The part of OpenSSL's libcrypto, 1.1 to 3, that is used. Its types are opaque.
struct Crypto {
    void* (*cipher_ctx_new)() = nullptr;
    void (*cipher_ctx_free)(void*) = nullptr;
    const void* (*aes_128_xts)() = nullptr;
    const void* (*aes_256_xts)() = nullptr;
    int (*cipher_init)(void*, const void*, void*, const uint8_t*, const uint8_t*, int) = nullptr;
    int (*cipher_update)(void*, uint8_t*, int*, const uint8_t*, int) = nullptr;
    bool complete = false;
};

template <typename Function>
bool find(void* library, Function& function, const char* symbol) {
    function = reinterpret_cast<Function>(::dlsym(library, symbol));
    return function != nullptr;
}

bool find_all(void* library, Crypto& crypto) {
    return find(library, crypto.cipher_ctx_new, "EVP_CIPHER_CTX_new") &&
           find(library, crypto.cipher_ctx_free, "EVP_CIPHER_CTX_free") &&
           find(library, crypto.aes_128_xts, "EVP_aes_128_xts") &&
           find(library, crypto.aes_256_xts, "EVP_aes_256_xts") &&
           find(library, crypto.cipher_init, "EVP_CipherInit_ex") &&
           find(library, crypto.cipher_update, "EVP_CipherUpdate");
}

Crypto load() {
    Crypto crypto;
    crypto.complete = find_all(RTLD_DEFAULT, crypto);
    for (const char* soname : {"libcrypto.so.3", "libcrypto.so.1.1"}) {
        if (crypto.complete) break;
        // Never unloaded: OpenSSL cleans up when the process ends.
        void* library = ::dlopen(soname, RTLD_NOW | RTLD_LOCAL);
        crypto.complete = library && find_all(library, crypto);
    }
    return crypto;
}

const Crypto& crypto() {
    static const Crypto loaded = load();
    return loaded;
}

}  // namespace

Result<std::unique_ptr<Xts>> Xts::create(const Secret& key, Direction direction) {
    const auto& bytes = key.bytes();
    const size_t half = bytes.size() / 2;
    if (bytes.size() != 32 && bytes.size() != 64) {
        return Error{ErrorKind::kInvalidArgument, 0,
                     "a key of aes-xts-plain64 has 32 or 64 bytes, not " +
                         std::to_string(bytes.size())};
    }
    if (std::memcmp(bytes.data(), bytes.data() + half, half) == 0) {
        return Error{ErrorKind::kInvalidArgument, 0,
                     "the two halves of the key are equal, which makes XTS weak"};
    }
    if (!crypto().complete) {
        return Error{ErrorKind::kUnsupported, 0, "this process has no OpenSSL to encrypt with"};
    }
    auto xts = std::unique_ptr<Xts>(new Xts);
    xts->context_ = crypto().cipher_ctx_new();
    const void* cipher = half == 16 ? crypto().aes_128_xts() : crypto().aes_256_xts();
    if (!xts->context_ ||
        crypto().cipher_init(xts->context_, cipher, nullptr, bytes.data(), nullptr,
                             direction == Direction::kEncrypt) != 1) {
        return Error{ErrorKind::kUnsupported, 0, "this OpenSSL refuses AES-XTS with such a key"};
    }
    return xts;
}

Xts::~Xts() {
    if (context_) crypto().cipher_ctx_free(context_);  // wipes the key
}

bool Xts::run(uint8_t* data, uint64_t bytes, uint64_t sector, uint32_t unit_bytes) {
    for (uint64_t done = 0; done < bytes; done += unit_bytes) {
        uint8_t tweak[16] = {};
        for (int i = 0; i < 8; i++) tweak[i] = static_cast<uint8_t>(sector >> (8 * i));
        int written = 0;
        // Direction -1 and no key: only the tweak is new.
        if (crypto().cipher_init(context_, nullptr, nullptr, nullptr, tweak, -1) != 1 ||
            crypto().cipher_update(context_, data + done, &written, data + done,
                                   static_cast<int>(unit_bytes)) != 1 ||
            written != static_cast<int>(unit_bytes)) {
            return false;
        }
        sector += unit_bytes / 512;
    }
    return true;
}

}  // namespace vbd::stages
