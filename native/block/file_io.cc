#include "block/file_io.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

namespace vbd::block {

Progress advance(Io& io, uint64_t bytes, uint32_t granule) {
    if (io.done + bytes >= io.length) {
        io.done = io.length;
        return Progress::kComplete;
    }
    bytes -= bytes % granule;
    if (bytes == 0) return Progress::kStuck;
    io.done += bytes;
    while (bytes >= io.iov->iov_len) {
        bytes -= io.iov->iov_len;
        io.iov++;
        io.iov_count--;
    }
    io.iov->iov_base = static_cast<char*>(io.iov->iov_base) + bytes;
    io.iov->iov_len -= bytes;
    return Progress::kPartial;
}

uint64_t next_discard(const Io& io, uint64_t step_bytes) {
    // Steps end at multiples of the step: a device splits them no further, and no granule is cut
    // twice.
    const uint64_t begin = io.offset + io.done;
    return std::min(io.length - io.done, step_bytes - begin % step_bytes);
}

namespace {

int32_t transfer(FileBacking& backing, Io& io, int flags) {
    for (uint32_t again = 0;;) {
        const int count = static_cast<int>(std::min(io.iov_count, kMaxVectors));
        const off_t offset = static_cast<off_t>(io.offset + io.done);
        const ssize_t moved = io.op == IoOp::kRead
                                  ? ::preadv2(backing.fd(), io.iov, count, offset, flags)
                                  : ::pwritev2(backing.fd(), io.iov, count, offset, flags);
        if (moved < 0) {
            if (is_transient(errno) && again++ < kMaxRetries) continue;
            return errno;
        }
        switch (advance(io, static_cast<uint64_t>(moved), backing.granule())) {
            case Progress::kComplete:
                return 0;
            case Progress::kPartial:
                break;
            case Progress::kStuck:
                return EIO;
        }
    }
}

/// Writes are answered only after this says that what was written before it is on stable storage.
int32_t sync(FileBacking& backing) {
    if (backing.sync_failed()) return EIO;
    int result;
    do {
        result = ::fdatasync(backing.fd());
    } while (result != 0 && errno == EINTR);
    if (result == 0) return 0;
    const int32_t error = errno;
    backing.note_sync_failure();
    return error;
}

int32_t write(FileBacking& backing, Io& io) {
    const bool durable = io.fua || backing.write_through();
    if (!durable) return transfer(backing, io, 0);
    if (!backing.direct()) {
        // Not RWF_DSYNC: its failure would not tell a full disk from writes that are lost.
        const int32_t error = transfer(backing, io, 0);
        return error ? error : sync(backing);
    }
    const int32_t error = transfer(backing, io, RWF_DSYNC);
    if (error == EIO) backing.note_sync_failure();
    return error;
}

int32_t punch(FileBacking& backing, uint64_t begin, uint64_t bytes) {
    int result;
    do {
        result = ::fallocate(backing.fd(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                             static_cast<off_t>(begin), static_cast<off_t>(bytes));
    } while (result != 0 && errno == EINTR);
    return result == 0 ? 0 : errno;
}

int32_t discard_blocks(FileBacking& backing, bool secure, uint64_t begin, uint64_t bytes) {
    uint64_t end = begin + bytes;
    if (!secure) {
        // A hint: parts of the device's sectors are left as they are. Erasing all but the edges
        // would be a lie.
        const uint64_t unit = backing.discard_unit();
        begin = (begin + unit - 1) / unit * unit;
        end -= end % unit;
        if (begin >= end) return 0;
    }
    uint64_t range[2] = {begin, end - begin};
    int result;
    do {
        result = ::ioctl(backing.fd(), secure ? BLKSECDISCARD : BLKDISCARD, range);
    } while (result != 0 && errno == EINTR);
    return result == 0 ? 0 : errno;
}

std::optional<int32_t> discard_step(FileBacking& backing, Io& io, uint64_t step_bytes) {
    if (io.op == IoOp::kSecureDiscard && !backing.geometry().can_secure_discard) return EOPNOTSUPP;
    if (io.done < io.length) {
        const uint64_t bytes = next_discard(io, step_bytes);
        const uint64_t begin = io.offset + io.done;
        const int32_t error =
            backing.is_block_device()
                ? discard_blocks(backing, io.op == IoOp::kSecureDiscard, begin, bytes)
                : punch(backing, begin, bytes);
        if (error) return error;
        io.done += bytes;
    }
    if (io.done < io.length) return std::nullopt;
    return 0;
}

}  // namespace

std::optional<int32_t> run_step(FileBacking& backing, Io& io, uint64_t discard_step_bytes) {
    if (io.op != IoOp::kRead && backing.sync_failed()) return EIO;
    switch (io.op) {
        case IoOp::kRead:
            return transfer(backing, io, 0);
        case IoOp::kWrite:
            return write(backing, io);
        case IoOp::kFlush:
            return sync(backing);
        case IoOp::kDiscard:
        case IoOp::kSecureDiscard:
            return discard_step(backing, io, discard_step_bytes);
    }
    return EOPNOTSUPP;
}

bool InlineReads::try_read(int fd, Io& io) {
    if (!enabled_ || io.length > kMaxBytes || io.iov_count > kMaxVectors) return false;
    if (skip_ > 0) {
        skip_--;
        return false;
    }
    const ssize_t got = ::preadv2(fd, io.iov, static_cast<int>(io.iov_count),
                                  static_cast<off_t>(io.offset), RWF_NOWAIT);
    if (got < 0) {
        // A file system that does not know the flag will not learn it.
        if (errno == EOPNOTSUPP || errno == EINVAL || errno == ENOSYS) enabled_ = false;
        return missed();
    }
    if (advance(io, static_cast<uint64_t>(got), 1) != Progress::kComplete) return missed();
    misses_ = 0;
    pause_ = kFirstPause;
    return true;
}

bool InlineReads::missed() {
    if (++misses_ >= kMissesBeforePause) {
        skip_ = pause_;
        pause_ = std::min(pause_ * 2, kLongestPause);
        misses_ = kMissesBeforePause - 1;  // one more miss after the pause is enough
    }
    return false;
}

}  // namespace vbd::block
