//! The ELF reader: an error or a sound image, whatever the file is.
#![no_main]

use appkernel::elf::{ADDRESS_LIMIT, Image};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|file: &[u8]| {
    let Ok(image) = Image::parse(file) else { return };
    assert!(!image.segments.is_empty() && image.align.is_power_of_two());
    let mut end = 0;
    for segment in &image.segments {
        assert!(segment.addr >= end, "segments are in order and apart");
        assert!(segment.len > 0 && segment.file_len <= segment.len);
        assert!(segment.offset + segment.file_len <= file.len() as u64);
        end = segment.addr + segment.len;
        assert!(end <= ADDRESS_LIMIT);
    }
    let extent = image.extent();
    assert!(extent.start < extent.end && extent.contains(&image.entry));
});
