{
  "includes": ["native/sources.gypi"],
  "targets": [
    {
      "target_name": "vbdkit",
      "sources": ["<@(core_sources)", "<@(addon_sources)"],
      "include_dirs": ["native"],
      "defines": [
        "NAPI_VERSION=9",
        "NAPI_DISABLE_CPP_EXCEPTIONS",
        "NODE_ADDON_API_DISABLE_DEPRECATED",
        "NODE_ADDON_API_REQUIRE_BASIC_FINALIZERS",
        "NODE_API_SWALLOW_UNTHROWABLE_EXCEPTIONS"
      ],
      "cflags_cc": [
        "<@(cxx_flags)", "-O3", "-flto=auto",
        "-isystem", "<!(node -p \"require('path').resolve(require('node-addon-api').include_dir)\")"
      ],
      "libraries": ["-luring", "-ldl", "-lpthread"],
      "ldflags": [
        "-flto=auto", "-Wl,-Bsymbolic", "-Wl,--exclude-libs,ALL", "-Wl,-z,relro,-z,now,-z,noexecstack"
      ]
    }
  ]
}
