// The offsets of each ABI, against structs that this compiler lays out by the same rules as the
// guest's.
#include "blkif/wire.h"

#include <doctest/doctest.h>

#include <type_traits>

#include "guest_slot.h"

using namespace vbd;
using namespace vbd::blkif;

namespace {

template <Protocol P, typename Abi>
void check_layout() {
    using L = Layout<P>;
    using Data = typename Abi::Data;
    using Discard = typename Abi::Discard;
    using Indirect = typename Abi::Indirect;
    using Response = typename Abi::Response;
    CHECK(L::kOperation == offsetof(Data, operation));
    CHECK(L::kNrSegments == offsetof(Data, nr_segments));
    CHECK(L::kHandle == offsetof(Data, handle));
    CHECK(L::kId == offsetof(Data, id));
    CHECK(L::kSector == offsetof(Data, sector));
    CHECK(L::kSegments == offsetof(Data, seg));
    CHECK(L::kSize == sizeof(Data));
    CHECK(L::kSize == slot_bytes(P));
    CHECK(sizeof(std::declval<Data>().seg[0]) == sizeof(Segment));

    CHECK(L::kOperation == offsetof(Discard, operation));
    CHECK(L::kDiscardFlag == offsetof(Discard, flag));
    CHECK(L::kId == offsetof(Discard, id));
    CHECK(L::kSector == offsetof(Discard, sector));
    CHECK(L::kDiscardNrSectors == offsetof(Discard, nr_sectors));
    CHECK(L::kDiscardSize == sizeof(Discard));

    CHECK(L::kOperation == offsetof(Indirect, operation));
    CHECK(L::kIndirectOperation == offsetof(Indirect, inner));
    CHECK(L::kIndirectNrSegments == offsetof(Indirect, nr_segments));
    CHECK(L::kId == offsetof(Indirect, id));
    CHECK(L::kSector == offsetof(Indirect, sector));
    CHECK(L::kIndirectHandle == offsetof(Indirect, handle));
    CHECK(L::kIndirectRefs == offsetof(Indirect, refs));
    CHECK(L::kIndirectEnd == offsetof(Indirect, refs) + 8 * 4);

    CHECK(L::kResponseId == offsetof(Response, id));
    CHECK(L::kResponseOperation == offsetof(Response, operation));
    CHECK(L::kResponseStatus == offsetof(Response, status));
    CHECK(L::kResponseSize == sizeof(Response));
}

}  // namespace

TEST_CASE("wire: each ABI's offsets are those of the guest's structs") {
    check_layout<Protocol::kX86_64, test::Abi64>();
    check_layout<Protocol::kX86_32, test::Abi32>();
    if constexpr (sizeof(void*) == 8) check_layout<Protocol::kNative, test::Abi64>();
    CHECK(Layout<Protocol::kX86_64>::kSize == 112);
    CHECK(Layout<Protocol::kX86_32>::kSize == 108);
}

TEST_CASE("wire: a ring has the same number of entries in every ABI") {
    const uint32_t pages[] = {1, 2, 4, 8, 16};
    const uint32_t expected[] = {32, 64, 128, 256, 512};
    for (size_t i = 0; i < std::size(pages); ++i) {
        for (const Protocol protocol : test::kProtocols) {
            CHECK(entries(pages[i], protocol) == expected[i]);
            const uint64_t end = kRingHeaderBytes + uint64_t{expected[i]} * slot_bytes(protocol);
            CHECK(end <= uint64_t{pages[i]} * kPageSize);
        }
    }
    CHECK(entries(0, Protocol::kX86_64) == 0);
    CHECK(entries(32, Protocol::kX86_64) == 1024);
}
