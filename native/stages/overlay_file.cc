#include "stages/overlay_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstring>

#include "base/crc32c.h"
#include "base/fd.h"

namespace vbd::stages {

using block::BlockingIo;
using block::PageBuffer;

namespace {

constexpr char kMagic[8] = {'V', 'B', 'D', 'O', 'V', 'L', '\n', '\0'};
constexpr uint64_t kWordsPerPage = OverlayFile::kBitsPerPage / 64;
static_assert(kWordsPerPage * 64 == OverlayFile::kBitsPerPage);
/// The disk may grow to this many times its size, or to what is needed for 1 TiB.
constexpr uint64_t kGrowth = 4;
constexpr uint64_t kGrowAtLeast = 1ull << 40;

bool all_zero(const uint8_t* data, size_t bytes) {
    return std::all_of(data, data + bytes, [](uint8_t byte) { return byte == 0; });
}

Status failed_io(int32_t error, const char* what) {
    if (error == 0) return {};
    return system_error(ErrorKind::kBacking, error, what);
}

}  // namespace

Status sync_folder_of(const std::string& path) {
    const size_t slash = path.find_last_of('/');
    const std::string folder = slash == std::string::npos ? "." : path.substr(0, slash + 1);
    Fd directory(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (directory && ::fsync(directory.get()) == 0) return {};
    return system_error(ErrorKind::kBacking, errno, "writing out " + folder);
}

uint64_t OverlayFile::page_count(uint64_t disk_bytes, uint32_t granule_bytes) {
    const uint64_t granules = (disk_bytes + granule_bytes - 1) / granule_bytes;
    return (granules + kBitsPerPage - 1) / kBitsPerPage;
}

// What is kept of each page, in memory and with room to grow, would take all there is.
Status OverlayFile::check_size(uint64_t disk_bytes, uint32_t granule_bytes) {
    if (page_count(disk_bytes, granule_bytes) <= kMostPages) return {};
    return Error{ErrorKind::kUnsupported, 0,
                 "an overlay with granules of " + std::to_string(granule_bytes) +
                     " bytes takes disks of up to " +
                     std::to_string((kMostPages * kBitsPerPage * granule_bytes) >> 40) +
                     " TiB; choose larger granules"};
}

uint64_t OverlayFile::container_bytes(uint64_t disk_bytes, uint32_t granule_bytes) {
    const uint64_t granules = (disk_bytes + granule_bytes - 1) / granule_bytes;
    return kHeaderBytes + page_count(disk_bytes, granule_bytes) * 2 * kPageBytes +
           granules * granule_bytes;
}

OverlayFile::Header OverlayFile::make_header(uint64_t disk_bytes, uint32_t granule_bytes,
                                             uint32_t layers) {
    Header header{};
    std::memcpy(header.magic, kMagic, sizeof kMagic);
    header.version = version_for(layers);
    header.layers = layers;
    header.granule_bytes = granule_bytes;
    header.disk_bytes = header.base_bytes = disk_bytes;
    header.epoch = 1;
    header.clean = 1;
    header.crc = crc32c(&header, offsetof(Header, crc));
    return header;
}

// A file of this name is a whole container from its first moment on, whatever happens.
Status OverlayFile::create_at(const std::string& path, uint64_t disk_bytes, uint32_t granule_bytes,
                              uint32_t layers) {
    const std::string made = path + ".new";
    ::unlink(made.c_str());
    Fd fd(::open(made.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
    if (!fd) return system_error(ErrorKind::kBacking, errno, "creating " + path);
    const Header header = make_header(disk_bytes, granule_bytes, layers);
    const auto bytes = static_cast<off_t>(container_bytes(disk_bytes, granule_bytes));
    const bool written = ::ftruncate(fd.get(), bytes) == 0 &&
                         ::pwrite(fd.get(), &header, sizeof header, 0) == sizeof header &&
                         ::fsync(fd.get()) == 0 && ::link(made.c_str(), path.c_str()) == 0;
    const int error = errno;
    ::unlink(made.c_str());
    if (!written) return system_error(ErrorKind::kBacking, error, "creating " + path);
    Status durable = sync_folder_of(path);
    if (!durable) ::unlink(path.c_str());
    return durable;
}

Result<uint32_t> OverlayFile::read_layers(const std::string& path) {
    Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    Header header{};
    if (!fd || ::pread(fd.get(), &header, sizeof header, 0) < 0) {
        return system_error(ErrorKind::kBacking, errno, "reading " + path);
    }
    // What is no overlay is told when it is opened.
    const bool good = std::memcmp(header.magic, kMagic, sizeof kMagic) == 0 &&
                      header.crc == crc32c(&header, offsetof(Header, crc));
    return good ? header.layers : 0u;
}

Status OverlayFile::create_in(block::Device& scratch, uint64_t disk_bytes,
                              uint32_t granule_bytes) {
    auto io = BlockingIo::open(scratch);
    if (!io) return io.error();
    PageBuffer page(kHeaderBytes);
    std::memset(page.data(), 0, page.size());
    const Header header = make_header(disk_bytes, granule_bytes);
    std::memcpy(page.data(), &header, sizeof header);
    if (int32_t error = io.value()->write(0, page.data(), page.size())) {
        return failed_io(error, "creating an overlay");
    }
    return failed_io(io.value()->flush(), "creating an overlay");
}

Result<std::unique_ptr<OverlayFile>> OverlayFile::open(std::unique_ptr<block::Device> scratch,
                                                       uint64_t base_bytes,
                                                       uint32_t granule_bytes) {
    auto file = std::unique_ptr<OverlayFile>(new OverlayFile);
    file->scratch_ = std::move(scratch);
    auto io = BlockingIo::open(*file->scratch_);
    if (!io) return io.error();
    PageBuffer buffer(2 * kPageBytes);
    if (file->scratch_->size_bytes() < kHeaderBytes) return file->damaged("it is too short");
    if (int32_t error = io.value()->read(0, buffer.data(), kHeaderBytes)) {
        return failed_io(error, "reading an overlay").error();
    }
    std::memcpy(&file->header_, buffer.data(), sizeof file->header_);
    if (Status s = file->check_header(base_bytes, granule_bytes); !s) return s.error();

    const uint64_t room = page_count(
        std::max(file->header_.disk_bytes * kGrowth, kGrowAtLeast), file->granule_bytes());
    auto bits = ReservedArray<uint64_t>::create(room * kWordsPerPage);
    if (!bits) return bits.error();
    file->bits_ = std::move(bits).value();
    file->page_states_ = std::make_unique<Page[]>(room);
    file->page_room_ = room;
    for (uint64_t page = 0; page < file->pages(); page++) {
        if (int32_t error =
                io.value()->read(file->page_offset(page, 0), buffer.data(), 2 * kPageBytes)) {
            return failed_io(error, "reading the bitmap of an overlay").error();
        }
        if (Status s = file->load_page(page, buffer.data()); !s) return s.error();
    }
    return file;
}

Error OverlayFile::damaged(const std::string& what) const {
    return {ErrorKind::kBacking, 0, scratch_->geometry().description + " is no overlay: " + what};
}

Status OverlayFile::check_header(uint64_t base_bytes, uint32_t granule_bytes) const {
    if (std::memcmp(header_.magic, kMagic, sizeof kMagic) != 0) {
        return damaged("it was not made by vbdkit; name a new file");
    }
    if (header_.crc != crc32c(&header_, offsetof(Header, crc))) {
        return damaged("the checksum of its header is wrong");
    }
    if (header_.version != version_for(header_.layers)) {
        return damaged("its version is " + std::to_string(header_.version) +
                       ", which this vbdkit does not know");
    }
    const uint32_t granule = header_.granule_bytes;
    if (granule < 4096 || granule > (1u << 20) || !std::has_single_bit(granule) ||
        !check_size(header_.disk_bytes, granule) ||
        scratch_->size_bytes() < container_bytes(header_.disk_bytes, granule)) {
        return damaged("its header contradicts itself");
    }
    if (base_bytes != kAnyBase && header_.base_bytes != base_bytes) {
        return Error{ErrorKind::kBacking, 0,
                     scratch_->geometry().description + " belongs to a disk of " +
                         std::to_string(header_.base_bytes) + " bytes, and this one has " +
                         std::to_string(base_bytes)};
    }
    if (granule_bytes != 0 && granule_bytes != granule) {
        return Error{ErrorKind::kInvalidArgument, 0,
                     "the overlay was made with granules of " + std::to_string(granule) + " bytes"};
    }
    return {};
}

bool OverlayFile::is_whole(uint64_t page, const uint8_t* slot) const {
    PageHead head;
    std::memcpy(&head, slot, sizeof head);
    return head.page == static_cast<uint32_t>(page) &&
           head.crc == crc32c(slot + sizeof head.crc, kPageBytes - sizeof head.crc);
}

Status OverlayFile::load_page(uint64_t page, const uint8_t* slots) {
    Page& state = page_states_[page];
    const uint8_t* counts = nullptr;
    uint32_t torn = 0;
    for (uint32_t slot = 0; slot < 2; slot++) {
        const uint8_t* data = slots + slot * kPageBytes;
        if (!is_whole(page, data)) {
            torn += !all_zero(data, kPageBytes);
            continue;
        }
        PageHead head;
        std::memcpy(&head, data, sizeof head);
        if (head.version >> 32 != header_.epoch || head.version <= state.version) continue;
        state.version = head.version;
        state.slot = slot;
        counts = data;
    }
    // A crash tears the slot that was being written, and no other.
    if (torn > (header_.clean ? 0u : 1u)) {
        return Error{ErrorKind::kBacking, 0,
                     scratch_->geometry().description + " is damaged: the checksum of bitmap page " +
                         std::to_string(page) + " is wrong"};
    }
    // Written anew before the container says again that it was left in order.
    if (torn > 0) state.dirty.store(true);
    if (counts) {
        std::memcpy(&bits_[page * kWordsPerPage], counts + sizeof(PageHead), kWordsPerPage * 8);
    }
    return {};
}

uint64_t OverlayFile::run(uint64_t granule, uint64_t limit) const {
    limit = std::min(limit, kBitsPerPage - granule % kBitsPerPage);
    const bool same = allocated(granule);
    uint64_t count = 1;
    while (count < limit) {
        const uint64_t at = granule + count;
        if (at % 64 == 0 && limit - count >= 64 && word(at / 64) == (same ? ~0ull : 0)) {
            count += 64;
        } else if (allocated(at) == same) {
            count++;
        } else {
            break;
        }
    }
    return count;
}

void OverlayFile::mark(uint64_t granule, uint64_t count) {
    for (uint64_t at = granule; at < granule + count; at++) {
        __atomic_fetch_or(&bits_[at / 64], 1ull << (at % 64), __ATOMIC_ACQ_REL);
    }
    // After the bits: whoever finds it set finds them.
    const uint64_t last = (granule + count - 1) / kBitsPerPage;
    for (uint64_t page = granule / kBitsPerPage; page <= last; page++) {
        page_states_[page].dirty.store(true, std::memory_order_seq_cst);
    }
}

uint64_t OverlayFile::allocated_granules() const {
    uint64_t count = 0;
    for (uint64_t i = 0; i < pages() * kWordsPerPage; i++) count += std::popcount(word(i));
    return count;
}

Status OverlayFile::attach(bool writable) {
    auto io = BlockingIo::open(*scratch_);
    if (!io) return io.error();
    io_ = std::move(io).value();
    writable_ = writable;
    if (!writable) return {};
    header_.clean = 0;
    return failed_io(write_header(), "writing the header of an overlay");
}

int32_t OverlayFile::write_header() {
    PageBuffer page(kHeaderBytes);
    std::memset(page.data(), 0, page.size());
    header_.crc = crc32c(&header_, offsetof(Header, crc));
    std::memcpy(page.data(), &header_, sizeof header_);
    int32_t error = failed() ? EIO : io_->write(0, page.data(), page.size());
    if (!error) error = io_->flush();
    if (error) failed_.store(true, std::memory_order_release);
    return error;
}

int32_t OverlayFile::commit() {
    if (failed()) return EIO;
    if (!writable_) return 0;
    // What is promised is what was marked before its data is made durable, and nothing since.
    std::vector<std::pair<uint64_t, std::unique_ptr<PageBuffer>>> snapshots;
    for (uint64_t page = 0; page < pages(); page++) {
        if (!page_states_[page].dirty.exchange(false, std::memory_order_seq_cst)) continue;
        auto snapshot = std::make_unique<PageBuffer>(kPageBytes);
        for (uint64_t i = 0; i < kWordsPerPage; i++) {
            const uint64_t bits = word(page * kWordsPerPage + i);
            std::memcpy(snapshot->data() + sizeof(PageHead) + i * 8, &bits, 8);
        }
        snapshots.emplace_back(page, std::move(snapshot));
    }
    int32_t error = io_->flush();
    for (auto& [page, snapshot] : snapshots) {
        if (!error) error = write_page(page, snapshot->data());
    }
    if (!error && !snapshots.empty()) error = io_->flush();
    if (error) failed_.store(true, std::memory_order_release);
    return error;
}

int32_t OverlayFile::write_page(uint64_t page, uint8_t* snapshot) {
    Page& state = page_states_[page];
    const uint64_t sequence = (state.version >> 32 == header_.epoch ? state.version : 0) + 1;
    PageHead head{.crc = 0,
                  .page = static_cast<uint32_t>(page),
                  .version = uint64_t{header_.epoch} << 32 | (sequence & 0xffffffff)};
    std::memcpy(snapshot, &head, sizeof head);
    head.crc = crc32c(snapshot + sizeof head.crc, kPageBytes - sizeof head.crc);
    std::memcpy(snapshot, &head, sizeof head);
    state.version = head.version;
    state.slot ^= 1;
    return io_->write(page_offset(page, state.slot), snapshot, kPageBytes);
}

Status OverlayFile::resize(uint64_t disk_bytes) {
    if (page_count(disk_bytes, granule_bytes()) > page_room_) {
        return Error{ErrorKind::kUnsupported, 0,
                     "an open overlay grows to four times its size at most; serve it anew"};
    }
    const uint64_t before = header_.disk_bytes;
    if (disk_bytes < before) {
        return Error{ErrorKind::kUnsupported, 0, "an overlay cannot become shorter"};
    }
    if (Status s = scratch_->resize(container_bytes(disk_bytes, granule_bytes())); !s) return s;
    header_.disk_bytes = disk_bytes;
    return failed_io(write_header(), "writing the header of an overlay");
}

Status OverlayFile::reset() {
    header_.epoch++;
    if (Status s = failed_io(write_header(), "resetting an overlay"); !s) return s;
    for (uint64_t page = 0; page < pages(); page++) {
        for (uint64_t i = 0; i < kWordsPerPage; i++) {
            __atomic_store_n(&bits_[page * kWordsPerPage + i], 0, __ATOMIC_RELEASE);
        }
        // Its room is given back where that can be; the bits alone decide.
        const uint64_t begin = offset_of(page * kBitsPerPage);
        const uint64_t end = std::min(begin + kBitsPerPage * granule_bytes(),
                                      scratch_->size_bytes());
        if (scratch_->geometry().can_discard && begin < end) io_->discard(begin, end - begin);
    }
    return {};
}

Status OverlayFile::set_layers(uint32_t layers) {
    header_.layers = layers;
    header_.version = version_for(layers);
    return failed_io(write_header(), "writing the header of an overlay");
}

Status OverlayFile::detach() {
    Status outcome;
    if (writable_) {
        outcome = failed_io(commit(), "writing out an overlay");
        if (outcome) {
            header_.clean = 1;
            outcome = failed_io(write_header(), "writing the header of an overlay");
        }
    }
    io_.reset();
    return outcome;
}

}  // namespace vbd::stages
