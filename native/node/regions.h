// Regions: memory that both JavaScript and the core reach, by number: an arena of our own (region
// 0) and every mapping of guest pages. JavaScript holds an ArrayBuffer over each; the core resolves
// (region, offset, length), checked, when it copies or does I/O there. JavaScript thread only.
//
// No ArrayBuffer outlives its memory: remove() detaches it first, and every view of it has length 0
// from then on. Until then the table holds it, so that it is not collected.
#pragma once

#include <napi.h>

#include <cstddef>
#include <cstdint>
#include <vector>

namespace vbd::node {

class Regions {
  public:
    /// Makes an ArrayBuffer over memory that stays where it is until remove(). Returns its number.
    uint32_t add(Napi::Env env, void* address, size_t bytes);

    /// Detaches the ArrayBuffer. The memory may go then.
    void remove(Napi::Env env, uint32_t region);

    Napi::ArrayBuffer buffer(uint32_t region) const { return entries_[region].buffer.Value(); }

    /// Where `length` bytes at `offset` of a region are; null where they are not all inside it.
    uint8_t* resolve(uint32_t region, uint64_t offset, uint64_t length) const {
        if (region >= entries_.size()) return nullptr;
        const Entry& entry = entries_[region];
        if (offset > entry.bytes || length > entry.bytes - offset) return nullptr;
        return entry.address == nullptr ? nullptr : entry.address + offset;
    }

    /// The environment is leaving: no JavaScript runs any more, and the buffers go with it.
    void abandon();

  private:
    struct Entry {
        uint8_t* address = nullptr;  // null: free
        size_t bytes = 0;
        Napi::Reference<Napi::ArrayBuffer> buffer;
    };

    std::vector<Entry> entries_;
    std::vector<uint32_t> free_;
};

}  // namespace vbd::node
