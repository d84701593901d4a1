// Journal: the file, and its entries.
#include "engine/journal.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "base/fd.h"

namespace vbd::engine {

namespace {

constexpr uint64_t kMagic = 0x314c4e524a444256;  // "VBDJRNL1"
constexpr size_t kNameBytes = 64;

}  // namespace

struct Journal::Header {
    uint64_t magic;
    uint32_t entries;
    std::atomic<uint32_t> spoiled;
    char rings[kNameBytes];
};

namespace {

constexpr size_t kHeaderBytes = 128;
static_assert(sizeof(Journal::Header) <= kHeaderBytes);
static_assert(sizeof(Journal::Entry) == 128);
// The stores are seen by another process: they may not hide in a lock.
static_assert(std::atomic<uint32_t>::is_always_lock_free);

// A guest may fill a ring behind answers that are not published yet.
uint32_t entries_of(uint32_t ring_entries) {
    return 2 * ring_entries;
}

size_t bytes_of(uint32_t entries) {
    return kHeaderBytes + size_t{entries} * sizeof(Journal::Entry);
}

Error unusable(const std::string& path, const char* why) {
    return {ErrorKind::kRing, 0, path + " " + why};
}

}  // namespace

Journal& Journal::operator=(Journal&& other) noexcept {
    std::swap(header_, other.header_);
    std::swap(entries_, other.entries_);
    std::swap(bytes_, other.bytes_);
    path_.swap(other.path_);
    free_.swap(other.free_);
    answered_.swap(other.answered_);
    std::swap(free_count_, other.free_count_);
    std::swap(answered_count_, other.answered_count_);
    return *this;
}

Journal::~Journal() {
    if (header_) ::munmap(header_, bytes_);
}

Result<Journal> Journal::map(int fd, const std::string& path, uint32_t entries) {
    Journal journal;
    journal.bytes_ = bytes_of(entries);
    void* memory =
        ::mmap(nullptr, journal.bytes_, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
    if (memory == MAP_FAILED) return system_error(ErrorKind::kNoMemory, errno, "mapping " + path);
    journal.header_ = static_cast<Header*>(memory);
    journal.entries_ =
        reinterpret_cast<Entry*>(static_cast<uint8_t*>(memory) + kHeaderBytes);
    journal.path_ = path;
    journal.free_ = std::make_unique<uint32_t[]>(entries);
    journal.answered_ = std::make_unique<uint32_t[]>(entries);
    return journal;
}

// Under another name at first: what is at `path` is whole at any moment. What was there is no more
// true in any case.
Result<Journal> Journal::create(const std::string& path, const std::string& rings,
                                uint32_t ring_entries) {
    if (rings.size() >= kNameBytes) return unusable(path, "is of rings with too long a name");
    const std::string fresh = path + ".new";
    ::unlink(path.c_str());
    ::unlink(fresh.c_str());
    const Fd fd(::open(fresh.c_str(), O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600));
    if (!fd) return system_error(ErrorKind::kBacking, errno, "making " + fresh);
    const uint32_t entries = entries_of(ring_entries);
    // All of it now: a file system that is full later would end the process.
    if (int error = ::posix_fallocate(fd.get(), 0, static_cast<off_t>(bytes_of(entries)))) {
        ::unlink(fresh.c_str());
        return system_error(ErrorKind::kBacking, error, "making " + fresh);
    }
    auto journal = map(fd.get(), path, entries);
    if (!journal) return journal.error();
    Header& header = *journal.value().header_;
    header.magic = kMagic;
    header.entries = entries;
    rings.copy(header.rings, kNameBytes - 1);
    Journal& made = journal.value();
    for (uint32_t i = entries; i-- > 0;) made.free_[made.free_count_++] = i;
    if (::rename(fresh.c_str(), path.c_str()) < 0) {
        return system_error(ErrorKind::kBacking, errno, "making " + path);
    }
    return journal;
}

Result<Journal> Journal::recover(const std::string& path, const std::string& rings,
                                 uint32_t ring_entries, uint32_t rsp_prod) {
    const Fd fd(::open(path.c_str(), O_RDWR | O_NOFOLLOW | O_CLOEXEC));
    if (!fd) return system_error(ErrorKind::kRing, errno, "opening " + path);
    const uint32_t entries = entries_of(ring_entries);
    struct stat status;
    if (::fstat(fd.get(), &status) < 0 || !S_ISREG(status.st_mode) ||
        static_cast<size_t>(status.st_size) != bytes_of(entries)) {
        return unusable(path, "is not of this ring");
    }
    auto mapped = map(fd.get(), path, entries);
    if (!mapped) return mapped.error();
    Journal journal = std::move(mapped).value();
    const Header& header = *journal.header_;
    if (header.magic != kMagic || header.entries != entries ||
        rings.compare(0, rings.npos, header.rings, ::strnlen(header.rings, kNameBytes)) != 0) {
        return unusable(path, "is not of these rings");
    }
    if (header.spoiled.load(std::memory_order_relaxed) != 0) {
        return unusable(path, "says that a flush failed on these rings");
    }
    for (uint32_t i = entries; i-- > 0;) {
        Entry& entry = journal.entries_[i];
        const uint32_t state = entry.state.load(std::memory_order_relaxed);
        const bool passed = static_cast<int32_t>(entry.position - rsp_prod) < 0;
        if (state == kTaken || (state == kAnswered && !passed)) {
            entry.state.store(kTaken, std::memory_order_release);
        } else {
            entry.state.store(kFree, std::memory_order_release);
            journal.free_[journal.free_count_++] = i;
        }
    }
    return journal;
}

std::vector<uint32_t> Journal::unanswered() const {
    std::vector<uint32_t> found;
    for (uint32_t i = 0; i < header_->entries; i++) {
        if (entries_[i].state.load(std::memory_order_relaxed) == kTaken) found.push_back(i);
    }
    std::ranges::sort(found, [this](uint32_t a, uint32_t b) {
        return static_cast<int32_t>(entries_[a].sequence - entries_[b].sequence) < 0;
    });
    return found;
}

const blkif::RawSlot& Journal::slot(uint32_t entry) const {
    return entries_[entry].slot;
}

void Journal::spoil() {
    header_->spoiled.store(1, std::memory_order_release);
}

void Journal::remove() {
    ::unlink(path_.c_str());
}

}  // namespace vbd::engine
