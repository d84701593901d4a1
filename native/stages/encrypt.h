// Encrypt: what is on the disk below is encrypted as dm-crypt's aes-xts-plain64 does, sector by
// sector in the same place: either can read what the other wrote. Data is encrypted and decrypted in
// memory of our own: a guest must not see its pages change under it, nor change ours.
//
// Discards show which sectors are in use and are not offered unless asked for.
#pragma once

#include <memory>

#include "stages/disk_spec.h"
#include "stages/stage.h"

namespace vbd::stages {

class Encrypt final : public StageDevice {
  public:
    /// Errors: those of Xts::create; kInvalidArgument for a unit that is not 512 bytes to the base's
    /// sector size or more.
    static Result<std::unique_ptr<block::Device>> open(const EncryptOptions& options,
                                                       std::unique_ptr<block::Device> base);

    Result<std::unique_ptr<block::DeviceQueue>> open_queue(block::IoContext& context) override;
    const char* kind() const override { return "encrypt"; }

  private:
    Encrypt(const EncryptOptions& options, std::unique_ptr<block::Device> base);

    const EncryptOptions options_;
};

}  // namespace vbd::stages
