// The memory of script_ring.h: where its parts lie, and how it is had.
#pragma once

#include <sys/mman.h>
#include <sys/uio.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>

#include "base/result.h"
#include "base/units.h"
#include "block/script_ring.h"

namespace vbd::block {

/// Offsets of the rings and descriptors behind the indices, in bytes.
struct ScriptLayout {
    size_t submissions;
    size_t answers;
    size_t descriptors;
    size_t bytes;

    ScriptLayout(size_t indices, uint32_t submission_entries, uint32_t answer_entries,
                 uint32_t slots) {
        submissions = indices;
        answers = submissions + submission_entries * sizeof(uint32_t);
        // Answers are written in pairs of words.
        answers = (answers + 7) / 8 * 8;
        descriptors = (answers + answer_entries * sizeof(ScriptAnswer) + 63) / 64 * 64;
        bytes = descriptors + slots * sizeof(ScriptDescriptor);
    }
};

/// Zeroes, in whole pages; address space until it is touched. Errors: kNoMemory.
inline Result<iovec> map_script_memory(size_t bytes, const char* what) {
    const size_t whole = (bytes + kPageSize - 1) / kPageSize * kPageSize;
    void* memory = ::mmap(nullptr, whole, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return system_error(ErrorKind::kNoMemory, errno, what);
    ::madvise(memory, whole, MADV_DONTDUMP);  // guests' data in core files
    return iovec{memory, whole};
}

}  // namespace vbd::block
