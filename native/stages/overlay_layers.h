// What is done to an overlay that nobody has open: snapshots, which freeze its container as a layer,
// and the ways back. A container says in its header how many layers lie between it and the disk below;
// layer 1, which lies on that disk, is the file `SCRATCH.1`, and so on.
//
//   snapshot   SCRATCH becomes SCRATCH.n, under a new and empty SCRATCH
//   reset      SCRATCH becomes empty: what it was on the last layer is there again
//   commit     all layers and SCRATCH are written into the disk below, and are gone
//
// Each can be interrupted at any moment: what the overlay reads as is either what it was before or what
// it is after, and the same can be asked for again.
#pragma once

#include <string>

#include "block/device.h"
#include "stages/disk_spec.h"

namespace vbd::stages {

/// Where layer `number` of an overlay is, from 1.
std::string layer_path(const std::string& scratch, uint32_t number);

/// How many layers the overlay at `scratch` has; 0 where it is to be made. Errors: kBacking where that is
/// no overlay, or one of its layers is missing.
Result<uint32_t> overlay_layers(const std::string& scratch);

/// Returns the path of the new layer. Errors: kBacking; kUnsupported above 64 layers.
Result<std::string> snapshot_overlay(const OverlayOptions& options);

/// Errors: kBacking.
Status reset_overlay(const OverlayOptions& options);

/// `base`: the disk below all layers, open for writing. Errors: kBacking; kUnsupported where the overlay
/// is longer than it.
Status commit_overlay(const OverlayOptions& options, block::Device& base);

}  // namespace vbd::stages
