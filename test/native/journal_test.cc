// Journal: what the next process finds of what a dead one had taken, whatever moment it died at.
#include "engine/journal.h"

#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <random>
#include <set>

#include <doctest/doctest.h>

using vbd::blkif::RawSlot;
using vbd::engine::Journal;

namespace {

constexpr uint32_t kRing = 8;

struct Folder {
    char name[32] = "/tmp/vbdkit-journal-XXXXXX";
    Folder() { REQUIRE(::mkdtemp(name) != nullptr); }
    ~Folder() { std::filesystem::remove_all(name); }
    std::string path() const { return std::string(name) + "/journal-1-51712-0"; }
};

RawSlot slot_of(uint32_t id) {
    RawSlot slot;
    std::memcpy(slot.bytes, &id, sizeof id);
    slot.bytes[111] = static_cast<uint8_t>(id);
    return slot;
}

uint32_t id_of(const RawSlot& slot) {
    uint32_t id;
    std::memcpy(&id, slot.bytes, sizeof id);
    CHECK(slot.bytes[111] == static_cast<uint8_t>(id));
    return id;
}

Journal created(const Folder& folder) {
    auto made = Journal::create(folder.path(), "rings", kRing);
    REQUIRE(made);
    return std::move(made).value();
}

// In a copy: who looks takes it over.
std::vector<uint32_t> found(const Folder& folder, uint32_t rsp_prod) {
    const std::string copy = std::string(folder.name) + "/copy";
    std::filesystem::copy_file(folder.path(), copy,
                               std::filesystem::copy_options::overwrite_existing);
    auto journal = Journal::recover(copy, "rings", kRing, rsp_prod);
    REQUIRE(journal);
    std::vector<uint32_t> ids;
    for (uint32_t entry : journal.value().unanswered()) {
        ids.push_back(id_of(journal.value().slot(entry)));
    }
    return ids;
}

using Ids = std::vector<uint32_t>;

}  // namespace

TEST_CASE("journal: what was taken and has no published answer is found, in order") {
    Folder folder;
    Journal journal = created(folder);
    // Across the end of the index's range.
    const uint32_t begin = UINT32_MAX - 1;
    std::vector<uint32_t> entries;
    for (uint32_t i = 0; i < 5; i++) entries.push_back(journal.take(slot_of(i), begin + i));
    CHECK(found(folder, begin) == Ids{0, 1, 2, 3, 4});

    SUBCASE("an answer counts once rsp_prod has passed it, whether or not that was noted") {
        journal.answer(entries[3], begin);
        journal.answer(entries[1], begin + 1);
        CHECK(found(folder, begin) == Ids{0, 1, 2, 3, 4});
    }
    SUBCASE("... published, and the process died at once") {
        journal.answer(entries[3], begin);
        journal.answer(entries[1], begin + 1);
        CHECK(found(folder, begin + 2) == Ids{0, 2, 4});
    }
    SUBCASE("... published and noted") {
        journal.answer(entries[3], begin);
        journal.answer(entries[1], begin + 1);
        journal.published();
        CHECK(found(folder, begin + 2) == Ids{0, 2, 4});
        journal.take(slot_of(5), begin + 5);
        CHECK(found(folder, begin + 2) == Ids{0, 2, 4, 5});
    }
    SUBCASE("a second process that dies in the middle leaves as much as the first") {
        journal.answer(entries[0], begin);
        auto next = Journal::recover(folder.path(), "rings", kRing, begin + 1);
        REQUIRE(next);
        auto left = next.value().unanswered();
        CHECK(left.size() == 4);
        next.value().answer(left[2], begin + 1);
        CHECK(found(folder, begin + 1) == Ids{1, 2, 3, 4});
    }
}

TEST_CASE("journal: another ring's, a spoiled one and none at all are not gone on with") {
    Folder folder;
    CHECK(!Journal::recover(folder.path(), "rings", kRing, 0));
    Journal journal = created(folder);
    CHECK(Journal::recover(folder.path(), "rings", kRing, 0));
    CHECK(!Journal::recover(folder.path(), "ring", kRing, 0));
    CHECK(!Journal::recover(folder.path(), "rings2", kRing, 0));
    CHECK(!Journal::recover(folder.path(), "rings", 2 * kRing, 0));
    CHECK(!Journal::create(folder.path(), std::string(64, 'x'), kRing));

    SUBCASE("a failed flush (R-41)") {
        journal.spoil();
        CHECK(!Journal::recover(folder.path(), "rings", kRing, 0));
    }
    SUBCASE("removed") {
        journal.remove();
        CHECK(!std::filesystem::exists(folder.path()));
    }
    SUBCASE("made anew, in place of what was there") {
        journal.take(slot_of(1), 0);
        Journal again = created(folder);
        CHECK(found(folder, 0).empty());
    }
    SUBCASE("a link is not followed") {
        const std::string other = std::string(folder.name) + "/other";
        std::filesystem::rename(folder.path(), other);
        std::filesystem::create_symlink(other, folder.path());
        CHECK(!Journal::recover(folder.path(), "rings", kRing, 0));
    }
}

TEST_CASE("journal: random lives of a ring, with the model's idea of it after every step") {
    std::mt19937 random(7);
    Folder folder;
    Journal journal = created(folder);
    uint32_t taken = 0, answered = 0, published = 0, next_id = 0;
    std::map<uint32_t, uint32_t> under_way;  // id → entry
    std::vector<uint32_t> unpublished;       // ids
    for (int step = 0; step < 4000; step++) {
        switch (random() % 4) {
            case 0:
            case 1:
                if (under_way.size() == kRing || taken - published >= 2 * kRing) break;
                under_way[next_id] = journal.take(slot_of(next_id), taken++);
                next_id++;
                break;
            case 2: {
                if (under_way.empty()) break;
                auto one = std::next(under_way.begin(), random() % under_way.size());
                journal.answer(one->second, answered++);
                unpublished.push_back(one->first);
                under_way.erase(one);
                break;
            }
            case 3:
                published = answered;
                unpublished.clear();
                if (random() % 4 == 0) {
                    // Dies here: the next one goes on.
                    journal = Journal();
                    auto next = Journal::recover(folder.path(), "rings", kRing, published);
                    REQUIRE(next);
                    journal = std::move(next).value();
                    for (uint32_t entry : journal.unanswered()) {
                        under_way[id_of(journal.slot(entry))] = entry;
                    }
                } else {
                    journal.published();
                }
                break;
        }
        std::set<uint32_t> expected(unpublished.begin(), unpublished.end());
        for (auto [id, entry] : under_way) expected.insert(id);
        const Ids now = found(folder, published);
        REQUIRE(std::set<uint32_t>(now.begin(), now.end()) == expected);
        REQUIRE(std::ranges::is_sorted(now));
    }
}
