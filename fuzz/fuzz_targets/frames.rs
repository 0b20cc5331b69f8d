//! What a program under the application kernel returns from a signal handler with: registers to go on with, or its end.
#![no_main]

use std::cell::RefCell;

use appkernel::fuzzing::Frames;
use libfuzzer_sys::fuzz_target;

thread_local!(static FRAMES: RefCell<Frames> = RefCell::new(Frames::new()));

fuzz_target!(|input: (u16, &[u8])| {
    FRAMES.with_borrow_mut(|frames| frames.return_by(input.1, input.0));
});
