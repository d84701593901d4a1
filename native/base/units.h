// Distinct integer types for numbers that must not be mixed up, and the protocol's fixed sizes.
#pragma once

#include <cstdint>

namespace vbd {

using DomainId = uint16_t;
using GrantRef = uint32_t;
using Port = uint32_t;  // event channel port; 0 is never valid

inline constexpr uint32_t kPageSize = 4096;  // Xen's page, whatever the kernel's is
inline constexpr uint32_t kSectorSize =
    512;  // every sector count on the ring and in xenstore (blkif.h)
inline constexpr uint32_t kSectorsPerPage = kPageSize / kSectorSize;

}  // namespace vbd
