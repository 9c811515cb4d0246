//! Whatever goes wrong in whatever order: never two owners, and progress when it ends.
#![no_main]

use egressnat_fuzz::schedule::{Bytes, SOUND};
use egressnat_fuzz::simulator::{Outcome, run};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let outcome = run(Bytes(bytes), SOUND);
    assert!(matches!(outcome, Outcome::Good { .. }), "{outcome:?}");
});
