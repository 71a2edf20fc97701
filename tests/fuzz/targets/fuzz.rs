//! All targets in one program, which is built and linked once: `CULVERT_FUZZ_TARGET` names the one to run.
#![no_main]
use std::sync::LazyLock;

static CHECK: LazyLock<fn(&[u8])> = LazyLock::new(|| {
    let name = std::env::var("CULVERT_FUZZ_TARGET").unwrap_or_default();
    let found = culvert_fuzz::TARGETS.iter().find(|(known, _)| *known == name);
    found.unwrap_or_else(|| panic!("CULVERT_FUZZ_TARGET={name:?} is no target")).1
});

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| CHECK(bytes));
