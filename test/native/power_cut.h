// A medium that forgets what was not flushed when its power is cut, at any moment and in any mixture; and a
// model of what a disk over it may then hold.
#pragma once

#include <map>
#include <mutex>
#include <unordered_map>

#include "block/pattern_device.h"
#include "stages_fixture.h"

namespace power_cut {

using namespace disk_test;
using namespace stages_test;

inline constexpr uint64_t kSector = 512;
inline constexpr uint64_t kSeed = 11;
inline constexpr uint64_t kWindow = 48 * 1024;

using Sector = std::vector<uint8_t>;

/// What a disk holds, and what it would hold without power: any mixture of what was written since the
/// last flush, sector by sector.
class Medium {
  public:
    explicit Medium(uint64_t size) : size_(size) {}

    uint64_t size() const { return size_; }
    /// The power goes with the n-th operation from now on that is no read.
    void cut_after(uint64_t n, uint32_t seed) {
        const std::lock_guard lock(mutex_);
        left_ = n;
        random_.seed(seed);
    }
    bool was_cut() {
        const std::lock_guard lock(mutex_);
        return image_ != nullptr;
    }
    std::shared_ptr<Medium> image() { return image_; }

    void run(const Io& io) {
        const std::lock_guard lock(mutex_);
        const bool last = io.op != IoOp::kRead && left_ > 0 && --left_ == 0;
        if (last && io.op == IoOp::kFlush) cut();
        if (io.op == IoOp::kFlush) flush();
        uint64_t at = io.offset / kSector;
        if (io.op == IoOp::kDiscard) {
            for (uint64_t i = 0; i < io.length / kSector; i++) put(at + i, Sector(kSector));
        }
        if (io.op == IoOp::kRead || io.op == IoOp::kWrite) {
            for (const iovec& part : std::span(io.iov, io.iov_count)) {
                auto* bytes = static_cast<uint8_t*>(part.iov_base);
                for (uint64_t i = 0; i < part.iov_len; i += kSector, at++) {
                    if (io.op == IoOp::kWrite) {
                        put(at, Sector(bytes + i, bytes + i + kSector));
                    } else {
                        std::memcpy(bytes + i, get(at).data(), kSector);
                    }
                }
            }
        }
        if (last && io.op != IoOp::kFlush) cut();
    }

  private:
    void put(uint64_t sector, Sector bytes) { volatile_[sector] = std::move(bytes); }
    Sector get(uint64_t sector) const {
        if (auto found = volatile_.find(sector); found != volatile_.end()) return found->second;
        if (auto found = durable_.find(sector); found != durable_.end()) return found->second;
        return Sector(kSector);
    }
    void flush() {
        for (auto& [sector, bytes] : volatile_) durable_[sector] = std::move(bytes);
        volatile_.clear();
    }
    void cut() {
        auto image = std::make_shared<Medium>(size_);
        image->durable_ = durable_;
        const uint32_t kept_of_4 = random_() % 5;
        for (const auto& [sector, bytes] : volatile_) {
            if (random_() % 4 < kept_of_4) image->durable_[sector] = bytes;
        }
        image_ = std::move(image);
    }

    const uint64_t size_;
    std::mutex mutex_;
    std::unordered_map<uint64_t, Sector> durable_;
    std::map<uint64_t, Sector> volatile_;
    uint64_t left_ = 0;
    std::mt19937 random_;
    std::shared_ptr<Medium> image_;
};

class MediumDevice final : public Device {
  public:
    explicit MediumDevice(std::shared_ptr<Medium> medium) : medium_(std::move(medium)) {
        geometry_.size_bytes = medium_->size();
        geometry_.can_discard = true;
        geometry_.description = "medium";
        size_bytes_.store(medium_->size());
    }
    const Geometry& geometry() const override { return geometry_; }
    const char* kind() const override { return "medium"; }
    Result<std::unique_ptr<DeviceQueue>> open_queue(IoContext&) override {
        return std::unique_ptr<DeviceQueue>(new Queue(*medium_));
    }
    Status resize(uint64_t) override { return Error{ErrorKind::kUnsupported, 0, "no"}; }
    Result<uint64_t> refresh_size() override { return size_bytes(); }

  private:
    class Queue final : public DeviceQueue {
      public:
        explicit Queue(Medium& medium) : medium_(medium) {}
        void submit(std::span<Io* const> batch) override {
            for (Io* io : batch) {
                medium_.run(*io);
                complete(io, 0);
            }
        }

      private:
        Medium& medium_;
    };

    std::shared_ptr<Medium> medium_;
    Geometry geometry_;
};

/// What the disk holds before anything is written.
inline Sector below(uint64_t sector) {
    Sector bytes(kSector);
    for (uint64_t at = 0; at < kSector; at += 8) {
        const uint64_t word = PatternDevice::word_at(kSeed, sector * kSector + at);
        std::memcpy(bytes.data() + at, &word, 8);
    }
    return bytes;
}

/// One write, flush or discard, the same whenever it is made of the same number.
struct Step {
    Step(uint64_t number, const std::vector<uint64_t>& windows, uint64_t size) {
        std::mt19937_64 random(number * 7919 + 1);
        const uint64_t kind = random() % 8;
        op = kind < 5 ? IoOp::kWrite : kind < 6 ? IoOp::kDiscard : IoOp::kFlush;
        fua = op == IoOp::kWrite && random() % 6 == 0;
        if (op == IoOp::kFlush) return;
        const uint64_t window = windows[random() % windows.size()];
        const uint64_t most = std::min(kWindow, size - window) / kSector;
        // By sectors or by pages.
        const uint64_t unit = random() % 2 ? 8 : 1;
        const uint64_t count = std::max<uint64_t>(random() % (32 / unit) * unit, unit);
        first = window / kSector + random() % (most - count + 1) / unit * unit;
        for (uint64_t i = 0; i < count; i++) {
            Sector bytes(kSector);
            if (op == IoOp::kWrite) {
                for (uint64_t at = 0; at < kSector; at += 8) {
                    const uint64_t word = (number << 32) ^ ((first + i) << 8) ^ at;
                    std::memcpy(bytes.data() + at, &word, 8);
                }
            }
            sectors.push_back(std::move(bytes));
        }
    }

    int32_t run(Disk& disk) const {
        if (op == IoOp::kFlush) return disk.flush();
        const uint64_t length = sectors.size() * kSector;
        if (op == IoOp::kDiscard) return disk.discard(first * kSector, length);
        Pages pages(length);
        for (size_t i = 0; i < sectors.size(); i++) {
            std::memcpy(pages.data() + i * kSector, sectors[i].data(), kSector);
        }
        return disk.write(first * kSector, pages, fua);
    }

    IoOp op;
    bool fua = false;
    uint64_t first = 0;
    std::vector<Sector> sectors;
};

/// What each sector may be after a crash: the last one that was flushed, or what was written since.
class Model {
  public:
    void begin(const Step& step) {
        for (size_t i = 0; i < step.sectors.size(); i++) {
            at(step.first + i).push_back(step.sectors[i]);
        }
    }
    void done(const Step& step) {
        if (step.op == IoOp::kFlush) settle();
        for (size_t i = 0; step.fua && i < step.sectors.size(); i++) {
            at(step.first + i) = {step.sectors[i]};
        }
    }
    /// All of what was written is there.
    void settle() {
        for (auto& [sector, values] : values_) values = {values.back()};
    }
    /// What was found counts from now on.
    void check(Disk& disk, const std::vector<uint64_t>& windows) {
        int wrong = 0;
        const uint64_t size = disk.geometry().size_bytes;
        for (const uint64_t window : windows) {
            Pages pages(std::min(kWindow, size - window));
            REQUIRE(disk.read(window, pages) == 0);
            for (uint64_t i = 0; i < pages.size(); i += kSector) {
                const Sector found(pages.data() + i, pages.data() + i + kSector);
                auto& values = at((window + i) / kSector);
                wrong += std::find(values.begin(), values.end(), found) == values.end();
                values = {found};
            }
        }
        CHECK(wrong == 0);
    }

  private:
    std::vector<Sector>& at(uint64_t sector) {
        auto& values = values_[sector];
        if (values.empty()) values.push_back(below(sector));
        return values;
    }

    std::unordered_map<uint64_t, std::vector<Sector>> values_;
};

}  // namespace power_cut
