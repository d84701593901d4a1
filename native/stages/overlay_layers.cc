#include "stages/overlay_layers.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <memory>

#include "stages/overlay.h"

namespace vbd::stages {

namespace {

constexpr uint32_t kMostLayers = 64;

bool exists(const std::string& path) {
    struct stat info {};
    return ::stat(path.c_str(), &info) == 0;
}

bool same_file(const std::string& a, const std::string& b) {
    struct stat first {}, second {};
    return ::stat(a.c_str(), &first) == 0 && ::stat(b.c_str(), &second) == 0 &&
           first.st_dev == second.st_dev && first.st_ino == second.st_ino;
}

Error failed(const std::string& what, const std::string& path) {
    return system_error(ErrorKind::kBacking, errno, what + " " + path);
}

Result<std::unique_ptr<OverlayFile>> open_file(const std::string& path, bool read_only) {
    auto scratch = block::open_device({.path = path, .read_only = read_only});
    if (!scratch) return scratch.error();
    return OverlayFile::open(std::move(scratch).value(), OverlayFile::kAnyBase, 0);
}

}  // namespace

std::string layer_path(const std::string& scratch, uint32_t number) {
    return scratch + "." + std::to_string(number);
}

Result<uint32_t> overlay_layers(const std::string& scratch) {
    if (!exists(scratch)) {
        if (!exists(layer_path(scratch, 1))) return 0u;
        return Error{ErrorKind::kBacking, 0,
                     scratch + " is missing, but a layer of it is there: " + layer_path(scratch, 1)};
    }
    auto layers = OverlayFile::read_layers(scratch);
    for (uint32_t i = 1; layers && i <= layers.value(); i++) {
        if (exists(layer_path(scratch, i))) continue;
        return Error{ErrorKind::kBacking, ENOENT,
                     layer_path(scratch, i) + ", a layer of " + scratch + ", is missing"};
    }
    return layers;
}

Result<std::string> snapshot_overlay(const OverlayOptions& options) {
    const std::string& scratch = options.scratch;
    const std::string next = scratch + ".next";
    uint32_t number = 0;
    {
        auto file = open_file(scratch, false);
        if (!file) return file.error();
        OverlayFile& overlay = *file.value();
        number = overlay.layers() + 1;
        if (number > kMostLayers) {
            return Error{ErrorKind::kUnsupported, 0,
                         "an overlay has 64 layers at most; commit it, or copy it to a new disk"};
        }
        ::unlink(next.c_str());
        Status made = OverlayFile::create_at(next, overlay.disk_bytes(), overlay.granule_bytes(),
                                             number);
        if (!made) return made.error();
    }
    // The layer has its name before the container loses its own.
    const std::string layer = layer_path(scratch, number);
    if (::link(scratch.c_str(), layer.c_str()) != 0) {
        if (errno != EEXIST) return failed("making", layer);
        // Left behind by one that was interrupted.
        if (!same_file(scratch, layer)) {
            return Error{ErrorKind::kBacking, EEXIST,
                         layer + " exists, and is no layer of this overlay; move it away"};
        }
    }
    if (Status s = sync_folder_of(scratch); !s) return s.error();
    if (::rename(next.c_str(), scratch.c_str()) != 0) return failed("replacing", scratch);
    if (Status s = sync_folder_of(scratch); !s) return s.error();
    return layer;
}

Status reset_overlay(const OverlayOptions& options) {
    return Overlay::reset(options, OverlayFile::kAnyBase);
}

// From below: at any moment what the rest of the layers says is true of the disk below as it is then.
Status commit_overlay(const OverlayOptions& options, block::Device& base) {
    auto layers = overlay_layers(options.scratch);
    if (!layers) return layers.error();
    {
        auto file = open_file(options.scratch, false);
        if (!file) return file.error();
        if (file.value()->disk_bytes() > base.size_bytes()) {
            return Error{ErrorKind::kUnsupported, 0,
                         "the overlay was made longer than the disk below it; copy it to a new disk"};
        }
    }
    for (uint32_t i = 1; i <= layers.value(); i++) {
        const OverlayOptions layer{.scratch = layer_path(options.scratch, i)};
        if (Status s = Overlay::commit(layer, base); !s) return s;
    }
    if (Status s = Overlay::commit(options, base); !s) return s;
    if (layers.value() == 0) return {};
    {
        auto file = open_file(options.scratch, false);
        if (!file) return file.error();
        if (Status s = file.value()->attach(true); !s) return s;
        if (Status s = file.value()->set_layers(0); !s) return s;
        if (Status s = file.value()->detach(); !s) return s;
    }
    for (uint32_t i = layers.value(); i > 0; i--) {
        const std::string layer = layer_path(options.scratch, i);
        if (::unlink(layer.c_str()) != 0) return failed("removing", layer);
    }
    return {};
}

}  // namespace vbd::stages
