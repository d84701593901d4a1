// OverlayQueue: the data path of an overlay, for one reactor. Pieces are runs of granules that are all
// below or all in the container:
//
//   read             in the container: from there; below: from there; beyond the disk below: zeroes
//   write, in it     there
//   write, whole granules that are below    claim, write, mark
//   write, a part of one                    claim, read it from below, put the part in, write, mark
//   discard          as a write of zeroes, but whole granules are discarded in the container
#pragma once

#include <memory>

#include "stages/overlay.h"
#include "stages/piece_queue.h"

namespace vbd::stages {

class OverlayQueue final : public PieceQueue {
  public:
    OverlayQueue(block::IoContext& context,
                 std::vector<std::unique_ptr<block::DeviceQueue>> bases,
                 std::shared_ptr<Overlay::Shared> shared, const block::Geometry& geometry);

    void submit(std::span<block::Io* const> batch) override;

  protected:
    Start start(Piece& piece) override;
    Next finished(Piece& piece) override;
    void end(block::Io* io) override;

  private:
    Start read(Piece& piece);
    Start in_container(Piece& piece, uint64_t granule, uint64_t inside);
    Start take_over(Piece& piece, uint64_t granule, uint64_t count);
    Start copy_on_write(Piece& piece, uint64_t granule);
    void write_copy(Piece& piece);
    void flush(block::Io* io);

    std::shared_ptr<Overlay::Shared> shared_;
    OverlayFile& file_;
    const uint64_t granule_bytes_;
    const uint32_t sector_size_;
    const bool discards_;
};

}  // namespace vbd::stages
