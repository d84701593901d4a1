#include "node/regions.h"

namespace vbd::node {

uint32_t Regions::add(Napi::Env env, void* address, size_t bytes) {
    uint32_t region = static_cast<uint32_t>(entries_.size());
    if (free_.empty()) {
        entries_.emplace_back();
    } else {
        region = free_.back();
        free_.pop_back();
    }
    Entry& entry = entries_[region];
    entry.address = static_cast<uint8_t*>(address);
    entry.bytes = bytes;
    entry.buffer = Napi::Persistent(Napi::ArrayBuffer::New(env, address, bytes));
    return region;
}

void Regions::remove(Napi::Env env, uint32_t region) {
    if (region >= entries_.size() || entries_[region].address == nullptr) return;
    Entry& entry = entries_[region];
    const Napi::HandleScope scope(env);
    napi_detach_arraybuffer(env, entry.buffer.Value());
    entry.buffer.Reset();
    entry.address = nullptr;
    entry.bytes = 0;
    free_.push_back(region);
}

void Regions::abandon() {
    entries_.clear();
    free_.clear();
}

}  // namespace vbd::node
