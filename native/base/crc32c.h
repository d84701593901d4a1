// crc32c: the Castagnoli checksum (iSCSI, ext4, Btrfs), by the processor where it can.
#pragma once

#include <cstddef>
#include <cstdint>

namespace vbd {

/// Of `bytes` at `data`, going on from the checksum of what came before them.
uint32_t crc32c(const void* data, size_t bytes, uint32_t before = 0);

/// The same without help of the processor.
uint32_t crc32c_portable(const void* data, size_t bytes, uint32_t before = 0);

}  // namespace vbd
