#include "block/file_device.h"

#include "block/sync_queue.h"
#include "block/uring.h"
#include "block/uring_queue.h"

namespace vbd::block {

Result<std::unique_ptr<Device>> FileDevice::open(const FileOptions& options, IoChoice io) {
    if (io == IoChoice::kUring) {
        if (Status s = Uring::probe(); !s) return s.error();
    }
    Result<std::unique_ptr<FileBacking>> backing = FileBacking::open(options);
    if (!backing) return backing.error();
    return std::unique_ptr<Device>(new FileDevice(std::move(backing).value(), io));
}

FileDevice::FileDevice(std::unique_ptr<FileBacking> backing, IoChoice io, const char* way)
    : backing_(std::move(backing)), io_(io), geometry_(backing_->geometry()), worker_(*backing_) {
    geometry_.description =
        describe(io == IoChoice::kUring || (io == IoChoice::kAuto && Uring::probe()), way);
    set_size(geometry_.size_bytes);
}

std::string FileDevice::describe(bool uring, const char* way) const {
    std::string text = backing_->is_block_device() ? "device(" : "file(";
    text += backing_->path();
    if (way == nullptr) way = backing_->in_memory() ? "inline" : uring ? "io_uring" : "sync";
    text += std::string(", ") + way;
    text += backing_->direct() ? ", O_DIRECT" : ", page cache";
    if (backing_->geometry().read_only) text += ", read-only";
    if (backing_->write_through()) text += ", write-through";
    if (const uint64_t tail = backing_->tail_bytes()) {
        text += ", last " + std::to_string(tail) + " bytes unused: no whole sector";
    }
    return text + ")";
}

Result<std::unique_ptr<DeviceQueue>> FileDevice::open_queue(IoContext& context) {
    if (io_ != IoChoice::kSync && !backing_->in_memory()) {
        if (Uring* uring = context.uring()) {
            Result<Fd> fd = backing_->reopen();
            if (!fd) return fd.error();
            return std::unique_ptr<DeviceQueue>(
                new UringQueue(context, *uring, *backing_, worker_, std::move(fd).value()));
        }
        if (io_ == IoChoice::kUring) {
            return Error{ErrorKind::kUnsupported, 0, backing_->path() + ": " + context.status()};
        }
    }
    if (!backing_->in_memory()) {
        if (const int error = worker_.start()) {
            return system_error(ErrorKind::kNoMemory, error,
                                "starting the thread of " + backing_->path());
        }
    }
    return std::unique_ptr<DeviceQueue>(new SyncQueue(context, *backing_, worker_));
}

Status FileDevice::resize(uint64_t size_bytes) {
    if (Status s = backing_->resize(size_bytes); !s) return s;
    set_size(size_bytes);
    return {};
}

Result<uint64_t> FileDevice::refresh_size() {
    Result<uint64_t> size = backing_->measure();
    if (size) set_size(size.value());
    return size;
}

void FileDevice::set_size(uint64_t size_bytes) {
    geometry_.size_bytes = size_bytes;
    size_bytes_.store(size_bytes, std::memory_order_release);
}

}  // namespace vbd::block
