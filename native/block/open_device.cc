#include "block/open_device.h"

#include "block/memory_device.h"
#include "block/null_device.h"
#include "block/pattern_device.h"

namespace vbd::block {

Result<std::unique_ptr<Device>> open_device(const DeviceOptions& options) {
    switch (options.driver) {
        case Driver::kFile:
            return FileDevice::open({.path = options.path,
                                     .read_only = options.read_only,
                                     .direct = options.direct,
                                     .sector_size = options.sector_size,
                                     .write_through = options.write_through},
                                    options.io);
        case Driver::kMemory:
            return MemoryDevice::create(options.size_bytes, options.sector_size);
        case Driver::kNull:
            return NullDevice::create(options.size_bytes, options.sector_size, options.no_fill);
        case Driver::kZero:
            return PatternDevice::create_zero(options.size_bytes, options.sector_size);
        case Driver::kPattern:
            return PatternDevice::create(options.size_bytes, options.sector_size, options.seed);
    }
    return Error{ErrorKind::kInvalidArgument, 0, "no such disk driver"};
}

}  // namespace vbd::block
