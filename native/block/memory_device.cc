#include "block/memory_device.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <span>
#include <string>
#include <utility>

#include "base/prefetch.h"
#include "base/units.h"
#include "block/io_context.h"
#include "block/racy_bytes.h"

namespace vbd::block {

namespace {

constexpr uint64_t kReserveAtLeast = 64ull << 30;
constexpr uint64_t kFetchAheadBytes = 1024;
constexpr uint64_t kCacheLine = 64;
constexpr uint64_t kLargest = 1ull << 46;  // half of a process's address space

uint64_t round_up_to_page(uint64_t bytes) {
    return (bytes + kPageSize - 1) / kPageSize * kPageSize;
}

/// A random access to 4 KiB pages pays for a page table walk each. With huge pages a disk that is
/// written here and there takes more memory than was written, at most its size: so only where that
/// is a small part of this machine's.
void prefer_huge_pages(uint8_t* base, uint64_t size_bytes) {
    const uint64_t memory_bytes =
        static_cast<uint64_t>(::sysconf(_SC_PHYS_PAGES)) *
        static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
    if (size_bytes <= memory_bytes / 8) ::madvise(base, size_bytes, MADV_HUGEPAGE);
}

/// Makes bytes zeros and frees the whole pages among them.
void clear(uint8_t* begin, uint64_t bytes) {
    uint8_t* end = begin + bytes;
    const uintptr_t address = reinterpret_cast<uintptr_t>(begin);
    uint8_t* first_page = begin + (round_up_to_page(address) - address);
    uint8_t* last_page = end - reinterpret_cast<uintptr_t>(end) % kPageSize;
    if (first_page >= last_page) return racy_zero(begin, bytes);
    racy_zero(begin, static_cast<size_t>(first_page - begin));
    racy_zero(last_page, static_cast<size_t>(end - last_page));
    const size_t pages = static_cast<size_t>(last_page - first_page);
    // Refused where pages are locked (mlockall) or larger than Xen's.
    if (::madvise(first_page, pages, MADV_DONTNEED) != 0) racy_zero(first_page, pages);
}

class MemoryQueue final : public DeviceQueue {
  public:
    MemoryQueue(IoContext& context, uint8_t* base) : context_(context), base_(base) {}

    void submit(std::span<Io* const> batch) override {
        for (size_t i = 0; i < batch.size(); i++) {
            Io* io = batch[i];
            if (i + 1 < batch.size()) fetch_ahead(*batch[i + 1]);
            switch (io->op) {
                case IoOp::kRead:
                    read(*io);
                    complete(io, 0);
                    break;
                case IoOp::kWrite:
                    write(*io);
                    complete(io, 0);
                    break;
                case IoOp::kFlush:  // as durable as this disk gets
                    complete(io, 0);
                    break;
                case IoOp::kDiscard:
                    io->queue = this;
                    io->done = 0;
                    resume(io);
                    break;
                case IoOp::kSecureDiscard:
                    complete(io, EOPNOTSUPP);
                    break;
            }
        }
    }

    void resume(Io* io) override {
        const uint64_t bytes = std::min(io->length - io->done, MemoryDevice::kDiscardStepBytes);
        clear(base_ + io->offset + io->done, bytes);
        io->done += bytes;
        if (io->done < io->length) return context_.yield(io);
        complete(io, 0);
    }

  private:
    /// What will be copied next is fetched while this is copied: the processor's own prefetchers
    /// stop at the end of each page, and begin again with a miss and a page table walk. More than
    /// this much would wait for the same few fill buffers as the copy itself.
    void fetch_ahead(const Io& io) const {
        if ((io.op != IoOp::kRead && io.op != IoOp::kWrite) || io.iov_count == 0) return;
        const uint8_t* from = base_ + io.offset;
        const auto* to = static_cast<const uint8_t*>(io.iov->iov_base);
        if (io.op == IoOp::kWrite) std::swap(from, to);
        const uint64_t bytes = std::min<uint64_t>(io.iov->iov_len, kFetchAheadBytes);
        for (uint64_t at = 0; at < bytes; at += kCacheLine) {
            prefetch_to_read(from + at);
            prefetch_to_write(to + at);
        }
    }

    void read(const Io& io) {
        const uint8_t* from = base_ + io.offset;
        for (const iovec& part : std::span(io.iov, io.iov_count)) {
            racy_copy(part.iov_base, from, part.iov_len);
            from += part.iov_len;
        }
    }

    void write(const Io& io) {
        uint8_t* to = base_ + io.offset;
        for (const iovec& part : std::span(io.iov, io.iov_count)) {
            racy_copy(to, part.iov_base, part.iov_len);
            to += part.iov_len;
        }
    }

    IoContext& context_;
    uint8_t* base_;
};

}  // namespace

Result<std::unique_ptr<Device>> MemoryDevice::create(uint64_t size_bytes, uint32_t sector_size) {
    if (Status s = check_disk_size(size_bytes, sector_size); !s) return s.error();
    if (size_bytes > kLargest) {
        return Error{ErrorKind::kNoMemory, ENOMEM,
                     "a memory disk has at most " + std::to_string(kLargest) + " bytes"};
    }
    auto device = std::unique_ptr<MemoryDevice>(new MemoryDevice);
    const uint64_t enough = round_up_to_page(size_bytes);
    for (uint64_t reserve : {std::max(enough * 2, kReserveAtLeast), enough}) {
        void* memory = ::mmap(nullptr, reserve, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED) continue;
        device->base_ = static_cast<uint8_t*>(memory);
        device->reserved_bytes_ = reserve;
        break;
    }
    if (!device->base_) {
        return system_error(ErrorKind::kNoMemory, errno,
                            "reserving " + std::to_string(size_bytes) + " bytes for a memory disk");
    }
    prefer_huge_pages(device->base_, size_bytes);
    ::madvise(device->base_, device->reserved_bytes_, MADV_DONTDUMP);  // guests' data in core files

    Geometry& geometry = device->geometry_;
    geometry.size_bytes = size_bytes;
    geometry.sector_size = sector_size;
    geometry.physical_sector_size = kPageSize;
    geometry.can_discard = true;
    geometry.discard_granularity = kPageSize;
    geometry.description = "memory(" + std::to_string(size_bytes) + " bytes)";
    device->size_bytes_.store(size_bytes, std::memory_order_release);
    return std::unique_ptr<Device>(std::move(device));
}

MemoryDevice::~MemoryDevice() {
    if (base_) ::munmap(base_, reserved_bytes_);
}

Result<std::unique_ptr<DeviceQueue>> MemoryDevice::open_queue(IoContext& context) {
    return std::unique_ptr<DeviceQueue>(new MemoryQueue(context, base_));
}

Status MemoryDevice::resize(uint64_t size_bytes) {
    if (Status s = check_disk_size(size_bytes, geometry_.sector_size); !s) return s;
    if (size_bytes > reserved_bytes_) {
        return Error{ErrorKind::kInvalidArgument, 0,
                     "this memory disk can grow to at most " + std::to_string(reserved_bytes_) +
                         " bytes; make a new one"};
    }
    const uint64_t before = geometry_.size_bytes;
    geometry_.size_bytes = size_bytes;
    size_bytes_.store(size_bytes, std::memory_order_release);
    if (size_bytes > before) prefer_huge_pages(base_, size_bytes);
    if (size_bytes < before) clear(base_ + size_bytes, before - size_bytes);
    return {};
}

}  // namespace vbd::block
