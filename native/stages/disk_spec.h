// DiskSpec: the description of a disk with its stages, as lib/disk/spec.ts has it: a tree of a leaf
// (block::DeviceOptions) and stages over one or several disks. Plain data, but for keys, which are
// handed in apart from the description. Numbers are checked by whoever opens the stage.
#pragma once

#include <array>
#include <cerrno>
#include <cstdint>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "block/open_device.h"
#include "stages/secret.h"

namespace vbd::stages {

/// `length_bytes` of the disk below, from `offset_bytes` on; 0: to its end.
struct SliceOptions {
    uint64_t offset_bytes = 0;
    uint64_t length_bytes = 0;
};

/// Several disks in a row.
struct ConcatOptions {};

/// 0: no limit. `burst_s`: what may be saved up, in seconds at the rate.
struct ThrottleOptions {
    double iops = 0;
    double bps = 0;
    double burst_s = 0.1;
    std::string group = {};  // empty: the disk's own
};

/// Of reads, writes, flushes and discards.
struct DelayOptions {
    std::array<uint64_t, 4> delay_ns = {};
};

struct FaultOptions {
    uint32_t operations = ~0u;  // bits of IoOp
    int error = EIO;
    double probability = 1;
    uint64_t seed = 0;
    uint64_t begin_bytes = 0;         // only requests that touch this range; flushes have none
    uint64_t end_bytes = UINT64_MAX;  // exclusive
    uint64_t skip = 0;                // matching requests that pass first
    uint64_t count = UINT64_MAX;      // faults, then no more
};

/// `records`: kept until they are taken, a power of two.
struct LogOptions {
    uint32_t records = 16384;
};

struct VerifyOptions {
    uint32_t block_bytes = 4096;
    bool report_only = false;  // a mismatch is counted, and the read answered all the same
};

struct EncryptOptions {
    std::shared_ptr<const Secret> key;
    uint32_t unit_bytes = 512;  // encrypted as one: dm-crypt's sector_size
    uint64_t iv_offset_sectors = 0;
    bool discard = false;
};

/// Copy on write. No path: the copy is in memory and gone with the device.
struct OverlayOptions {
    std::string scratch = {};
    uint32_t granule_bytes = 4096;
    bool read_only = false;
};

/// Write-back. `memory_bytes`: of data; `write_back_ns`: for how long it may be newer than below.
struct CacheOptions {
    uint64_t memory_bytes = 64ull << 20;
    uint64_t write_back_ns = 5'000'000'000;
};

/// `window_bytes`: how far ahead of a reader, at most.
struct ReadAheadOptions {
    uint64_t memory_bytes = 8ull << 20;
    uint64_t window_bytes = 1ull << 20;
};

struct DiskSpec {
    std::variant<block::DeviceOptions, SliceOptions, ConcatOptions, ThrottleOptions, DelayOptions,
                 FaultOptions, LogOptions, VerifyOptions, EncryptOptions, OverlayOptions,
                 CacheOptions, ReadAheadOptions>
        stage;
    std::vector<DiskSpec> bases = {};  // none for a leaf
};

}  // namespace vbd::stages
