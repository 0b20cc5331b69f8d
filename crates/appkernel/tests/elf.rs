//! The ELF reader on bytes that nobody vouches for: an error or a sound image, never a panic.

use std::sync::OnceLock;

use appkernel::elf::{ADDRESS_LIMIT, Image};
use proptest::prelude::*;

/// A real and small program.
fn program() -> Vec<u8> {
    static PROGRAM: OnceLock<Vec<u8>> = OnceLock::new();
    PROGRAM.get_or_init(|| std::fs::read("/bin/true").expect("every machine has it")).clone()
}

/// What everything after the reader relies on.
fn assert_sound(image: &Image, file_len: u64) {
    assert!(!image.segments.is_empty());
    assert!(image.align.is_power_of_two());
    let mut end = 0;
    for segment in &image.segments {
        assert!(segment.addr >= end, "segments are in order and apart");
        assert!(segment.len > 0 && segment.file_len <= segment.len);
        assert!(segment.offset + segment.file_len <= file_len);
        end = segment.addr + segment.len;
        assert!(end <= ADDRESS_LIMIT);
    }
    let extent = image.extent();
    assert!(extent.start < extent.end && extent.end - ADDRESS_LIMIT.min(extent.end) < 4096);
    assert!(image.segments.iter().any(|s| (s.addr..s.addr + s.len).contains(&image.entry)));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn mangled_headers_give_an_error_or_a_sound_image(
        changes in prop::collection::vec((0usize..1024, any::<u8>()), 1..12),
    ) {
        let mut bytes = program();
        for (at, byte) in changes {
            bytes[at] = byte;
        }
        if let Ok(image) = Image::parse(&bytes[..]) {
            assert_sound(&image, bytes.len() as u64);
        }
    }

    #[test]
    fn extreme_numbers_in_headers_give_an_error_or_a_sound_image(
        changes in prop::collection::vec(
            (0usize..120, prop::sample::select(vec![0u64, 1, 4095, 4096, 1 << 31, 1 << 47, u64::MAX - 1, u64::MAX])),
            1..6,
        ),
    ) {
        let mut bytes = program();
        for (word, value) in changes {
            bytes[word * 8..word * 8 + 8].copy_from_slice(&value.to_ne_bytes());
        }
        if let Ok(image) = Image::parse(&bytes[..]) {
            assert_sound(&image, bytes.len() as u64);
        }
    }

    #[test]
    fn noise_behind_the_magic_gives_an_error_or_a_sound_image(
        noise in prop::collection::vec(any::<u8>(), 0..2048),
    ) {
        let bytes = [b"\x7fELF\x02\x01\x01".to_vec(), noise].concat();
        if let Ok(image) = Image::parse(&bytes[..]) {
            assert_sound(&image, bytes.len() as u64);
        }
    }

    #[test]
    fn truncated_programs_give_an_error_or_a_sound_image(len in 0usize..40_000) {
        let bytes = program();
        let bytes = &bytes[..len.min(bytes.len())];
        if let Ok(image) = Image::parse(bytes) {
            assert_sound(&image, bytes.len() as u64);
        }
    }
}
