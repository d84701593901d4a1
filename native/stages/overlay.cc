#include "stages/overlay.h"

#include <sys/stat.h>

#include <algorithm>
#include <bit>
#include <cstring>

#include "stages/overlay_queue.h"

namespace vbd::stages {

using block::BlockingIo;
using block::Device;

namespace {

constexpr uint64_t kCopyBytes = 1 << 20;

Status check_granule(uint32_t granule_bytes) {
    if (granule_bytes >= 4096 && granule_bytes <= (1u << 20) &&
        std::has_single_bit(granule_bytes)) {
        return {};
    }
    return Error{ErrorKind::kInvalidArgument, 0,
                 "a granule of an overlay is a power of two of 4096 to 1048576 bytes"};
}

Result<std::unique_ptr<Device>> open_container(const OverlayOptions& options,
                                               uint32_t sector_size) {
    return block::open_device({.sector_size = sector_size,
                               .path = options.scratch,
                               .read_only = options.read_only});
}

/// Granules in a row that the container has are copied, a piece at a time.
Status copy_run(BlockingIo& from, BlockingIo& to, const OverlayFile& file, uint64_t granule,
                uint64_t count, block::PageBuffer& buffer) {
    uint64_t offset = granule * file.granule_bytes();
    uint64_t left = std::min(count * file.granule_bytes(), file.disk_bytes() - offset);
    for (uint64_t at = file.offset_of(granule); left > 0;) {
        const uint64_t bytes = std::min<uint64_t>(left, buffer.size());
        if (int32_t error = from.read(at, buffer.data(), bytes)) {
            return system_error(ErrorKind::kBacking, error, "reading the overlay");
        }
        if (int32_t error = to.write(offset, buffer.data(), bytes)) {
            return system_error(ErrorKind::kBacking, error, "writing to the disk below");
        }
        at += bytes;
        offset += bytes;
        left -= bytes;
    }
    return {};
}

Status copy_all(OverlayFile& file, Device& base) {
    auto from = BlockingIo::open(file.scratch());
    if (!from) return from.error();
    auto to = BlockingIo::open(base);
    if (!to) return to.error();
    block::PageBuffer buffer(kCopyBytes);
    const uint64_t granules =
        (file.disk_bytes() + file.granule_bytes() - 1) / file.granule_bytes();
    for (uint64_t granule = 0; granule < granules;) {
        const uint64_t count = file.run(granule, granules - granule);
        if (file.allocated(granule)) {
            Status s = copy_run(*from.value(), *to.value(), file, granule, count, buffer);
            if (!s) return s;
        }
        granule += count;
    }
    if (int32_t error = to.value()->flush()) {
        return system_error(ErrorKind::kBacking, error, "flushing the disk below");
    }
    return {};
}

}  // namespace

bool Claims::take(uint64_t first, uint64_t count) {
    const std::lock_guard lock(mutex_);
    for (const Range& range : ranges_) {
        if (first < range.first + range.count && range.first < first + count) return false;
    }
    ranges_.push_back({first, count});
    return true;
}

void Claims::give_back(uint64_t first) {
    const std::lock_guard lock(mutex_);
    for (Range& range : ranges_) {
        if (range.first != first) continue;
        range = ranges_.back();
        ranges_.pop_back();
        return;
    }
}

Result<std::unique_ptr<Device>> Overlay::open(const OverlayOptions& options,
                                              std::unique_ptr<Device> base) {
    if (Status s = check_granule(options.granule_bytes); !s) return s.error();
    const uint32_t sector = base->geometry().sector_size;
    const uint64_t size = base->size_bytes();
    if (Status s = OverlayFile::check_size(size, options.granule_bytes); !s) return s.error();
    if (options.scratch.empty()) {
        const uint64_t bytes = OverlayFile::container_bytes(size, options.granule_bytes);
        auto memory = block::open_device(
            {.driver = block::Driver::kMemory, .sector_size = sector, .size_bytes = bytes});
        if (!memory) return memory.error();
        Status made = OverlayFile::create_in(*memory.value(), size, options.granule_bytes);
        if (!made) return made.error();
        return over(options, std::move(base), std::move(memory).value());
    }
    struct stat info {};
    if (!options.read_only && ::stat(options.scratch.c_str(), &info) != 0 && errno == ENOENT) {
        Status made = OverlayFile::create_at(options.scratch, size, options.granule_bytes);
        if (!made) return made.error();
    }
    auto scratch = open_container(options, sector);
    if (!scratch) return scratch.error();
    return over(options, std::move(base), std::move(scratch).value());
}

Result<std::unique_ptr<Device>> Overlay::over(const OverlayOptions& options,
                                              std::unique_ptr<Device> base,
                                              std::unique_ptr<Device> scratch) {
    auto file = OverlayFile::open(std::move(scratch), base->size_bytes(), options.granule_bytes);
    if (!file) return file.error();
    auto overlay = std::unique_ptr<Overlay>(
        new Overlay(options, std::move(base), std::move(file).value()));
    if (Status s = overlay->shared_->writer.start(!options.read_only); !s) return s.error();
    return std::unique_ptr<Device>(std::move(overlay));
}

Overlay::Overlay(const OverlayOptions& options, std::unique_ptr<Device> base,
                 std::unique_ptr<OverlayFile> file)
    : StageDevice(std::move(base)),
      options_(options),
      shared_(std::make_shared<Shared>(std::move(file))) {
    const block::Geometry& below = shared_->file->scratch().geometry();
    geometry_.read_only = options_.read_only;
    geometry_.can_flush = true;
    geometry_.can_discard = below.can_discard && !options_.read_only;
    geometry_.can_secure_discard = false;
    geometry_.discard_granularity = geometry_.can_discard ? options_.granule_bytes : 0;
    geometry_.discard_alignment = 0;
    geometry_.physical_sector_size = std::max(geometry_.physical_sector_size, 4096u);
    set_size(shared_->file->disk_bytes());
    describe("overlay(" +
             (options_.scratch.empty() ? std::string("in memory") : options_.scratch) + ")");
}

Overlay::~Overlay() {
    (void)close();
}

Result<std::unique_ptr<block::DeviceQueue>> Overlay::open_queue(block::IoContext& context) {
    auto base = base_->open_queue(context);
    if (!base) return base.error();
    auto scratch = shared_->file->scratch().open_queue(context);
    if (!scratch) return scratch.error();
    std::vector<std::unique_ptr<block::DeviceQueue>> queues;
    queues.push_back(std::move(base).value());
    queues.push_back(std::move(scratch).value());
    return std::unique_ptr<block::DeviceQueue>(
        new OverlayQueue(context, std::move(queues), shared_, geometry_));
}

Status Overlay::resize(uint64_t size_bytes) {
    if (Status s = block::check_disk_size(size_bytes, geometry_.sector_size); !s) return s;
    if (options_.read_only) {
        return Error{ErrorKind::kInvalidArgument, EROFS, "the overlay is open for reading only"};
    }
    Status done = shared_->writer.run([&] { return shared_->file->resize(size_bytes); });
    if (done) set_size(size_bytes);
    return done;
}

Status Overlay::close() {
    Status first = shared_->writer.stop();
    Status below = base_->close();
    return first ? below : first;
}

void Overlay::report(const Tell& tell) const {
    const OverlayFile& file = *shared_->file;
    tell("granuleBytes", file.granule_bytes());
    tell("allocatedBytes",
         static_cast<double>(file.allocated_granules()) * file.granule_bytes());
}

Status Overlay::commit(const OverlayOptions& options, Device& base) {
    auto scratch = open_container(options, base.geometry().sector_size);
    if (!scratch) return scratch.error();
    auto file = OverlayFile::open(std::move(scratch).value(), base.size_bytes(), 0);
    if (!file) return file.error();
    OverlayFile& overlay = *file.value();
    if (overlay.disk_bytes() > base.size_bytes()) {
        return Error{ErrorKind::kUnsupported, 0,
                     "the overlay was made longer than the disk below it; copy it to a new disk"};
    }
    if (Status s = copy_all(overlay, base); !s) return s;
    if (Status s = overlay.attach(true); !s) return s;
    if (Status s = overlay.reset(); !s) return s;
    return overlay.detach();
}

Status Overlay::reset(const OverlayOptions& options, uint64_t base_bytes) {
    auto scratch = open_container(options, 512);
    if (!scratch) return scratch.error();
    auto file = OverlayFile::open(std::move(scratch).value(), base_bytes, 0);
    if (!file) return file.error();
    if (Status s = file.value()->attach(true); !s) return s;
    if (Status s = file.value()->reset(); !s) return s;
    return file.value()->detach();
}

}  // namespace vbd::stages
