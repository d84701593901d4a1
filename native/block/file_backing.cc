#include "block/file_backing.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <time.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdlib>

#include "base/units.h"

namespace vbd::block {

namespace {

// udev holds a shared lock on a block device for moments while it looks at it.
constexpr int kLockTries = 20;
constexpr long kLockPause_ns = 20'000'000;

// A multiple of every file system's block.
constexpr uint64_t kProbeAlign = 1 << 20;

Error not_a_disk(const std::string& path, mode_t mode) {
    const char* what = "neither a file nor a block device";
    if (S_ISDIR(mode)) what = "a directory";
    if (S_ISCHR(mode)) what = "a character device";
    if (S_ISFIFO(mode)) what = "a pipe";
    if (S_ISSOCK(mode)) what = "a socket";
    return Error{ErrorKind::kBacking, 0,
                 path + " is " + what + ", not a disk image or a block device"};
}

Error in_use(const std::string& path) {
    return Error{ErrorKind::kBacking, EWOULDBLOCK,
                 path + " is in use: mounted, or open in another program or for another disk"};
}

/// A number from sysfs, or 0.
uint64_t read_number(const std::string& path) {
    Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    char text[32]{};
    if (!fd || ::read(fd.get(), text, sizeof(text) - 1) <= 0) return 0;
    return std::strtoull(text, nullptr, 10);
}

}  // namespace

FileBacking::FileBacking(Fd fd, const FileOptions& options, const Geometry& geometry)
    : fd_(std::move(fd)), options_(options), geometry_(geometry) {}

Result<std::unique_ptr<FileBacking>> FileBacking::open(const FileOptions& options) {
    const std::string& path = options.path;
    if (options.sector_size != 512 && options.sector_size != 4096) {
        return Error{ErrorKind::kInvalidArgument, 0, "a sector has 512 or 4096 bytes"};
    }
    // Looked at first, since opening a pipe would wait for its other end.
    struct stat info {};
    if (::stat(path.c_str(), &info) != 0) {
        return system_error(ErrorKind::kBacking, errno, "opening " + path);
    }
    if (!S_ISREG(info.st_mode) && !S_ISBLK(info.st_mode)) return not_a_disk(path, info.st_mode);
    const bool exclusive = S_ISBLK(info.st_mode) && !options.read_only;
    const int flags =
        O_CLOEXEC | (options.read_only ? O_RDONLY : O_RDWR) | (exclusive ? O_EXCL : 0);
    Fd fd(::open(path.c_str(), flags));
    if (!fd) {
        if (errno == EBUSY) return in_use(path);
        const char* purpose = options.read_only ? "" : " for writing";
        return system_error(ErrorKind::kBacking, errno, "opening " + path + purpose);
    }

    Geometry geometry;
    geometry.sector_size = geometry.physical_sector_size = options.sector_size;
    geometry.read_only = options.read_only;
    auto backing = std::make_unique<FileBacking>(std::move(fd), options, geometry);
    if (Status s = backing->identify(); !s) return s.error();
    if (Status s = backing->lock(); !s) return s.error();
    if (Status s = backing->find_size(); !s) return s.error();
    if (Status s = backing->set_up_direct(); !s) return s.error();
    if (backing->block_device_) {
        backing->find_block_geometry();
    } else {
        backing->find_file_geometry();
    }
    return backing;
}

Status FileBacking::identify() {
    struct stat info {};
    if (::fstat(fd_.get(), &info) != 0) {
        return system_error(ErrorKind::kBacking, errno, "examining " + options_.path);
    }
    if (!S_ISREG(info.st_mode) && !S_ISBLK(info.st_mode)) {
        return not_a_disk(options_.path, info.st_mode);
    }
    block_device_ = S_ISBLK(info.st_mode);
    struct statfs fs {};
    if (!block_device_ && ::fstatfs(fd_.get(), &fs) == 0) {
        const auto type = static_cast<uint32_t>(fs.f_type);
        in_memory_ = type == TMPFS_MAGIC || type == RAMFS_MAGIC;
    }
    return {};
}

Status FileBacking::lock() const {
    const int how = (options_.read_only ? LOCK_SH : LOCK_EX) | LOCK_NB;
    for (int tries = 1;; tries++) {
        if (::flock(fd_.get(), how) == 0) return {};
        if (errno == EINTR) continue;
        if (errno != EWOULDBLOCK) break;
        if (!block_device_ || tries == kLockTries) return in_use(options_.path);
        const timespec pause{0, kLockPause_ns};
        ::nanosleep(&pause, nullptr);
    }
    // A file system without locks (NFS without its lock daemon): the lock is advice, so the disk
    // works without.
    if (errno == ENOLCK || errno == EOPNOTSUPP || errno == ENOSYS) return {};
    return system_error(ErrorKind::kBacking, errno, "locking " + options_.path);
}

Status FileBacking::find_size() {
    Result<uint64_t> size = measure();
    if (!size) return size.error();
    if (size.value() == 0) {
        return Error{ErrorKind::kBacking, 0,
                     options_.path + " is empty: it has not even one sector of " +
                         std::to_string(options_.sector_size) + " bytes"};
    }
    geometry_.size_bytes = size.value();
    struct stat info {};
    if (!block_device_ && ::fstat(fd_.get(), &info) == 0) {
        tail_bytes_ = static_cast<uint64_t>(info.st_size) - geometry_.size_bytes;
    }
    return {};
}

Result<uint64_t> FileBacking::measure() const {
    uint64_t size = 0;
    if (block_device_) {
        if (::ioctl(fd_.get(), BLKGETSIZE64, &size) != 0) {
            return system_error(ErrorKind::kBacking, errno, "asking for the size of " + path());
        }
    } else {
        struct stat info {};
        if (::fstat(fd_.get(), &info) != 0) {
            return system_error(ErrorKind::kBacking, errno, "asking for the size of " + path());
        }
        size = static_cast<uint64_t>(info.st_size);
    }
    return size - size % options_.sector_size;
}

Status FileBacking::set_up_direct() {
    if (options_.direct == DirectChoice::kOff) return {};
    const bool wanted = options_.direct == DirectChoice::kOn;
    if (in_memory_ && !wanted) return {};
    const int flags = ::fcntl(fd_.get(), F_GETFL);
    if (flags < 0 || ::fcntl(fd_.get(), F_SETFL, flags | O_DIRECT) != 0) {
        if (!wanted) return {};
        return Error{ErrorKind::kUnsupported, EINVAL,
                     "O_DIRECT does not work on the file system of " + path()};
    }
    direct_ = direct_moves_sectors();
    if (direct_) return {};
    if (wanted) {
        return Error{ErrorKind::kUnsupported, EINVAL,
                     "O_DIRECT cannot move single sectors of " +
                         std::to_string(options_.sector_size) + " bytes on " + path()};
    }
    if (::fcntl(fd_.get(), F_SETFL, flags) != 0) {
        return system_error(ErrorKind::kBacking, errno, "switching O_DIRECT off on " + path());
    }
    return {};
}

/// Whether every sector can be read and written by itself, from memory aligned to 512 bytes, which
/// is what guests use.
bool FileBacking::direct_moves_sectors() const {
#ifdef STATX_DIOALIGN
    struct statx info {};
    if (::statx(fd_.get(), "", AT_EMPTY_PATH, STATX_DIOALIGN, &info) == 0 &&
        (info.stx_mask & STATX_DIOALIGN)) {
        return info.stx_dio_offset_align != 0 &&
               info.stx_dio_offset_align <= options_.sector_size && info.stx_dio_mem_align <= 512;
    }
#endif
    // An older kernel: try one sector at an odd place, into memory that is aligned to 512 bytes and
    // to no more.
    alignas(4096) char page[512 + 4096];
    const uint32_t sector = options_.sector_size;
    const off_t offset = geometry_.size_bytes >= 2 * sector ? static_cast<off_t>(sector) : 0;
    const ssize_t got = ::pread(fd_.get(), page + 512, sector, offset);
    return got >= 0 || errno != EINVAL;
}

void FileBacking::find_block_geometry() {
    int logical = 0;
    unsigned physical = 0;
    if (::ioctl(fd_.get(), BLKSSZGET, &logical) != 0) logical = 512;
    if (::ioctl(fd_.get(), BLKPBSZGET, &physical) != 0) physical = 0;
    discard_unit_ = static_cast<uint32_t>(logical);
    geometry_.physical_sector_size =
        std::max({options_.sector_size, static_cast<uint32_t>(logical), physical});
    if (options_.read_only) return;

    struct stat info {};
    if (::fstat(fd_.get(), &info) != 0) return;
    const std::string device = "/sys/dev/block/" + std::to_string(major(info.st_rdev)) + ":" +
                               std::to_string(minor(info.st_rdev));
    // A partition has its disk's queue, one folder up.
    std::string queue = device + "/queue/";
    if (::access(queue.c_str(), X_OK) != 0) queue = device + "/../queue/";
    geometry_.can_discard = read_number(queue + "discard_max_bytes") > 0;
    if (!geometry_.can_discard) return;
    geometry_.discard_granularity = static_cast<uint32_t>(
        std::max<uint64_t>(read_number(queue + "discard_granularity"), options_.sector_size));
    geometry_.discard_alignment = static_cast<uint32_t>(read_number(device + "/discard_alignment"));
    // A range that is no whole sector is refused as such only where the device can erase at all.
    // (Kernels before 5.19 refuse it either way; there a device that cannot answers EOPNOTSUPP
    // later.)
    uint64_t no_sector[2] = {1, 1};
    geometry_.can_secure_discard =
        ::ioctl(fd_.get(), BLKSECDISCARD, no_sector) != 0 && errno == EINVAL;
}

void FileBacking::find_file_geometry() {
    struct stat info {};
    const bool known = ::fstat(fd_.get(), &info) == 0;
    // What the file system stores as one piece. Network file systems answer their transfer size
    // here, which is none.
    const bool usable = known && info.st_blksize >= 512 && info.st_blksize <= 65536;
    const uint32_t block = usable ? static_cast<uint32_t>(info.st_blksize) : kPageSize;
    geometry_.physical_sector_size = std::max(options_.sector_size, std::min(block, kPageSize));
    if (options_.read_only) return;
    // Past the end there is nothing to lose, and KEEP_SIZE leaves the end where it is: a question
    // without a trace.
    const off_t beyond = static_cast<off_t>((geometry_.size_bytes + tail_bytes_ + kProbeAlign) /
                                            kProbeAlign * kProbeAlign);
    geometry_.can_discard =
        ::fallocate(fd_.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, beyond, kPageSize) == 0;
    if (geometry_.can_discard)
        geometry_.discard_granularity = std::max(block, options_.sector_size);
}

Result<Fd> FileBacking::reopen() const {
    const int flags = ::fcntl(fd_.get(), F_GETFL);
    if (flags < 0) return system_error(ErrorKind::kBacking, errno, "reopening " + path());
    const std::string link = "/proc/self/fd/" + std::to_string(fd_.get());
    Fd fd(::open(link.c_str(), O_CLOEXEC | (flags & (O_ACCMODE | O_DIRECT))));
    if (!fd) return system_error(ErrorKind::kBacking, errno, "reopening " + path());
    return fd;
}

Status FileBacking::resize(uint64_t size_bytes) {
    if (Status s = check_disk_size(size_bytes, options_.sector_size); !s) return s;
    if (block_device_) {
        Result<uint64_t> size = measure();
        if (!size) return size.error();
        if (size.value() >= size_bytes) return {};
        return Error{ErrorKind::kBacking, 0,
                     path() + " has only " + std::to_string(size.value()) +
                         " bytes; make the device longer first"};
    }
    if (options_.read_only) {
        return Error{ErrorKind::kInvalidArgument, EROFS, path() + " is open for reading only"};
    }
    // Asked first, because going beyond this limit raises a signal.
    rlimit limit{};
    if (::getrlimit(RLIMIT_FSIZE, &limit) == 0 && size_bytes > limit.rlim_cur) {
        return system_error(ErrorKind::kBacking, EFBIG, "resizing " + path() + " (RLIMIT_FSIZE)");
    }
    int result;
    do {
        result = ::ftruncate(fd_.get(), static_cast<off_t>(size_bytes));
    } while (result != 0 && errno == EINTR);
    if (result != 0) return system_error(ErrorKind::kBacking, errno, "resizing " + path());
    return {};
}

}  // namespace vbd::block
